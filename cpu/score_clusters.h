#ifndef WAVEKV_CPU_SCORE_CLUSTERS_H_
#define WAVEKV_CPU_SCORE_CLUSTERS_H_

#include "compute/score_clusters.h"

namespace wavekv::cpu {

// One worker's share of Backend::ScoreClusters.
void ScoreClusters(const ScoreClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_SCORE_CLUSTERS_H_
