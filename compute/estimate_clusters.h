#ifndef WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
#define WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_

#include <cstddef>
#include <cstdint>

#include "compute/score_clusters.h"
#include "compute/select_clusters.h"
#include "storage/cluster_index.h"

namespace wavekv {

// The attention state of all tokens of one segment that are not attended exactly, from statistics
// and codes. Each token counts with a mass, and with a value that is a mean:
//   estimation zone   a cluster's e^{m_i}, its value mean
//   remainder zone    a cluster's e^{m_i}, the value mean of its super-cluster's remainder
//   sketch zone       a token's e^{s_j} unless it was chosen, the value mean of the cluster's rest
//
// A rest (of a super-cluster, of a cluster) is a whole of n tokens with value mean v from which
// better known parts P, of n_P tokens with value mean v_P, have been taken. Its value mean is
//   (n v - sum_P d_P n_P v_P) / (n - sum_P d_P n_P),  d_P = min(1, rest's mass / part's mass, per
//   token).
// With equal masses all d_P are 1 and every value counts once. Heavier parts are taken out less:
// their values say more of a rest with similar keys than their absence does. A super-cluster whose
// remainder holds less than half of its tokens is answered by the clusters' own value means.
//
// Shapes: log_masses [num_queries, index->num_clusters], row h at h * log_masses_stride; zones
// [index->num_clusters]; token_masses [num_queries, tokens of the sketch zone in cluster order],
// row h at h * token_stride, relative to e^o_h, o_h of token_offsets [num_queries]
// (score_tokens.h); GPUs take their logarithms, token_logits, instead; chosen, one per such token,
// 1 for those attended exactly; chosen_values, for each of these in order its value [head_dim_v],
// of the index's dtype; output [num_queries, head_dim_v] fp32, normalised; lse [num_queries],
// natural. Nothing to answer: output 0 and lse -infinity. On CPUs what is less by a factor of e^-87
// than the greatest answered cluster or e^o_h counts as nothing, in value_variance by e^-43.
//
// *num_value_means and *num_super_value_means: how many were read.
//
// Error terms, for the step's error estimate (both or none: nullptr), from queries [num_queries,
// head_dim_k], scaled. What they add up, and the constants, were chosen by what predicts the errors
// of recorded attention (docs/wave_index.md). With x_i and g_i as in score_clusters.h, and u_j =
// min(n_j^2 / 2, kLogMassGainMax), n_j the standard deviation of a token's logit, by which its rank
// score exceeds it (score_tokens.h):
//   missing_lse [num_queries]: natural logarithm of the mass that may be missing, -infinity for
//   none:
//     sum_i e^{m_i} g_i over answered clusters for MassEstimate::kLowerBound; for kSecondOrder,
//     which added about that, kDoubt sum_i e^{m_i} g_i / (1 + g_i); kDoubt sum_j e^{s_j} u_j over
//     tokens; and e^{m_i} of ignored clusters.
//   value_variance [num_queries]: squared length of the error made by the value means, relative to
//     e^{2 lse}: sum_j e^{2 s_j} kTokenVariance value_spread over tokens of the sketch zone that
//     were not chosen, and sum_i e^{2 m_i} (kClusterVariance V_i + kHiddenVariance (value_spread_i
//     + V_i) growth(x_i) / n_i) over clusters, V_i being the super-cluster's value spread. The
//     second part is for the single token that a wide cluster may hide: growth(x) = (1 + min(x, 16)
//     / 256)^256, about e^x up to x = 16, is that of a squared mass with the variance of logits.
inline constexpr float kDoubt = 0.19f;
inline constexpr float kTokenVariance = 3.5f;
inline constexpr float kClusterVariance = 13.0f;
inline constexpr float kHiddenVariance = 0.05f;

// The terms of value_variance without masses and growth, the last counted `caution` times. Infinite
// where spreads are.
constexpr float TokenVariance(const ClusterIndex& index, int64_t cluster) {
  return kTokenVariance * index.value_spreads[cluster];
}
constexpr float ClusterVariance(const ClusterIndex& index, int64_t super) {
  return kClusterVariance * index.super_value_spreads[super];
}
constexpr float HiddenVariance(const ClusterIndex& index, int64_t super, int64_t cluster,
                               float caution = 1.0f) {
  const float spreads = index.value_spreads[cluster] + index.super_value_spreads[super];
  return caution * kHiddenVariance * spreads / static_cast<float>(index.cluster_size(cluster));
}

struct EstimateClustersTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  MassEstimate mass = MassEstimate::kLowerBound;
  const Zone* zones = nullptr;
  const float* token_masses = nullptr;   // CPU only
  const float* token_offsets = nullptr;  // CPU only
  const float* token_logits = nullptr;   // GPU only
  int64_t token_stride = 0;
  const uint8_t* chosen = nullptr;
  const std::byte* const* chosen_values = nullptr;
  float* output = nullptr;
  float* lse = nullptr;
  int64_t* num_value_means = nullptr;
  int64_t* num_super_value_means = nullptr;
  float* missing_lse = nullptr;
  float* value_variance = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ESTIMATE_CLUSTERS_H_
