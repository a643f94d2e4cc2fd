#ifndef WAVEKV_CPU_UPDATE_CENTROIDS_H_
#define WAVEKV_CPU_UPDATE_CENTROIDS_H_

#include "compute/update_centroids.h"

namespace wavekv::cpu {

// One worker's share of Backend::UpdateCentroids.
void UpdateCentroids(const UpdateCentroidsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_UPDATE_CENTROIDS_H_
