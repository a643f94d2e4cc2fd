// What the kernels of a step share.
#ifndef WAVEKV_CUDA_STEP_PARTS_H_
#define WAVEKV_CUDA_STEP_PARTS_H_

#include "cuda/kernel.h"
#include "cuda/step.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

WAVEKV_DEVICE int64_t Resolve(const StepBudget& budget, int64_t num_tokens) {
  if (budget.tokens >= 0) return Min(budget.tokens, num_tokens);
  if (budget.ratio >= 1.0) return num_tokens;
  const double wanted = budget.ratio * static_cast<double>(num_tokens);
  auto tokens = static_cast<int64_t>(wanted);
  if (static_cast<double>(tokens) < wanted) ++tokens;
  return Min(num_tokens, tokens);
}

WAVEKV_DEVICE int64_t SelectedTokens(const StepOptions& options, int64_t sealed_tokens) {
  const int64_t retrieval = Resolve(options.retrieval, sealed_tokens);
  if (options.zones != Zones::kSketch) return retrieval;
  return Max(retrieval, Resolve(options.sketch, sealed_tokens));
}

WAVEKV_DEVICE int64_t VisibleEnd(const StepSequence& sequence, bool causal, int64_t row) {
  if (!causal) return sequence.length;
  return Max(sequence.length - sequence.num_rows + 1 + row, int64_t{0});
}

// The last of `count` whose first(i) is at most `at`.
template <typename First>
WAVEKV_DEVICE int64_t FindLast(int64_t count, int64_t at, const First& first) {
  int64_t low = 0;
  for (int64_t high = count; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    (first(middle) <= at ? low : high) = middle;
  }
  return low;
}

// Far from where products of fp32 end.
inline constexpr float kVarianceMax = 1e36f;

inline unsigned Blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_STEP_PARTS_H_
