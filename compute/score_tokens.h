#ifndef WAVEKV_COMPUTE_SCORE_TOKENS_H_
#define WAVEKV_COMPUTE_SCORE_TOKENS_H_

#include <cstdint>

#include "compute/score_clusters.h"
#include "storage/cluster_index.h"

namespace wavekv {

// What tells which tokens a step with a target has to read (choose_tokens.h). Shapes: both
// [num_queries].
struct TokenRisk {
  const float* lses = nullptr;             // of all tokens, as far as they are known
  const float* inverse_squares = nullptr;  // of the lengths of outputs
};

// Logits of single tokens, estimated from their codes, and what they make of the tokens' ranks.
//
//   s_j = q . c_i + e_j              q . c_i from the log-mass of the token's cluster i
//   e_j = f_j (q' . (u_j - (2^b - 1) / 2)), f_j its factor, u_j its code of b bits an element, q'
//                                    the query in integers: q_k' = step round(q_k / step), of
//                                    which any four elements 4g to 4g + 3 have a sum of magnitudes
//                                    of at most 127: step = max_g sum |q_k| / 125
//   rank score r_j = s_j + kCodeNoise(b) |q| f_j: optimistic by the standard deviation of e_j
//   mass m_j = exp(s_j - o_h), o_h the greatest q . c_i of all clusters of the index, or 0 where it
//                                    is -infinity; exponents are at most 40
//   share p_j = sum_h exp(r_hj - log_totals[h]): its rank, the expected share of the attention
//                                    summed over the heads; exponents are at most 80
//   risk = max_h inverse_squares[h] v_i exp(2 (r_hj - lses[h])): the squared error, relative to the
//                                    squared length of the output, that the token causes while it
//                                    is not read, for the query that it hurts most; v_i the
//                                    cluster's TokenVariance, at most 1e36; exponents at most 80
//
// Shapes: queries [num_queries, head_dim_k] fp32, scaled and rotated; log_masses [num_queries,
// index->num_clusters] as ScoreClusters leaves them for `mass`, row h at h * log_masses_stride;
// clusters [num_clusters], numbers of clusters in the index, ascending; masses [num_queries, tokens
// of those clusters in their order], row h at h * stride, with offsets [num_queries] o_h; logits
// s_j shaped as masses, nullptr where they are not asked for; log_totals [num_queries], natural
// logarithms of what shares are parts of, -infinity for heads that do not count; shares and risks,
// one a token. log_totals and shares are nullptr where ranks are not asked for, risk and risks
// where there is no target. GPUs, where exponentials are no by-product of ranks, give logits and
// rank_scores instead of masses, offsets and shares.
//
// The integer products are exact, so logits are the same on every machine up to the rounding of
// q . c_i. Exponentials on a CPU have a relative error below 3e-6, beside that of their argument.
struct ScoreTokensTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  MassEstimate mass = MassEstimate::kLowerBound;
  const uint32_t* clusters = nullptr;
  int64_t num_clusters = 0;
  float* masses = nullptr;   // CPU only, always
  float* offsets = nullptr;  // as masses
  float* logits = nullptr;
  float* rank_scores = nullptr;  // GPU only
  int64_t stride = 0;
  const float* log_totals = nullptr;
  float* shares = nullptr;
  const TokenRisk* risk = nullptr;
  float* risks = nullptr;
};

// Integers of a query: four neighbours' magnitudes add up to at most so much before they are
// rounded, which may add half to each.
inline constexpr float kQueryGroupMax = 125.0f;

// Standard deviation of a code's product in units of |q| times the code's factor, for distances in
// random directions: sqrt(1 / cos^2 - 1) times the root mean square of a code's elements, cos the
// cosine of distance and code.
constexpr float CodeNoise(int code_bits) {
  return code_bits == 1 ? 0.378f : code_bits == 2 ? 0.40f : 0.32f;
}

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SCORE_TOKENS_H_
