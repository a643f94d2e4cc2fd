#include "cpu/merge_states.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge_states.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ln sum_s e^{lse_s} of one query.
float MergeLse(absl::Span<const AttentionState> states, int64_t query) {
  float max = -kInfinity;
  for (const AttentionState& state : states) max = std::max(max, state.lse[query]);
  if (max == -kInfinity) return max;
  float sum = 0.0f;
  for (const AttentionState& state : states) sum += std::exp(state.lse[query] - max);
  return max + std::log(sum);
}

// output += weight * part, or = when it is the first.
void AddPart(const float* part, float weight, int dim, bool first, float* output) {
  const hn::CappedTag<float, 8> d;  // divides every dim
  const auto w = hn::Set(d, weight);
  for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
    const auto sum = first ? hn::Zero(d) : hn::LoadU(d, output + i);
    hn::StoreU(hn::MulAdd(w, hn::LoadU(d, part + i), sum), d, output + i);
  }
}

void MergeStatesOf(const MergeStatesTask& task) {
  const int dim = task.head_dim_v;
  for (int64_t q = 0; q < task.num_queries; ++q) {
    float* output = task.output + q * dim;
    const float lse = MergeLse(task.states, q);
    if (lse == -kInfinity) std::fill_n(output, dim, 0.0f);
    for (const AttentionState& state : task.states) {
      if (lse == -kInfinity) break;
      AddPart(state.output + q * dim, std::exp(state.lse[q] - lse), dim,
              &state == task.states.begin(), output);
    }
    // Last: it may stand where the first state's was read.
    task.lse[q] = lse;
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(MergeStatesOf);

void MergeStates(const MergeStatesTask& task) { HWY_DYNAMIC_DISPATCH(MergeStatesOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
