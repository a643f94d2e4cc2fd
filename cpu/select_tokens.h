#ifndef WAVEKV_CPU_SELECT_TOKENS_H_
#define WAVEKV_CPU_SELECT_TOKENS_H_

#include "compute/select_tokens.h"

namespace wavekv::cpu {

// One worker's share of Backend::SelectTokens.
void SelectTokens(const SelectTokensTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_SELECT_TOKENS_H_
