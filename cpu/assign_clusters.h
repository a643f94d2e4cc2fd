#ifndef WAVEKV_CPU_ASSIGN_CLUSTERS_H_
#define WAVEKV_CPU_ASSIGN_CLUSTERS_H_

#include <cstdint>

#include "compute/assign_clusters.h"

namespace wavekv::cpu {

// Points of a part: enough to share the packing of each panel of centroids.
inline constexpr int64_t kPointsPerPart = 256;

// Backend::AssignClusters in parts, each kPointsPerPart of the task's points, which workers may
// share. `dim` is one that a head may have.
int64_t NumParts(const AssignClustersTask& task);  // at least 1
void AssignClusters(const AssignClustersTask& task, int64_t part);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ASSIGN_CLUSTERS_H_
