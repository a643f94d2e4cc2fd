#ifndef WAVEKV_COMPUTE_CHOOSE_TOKENS_H_
#define WAVEKV_COMPUTE_CHOOSE_TOKENS_H_

#include <cstdint>

namespace wavekv {

// Chooses the tokens of the sketch zone that are attended exactly, for one GQA group: the first
// token_budget by share or, where risks are given, fewer: until those of the others add up to at
// most risk_limit. Ties go to the lower number.
//
// Shapes: shares and risks [num_tokens], as ScoreTokens leaves them, no share NaN or negative;
// risks == nullptr: there is no limit; chosen [num_tokens], 1 or 0. Deterministic.
struct ChooseTokensTask {
  const float* shares = nullptr;
  const float* risks = nullptr;
  double risk_limit = 0.0;
  int64_t num_tokens = 0;
  int64_t token_budget = 0;
  uint8_t* chosen = nullptr;
  int64_t* num_chosen = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_CHOOSE_TOKENS_H_
