#include "cpu/choose_tokens.h"

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"
#include "cpu/candidates.h"
#include "cpu/rank_cut.h"
#include "cpu/risk_cut.h"

namespace wavekv::cpu {
namespace {

void ChooseByRisk(const ChooseTokensTask& task) {
  const auto rank = [&](int64_t i) { return RankBits(task.shares[i]); };
  RankCut<int64_t> budget(rank, task.num_tokens, task.token_budget, [](int64_t) { return 1; });
  RiskCut risk(absl::MakeConstSpan(task.risks, task.num_tokens), task.risk_limit, task.shares);
  int64_t num_chosen = 0;
  for (int64_t i = 0; i < task.num_tokens; ++i) {
    // Both are asked about every token.
    const bool risky = risk.Includes(i, rank(i));
    const bool chosen = budget.Includes(rank(i), 1) && risky;
    task.chosen[i] = chosen ? 1 : 0;
    num_chosen += chosen ? 1 : 0;
  }
  *task.num_chosen = num_chosen;
}

}  // namespace

void ChooseTokens(const ChooseTokensTask& task) {
  if (task.risks != nullptr) return ChooseByRisk(task);
  const int64_t count = std::min(task.token_budget, task.num_tokens);
  *task.num_chosen = std::max<int64_t>(count, 0);
  if (count <= 0 || count == task.num_tokens) {
    std::fill_n(task.chosen, task.num_tokens, count <= 0 ? 0 : 1);
    return;
  }
  thread_local Candidates candidates;
  candidates.List(task.shares, task.num_tokens, count);
  if (candidates.size() < count) candidates.ListAll(task.shares, task.num_tokens);
  const auto rank = [&](int64_t i) { return candidates.rank(i); };
  RankCut<int64_t> budget(rank, candidates.size(), count, [](int64_t) { return 1; });
  std::fill_n(task.chosen, task.num_tokens, 0);
  for (int64_t i = 0; i < candidates.size(); ++i) {
    // Without a branch, which would be hard to foretell.
    task.chosen[candidates.item(i)] = budget.Includes(rank(i), 1) ? 1 : 0;
  }
}

}  // namespace wavekv::cpu
