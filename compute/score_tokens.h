#ifndef WAVEKV_COMPUTE_SCORE_TOKENS_H_
#define WAVEKV_COMPUTE_SCORE_TOKENS_H_

#include <cstdint>

#include "compute/score_clusters.h"
#include "storage/cluster_index.h"

namespace wavekv {

// Logits of single tokens, estimated from their codes.
//
//   s_j = q . c_i + e_j              q . c_i from the log-mass of the token's cluster i
//   e_j = f_j (q' . (u_j - (2^b - 1) / 2)), f_j its factor, u_j its code of b bits an element, q'
//                                    the query in 8-bit integers: q_k' = step round(q_k / step),
//                                    step = max |q_k| / 127
//   rank score r_j = s_j + kCodeNoise(b) |q| f_j: optimistic by the standard deviation of e_j
//
// Shapes: queries [num_queries, head_dim_k] fp32, scaled and rotated; log_masses [num_queries,
// index->num_clusters] as ScoreClusters leaves them for `mass`, row h at h * log_masses_stride;
// clusters [num_clusters], numbers of clusters in the index, ascending; logits and rank_scores
// [num_queries, tokens of those clusters in their order], row h at h * stride. The integer products
// are exact, so results are the same on every machine up to the rounding of q . c_i.
struct ScoreTokensTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  MassEstimate mass = MassEstimate::kLowerBound;
  const uint32_t* clusters = nullptr;
  int64_t num_clusters = 0;
  float* logits = nullptr;
  float* rank_scores = nullptr;
  int64_t stride = 0;
};

// Standard deviation of a code's product in units of |q| times the code's factor, for distances in
// random directions: sqrt(1 / cos^2 - 1) times the root mean square of a code's elements, cos the
// cosine of distance and code.
constexpr float CodeNoise(int code_bits) {
  return code_bits == 1 ? 0.378f : code_bits == 2 ? 0.40f : 0.32f;
}

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SCORE_TOKENS_H_
