#ifndef WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
#define WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_

#include <cstdint>

#include "compute/select_clusters.h"
#include "storage/cluster_index.h"

namespace wavekv {

// The attention state of every cluster of one segment that was not retrieved, from its statistics:
//   denominator  sum_i e^{m_i}           over the estimation and the remainder zone
//   numerator    sum_i e^{m_i} u_i       u_i = value mean of the cluster (estimation zone),
//                                              value mean of the segment's tokens in the
//                                              remainder zone (remainder)
// The latter follows from the segment's mean and the value means of the other clusters, which are
// read for it; so with equal masses every token's value counts once, whatever the zones.
//
// Shapes: log_masses [num_queries, index->num_clusters], row h at log_masses + h *
// log_masses_stride; zones [index->num_clusters]; output [num_queries, head_dim_v] fp32,
// normalised; lse [num_queries], natural. A segment without unretrieved clusters gives output 0 and
// lse -infinity.
//
// Error terms, for the step's error estimate (nullptr: not wanted), of masses relative to e^lse:
//   missing_mass [num_queries]: sum_i w_i (e^{min(s_i / 2, 3)} - 1) with w_i = e^{m_i - lse} and
//   s_i the variance
//     of the logit inside the cluster if its keys spread alike in all directions:
//     |q|^2 key_spread_i / head_dim_k. What Jensen's bound misses, to second order; capped because
//     the expansion overshoots for wide clusters.
//   value_variance [num_queries]: sum_i w_i^2 (value_spread_i / n_i + value_spread_i (e^{min(s_i,
//   3)} - 1)):
//     squared length of the error made by the value means.
struct EstimateClustersTask {
  const float* queries =
      nullptr;  // [num_queries, head_dim_k], scaled; read for the error terms alone
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  const Zone* zones = nullptr;
  float* output = nullptr;
  float* lse = nullptr;
  float* missing_mass = nullptr;
  float* value_variance = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
