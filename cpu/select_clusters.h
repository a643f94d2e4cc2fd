#ifndef WAVEKV_CPU_SELECT_CLUSTERS_H_
#define WAVEKV_CPU_SELECT_CLUSTERS_H_

#include "compute/select_clusters.h"

namespace wavekv::cpu {

// One worker's share of Backend::SelectClusters.
void SelectClusters(const SelectClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_SELECT_CLUSTERS_H_
