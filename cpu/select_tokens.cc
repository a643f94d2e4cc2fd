#include "cpu/select_tokens.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/rank_cut.h"
#include "cpu/risk_cut.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select_tokens.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// `others`: log-masses of what is neither in the sketch zone nor attended in whole clusters, one
// row a query.
void SumShares(const SelectTokensTask& task, const float* others, int64_t num_others) {
  std::fill_n(task.probabilities, task.num_tokens, 0.0f);
  for (int h = 0; h < task.num_queries; ++h, others += num_others) {
    const float* scores = task.rank_scores + h * task.stride;
    const float max = std::max(Greatest(scores, task.num_tokens), Greatest(others, num_others));
    if (max == -std::numeric_limits<float>::infinity()) continue;
    const float mass = MassAbove(max, scores, task.num_tokens) + MassAbove(max, others, num_others);
    AddShares(scores, task.num_tokens, max, mass, task.probabilities);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(SumShares);

void SelectTokens(const SelectTokensTask& task) {
  // Grows to the longest row that the thread has seen.
  thread_local std::vector<float> others;
  others.clear();
  for (int h = 0; h < task.num_queries; ++h) {
    const float* log_masses = task.log_masses + h * task.log_masses_stride;
    for (int64_t i = 0; i < task.num_clusters; ++i) {
      if (task.zones[i] == Zone::kEstimation || task.zones[i] == Zone::kRemainder) {
        others.push_back(log_masses[i]);
      }
    }
  }
  const auto num_others = static_cast<int64_t>(others.size()) / std::max(task.num_queries, 1);
  HWY_DYNAMIC_DISPATCH(SumShares)(task, others.data(), num_others);

  RankCut<int64_t> budget(task.probabilities, task.num_tokens, task.token_budget,
                          [](int64_t) { return 1; });
  RiskCut risk(task.risk, task.num_queries, task.probabilities, task.num_tokens);
  int64_t num_chosen = 0;
  for (int64_t i = 0; i < task.num_tokens; ++i) {
    const uint32_t bits = RankBits(task.probabilities[i]);
    // Both are asked about every token.
    const bool risky = risk.Includes(i, bits);
    const bool chosen = budget.Includes(bits, 1) && risky;
    task.chosen[i] = chosen ? 1 : 0;
    num_chosen += chosen ? 1 : 0;
  }
  *task.num_chosen = num_chosen;
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
