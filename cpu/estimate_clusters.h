#ifndef WAVEKV_CPU_ESTIMATE_CLUSTERS_H_
#define WAVEKV_CPU_ESTIMATE_CLUSTERS_H_

#include "compute/estimate_clusters.h"

namespace wavekv::cpu {

// One worker's share of Backend::EstimateClusters.
void EstimateClusters(const EstimateClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_CLUSTERS_H_
