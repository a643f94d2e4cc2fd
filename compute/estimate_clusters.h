#ifndef WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
#define WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_

#include <cstdint>

#include "compute/score_clusters.h"
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
// Error terms, for the step's error estimate (nullptr: not wanted), with w_i = e^{m_i - lse} and
// x_i, g_i as in score_clusters.h:
//   missing_mass [num_queries]: mass that may be missing, relative to e^lse. For
//   MassEstimate::kLowerBound what the
//     second order would add, sum_i w_i (e^{g_i} - 1); for kSecondOrder half of what it did add,
//     sum_i w_i (1 - e^{-g_i}) / 2.
//   value_variance [num_queries]: squared length of the error made by the value means,
//     sum_i w_i^2 value_spread_i (1 / n_i + e^{min(x_i, kLogMassGainMax)} - 1).
struct EstimateClustersTask {
  const float* queries =
      nullptr;  // [num_queries, head_dim_k], scaled; read for the error terms alone
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  MassEstimate mass = MassEstimate::kLowerBound;  // of log_masses
  const Zone* zones = nullptr;
  float* output = nullptr;
  float* lse = nullptr;
  float* missing_mass = nullptr;
  float* value_variance = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
