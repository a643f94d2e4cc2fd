// Asks for what a task reads of its index before anything else, so that the task finds it in the
// cache: the parts of an index lie apart, and the first line of each would be waited for.
#ifndef WAVEKV_CPU_PREFETCH_INDEX_H_
#define WAVEKV_CPU_PREFETCH_INDEX_H_

#include "compute/estimate_clusters.h"
#include "compute/score_clusters.h"
#include "compute/score_tokens.h"

namespace wavekv::cpu {

void PrefetchFor(const ScoreClustersTask& task);
void PrefetchFor(const ScoreTokensTask& task);
void PrefetchFor(const EstimateClustersTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_PREFETCH_INDEX_H_
