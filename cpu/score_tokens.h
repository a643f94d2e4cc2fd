#ifndef WAVEKV_CPU_SCORE_TOKENS_H_
#define WAVEKV_CPU_SCORE_TOKENS_H_

#include "compute/score_tokens.h"

namespace wavekv::cpu {

// One worker's share of Backend::ScoreTokens.
void ScoreTokens(const ScoreTokensTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_SCORE_TOKENS_H_
