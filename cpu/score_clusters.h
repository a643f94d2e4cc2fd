#ifndef WAVEKV_CPU_SCORE_CLUSTERS_H_
#define WAVEKV_CPU_SCORE_CLUSTERS_H_

#include "compute/score_clusters.h"
#include "compute/score_supers.h"

namespace wavekv::cpu {

// One worker's share of Backend::ScoreClusters and Backend::ScoreSupers.
void ScoreClusters(const ScoreClustersTask& task);
void ScoreSupers(const ScoreSupersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_SCORE_CLUSTERS_H_
