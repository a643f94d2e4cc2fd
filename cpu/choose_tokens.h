#ifndef WAVEKV_CPU_CHOOSE_TOKENS_H_
#define WAVEKV_CPU_CHOOSE_TOKENS_H_

#include "compute/choose_tokens.h"

namespace wavekv::cpu {

// One worker's share of Backend::ChooseTokens.
void ChooseTokens(const ChooseTokensTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_CHOOSE_TOKENS_H_
