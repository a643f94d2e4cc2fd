#ifndef WAVEKV_COMPUTE_SCORE_SUPERS_H_
#define WAVEKV_COMPUTE_SCORE_SUPERS_H_

#include <cstdint>

#include "compute/score_clusters.h"

namespace wavekv {

// The log-masses and rank scores of one segment's super-clusters: the formulas of score_clusters.h
// with the centroid, size and spread of a super-cluster. By them a query decides which
// super-clusters to open, that is, whose clusters to score.
//
// Shapes: queries [num_queries, head_dim_k] fp32, scaled and rotated; log_masses and rank_scores
// [num_queries, index->num_supers], row h at h * stride.
struct ScoreSupersTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  MassEstimate mass = MassEstimate::kLowerBound;
  Ranking ranking = Ranking::kOptimistic;
  float* log_masses = nullptr;
  float* rank_scores = nullptr;
  int64_t stride = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SCORE_SUPERS_H_
