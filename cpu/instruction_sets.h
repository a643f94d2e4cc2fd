// Which instruction sets the kernels use: the best that the machine has, unless a lesser one is
// chosen, to compare them or to test them.
#ifndef WAVEKV_CPU_INSTRUCTION_SETS_H_
#define WAVEKV_CPU_INSTRUCTION_SETS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "wavekv/export.h"

namespace wavekv {

// Those that this machine has and the kernels were built for, the least first; on x86-64 of "sse4",
// "avx2", "avx512", and "avx512_vnni" or, which includes it, "avx512_bf16".
WAVEKV_EXPORT std::vector<std::string> InstructionSets();

// Makes the kernels use no better set than this one of InstructionSets(), or the best for "".
// INVALID_ARGUMENT, naming those there are, for any other. Results differ between sets by rounding.
// Threads: for the whole process, other users of Highway in it included; call it before the first
// engine is made, or while no engine works.
WAVEKV_EXPORT absl::Status SetInstructionSet(absl::string_view name);

namespace cpu {

// Whether kernels of AVX-512 may use its products of bf16 pairs (AVX512_BF16).
bool UsesBf16Products();
// And its products of bytes and of words that are added to a sum (AVX512_VNNI).
bool UsesIntegerProducts();

}  // namespace cpu
}  // namespace wavekv

#endif  // WAVEKV_CPU_INSTRUCTION_SETS_H_
