#include "tests/testing/naive_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace wavekv::testing {

NaiveAttentionState NaiveAttention(const NaiveAttentionInput& input) {
  const int64_t num_queries = input.queries.size() / input.head_dim_k;
  const int64_t num_tokens = input.keys.size() / input.head_dim_k;
  const auto visible = [&](int64_t query, int64_t token) {
    const int64_t position = input.positions.empty() ? token : input.positions[token];
    return input.visible_end.empty() || position < input.visible_end[query];
  };
  const auto logit = [&](int64_t query, int64_t token) {
    double dot = 0.0;
    for (int d = 0; d < input.head_dim_k; ++d) {
      dot += static_cast<double>(input.queries[query * input.head_dim_k + d]) *
             input.keys[token * input.head_dim_k + d];
    }
    return dot * input.scale;
  };

  NaiveAttentionState state;
  state.output.assign(num_queries * input.head_dim_v, 0.0);
  state.lse.assign(num_queries, -std::numeric_limits<double>::infinity());
  for (int64_t query = 0; query < num_queries; ++query) {
    std::vector<double> logits(num_tokens, -std::numeric_limits<double>::infinity());
    for (int64_t token = 0; token < num_tokens; ++token) {
      if (visible(query, token)) logits[token] = logit(query, token);
    }
    double max = -std::numeric_limits<double>::infinity();
    for (double s : logits) max = std::max(max, s);
    if (std::isinf(max)) continue;
    double mass = 0.0;
    for (double s : logits) mass += std::exp(s - max);
    for (int64_t token = 0; token < num_tokens; ++token) {
      const double weight = std::exp(logits[token] - max) / mass;
      for (int d = 0; d < input.head_dim_v; ++d) {
        state.output[query * input.head_dim_v + d] +=
            weight * input.values[token * input.head_dim_v + d];
      }
    }
    state.lse[query] = max + std::log(mass);
  }
  return state;
}

}  // namespace wavekv::testing
