#include "cpu/merge_states.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace wavekv::cpu {
namespace {

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

}  // namespace

void MergeStates(const MergeStatesTask& task) {
  const int dim = task.head_dim_v;
  for (int64_t i = 0; i < task.num_queries; ++i) {
    float* output = task.output + i * dim;
    const float lse = MergeLse(task.states, i);
    for (size_t s = 0; s < task.states.size(); ++s) {
      const float* part = task.states[s].output + i * dim;
      const float weight = lse == -kInfinity ? 0.0f : std::exp(task.states[s].lse[i] - lse);
      for (int d = 0; d < dim; ++d) output[d] = weight * part[d] + (s == 0 ? 0.0f : output[d]);
    }
    if (task.states.empty()) std::fill_n(output, dim, 0.0f);
    task.lse[i] = lse;
  }
}

}  // namespace wavekv::cpu
