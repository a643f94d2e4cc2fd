#ifndef WAVEKV_CPU_ESTIMATE_ERRORS_H_
#define WAVEKV_CPU_ESTIMATE_ERRORS_H_

#include "compute/estimate_clusters.h"

namespace wavekv::cpu {

// The error terms of EstimateClusters, those that are wanted, once task.lse is known.
void EstimateErrors(const EstimateClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_ERRORS_H_
