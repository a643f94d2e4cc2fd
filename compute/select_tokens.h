#ifndef WAVEKV_COMPUTE_SELECT_TOKENS_H_
#define WAVEKV_COMPUTE_SELECT_TOKENS_H_

#include <cstdint>

#include "compute/select_clusters.h"

namespace wavekv {

// What GPUs do instead of ChooseTokens (choose_tokens.h), from rank scores: there, shares of tokens
// are no by-product of their scores.
//
// A token's rank is its expected share of the attention, summed over the group's heads:
//   p_j = sum_h exp(r_hj - ln Z_h), Z_h the mass of the sketch zone's tokens by rank score, and of
//   all other unretrieved clusters by log-mass.
// The first token_budget tokens by rank are chosen or, where `risk` is given (select_clusters.h),
// fewer: until its limit is met. Ties go to the lower number.
//
// Shapes: rank_scores [num_queries, num_tokens], row h at h * stride; log_masses [num_queries,
// num_clusters] alike; zones [num_clusters]; probabilities [num_tokens]; chosen [num_tokens], 1
// or 0. Deterministic.
struct SelectTokensTask {
  const float* rank_scores = nullptr;
  int64_t stride = 0;
  int num_queries = 0;
  int64_t num_tokens = 0;
  const float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
  const Zone* zones = nullptr;
  int64_t num_clusters = 0;
  int64_t token_budget = 0;
  const RiskLimit* risk = nullptr;
  float* probabilities = nullptr;
  uint8_t* chosen = nullptr;
  int64_t* num_chosen = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SELECT_TOKENS_H_
