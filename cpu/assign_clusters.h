#ifndef WAVEKV_CPU_ASSIGN_CLUSTERS_H_
#define WAVEKV_CPU_ASSIGN_CLUSTERS_H_

#include "compute/assign_clusters.h"

namespace wavekv::cpu {

// One worker's share of Backend::AssignClusters.
void AssignClusters(const AssignClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ASSIGN_CLUSTERS_H_
