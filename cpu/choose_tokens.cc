#include "cpu/choose_tokens.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "cpu/rank_cut.h"
#include "cpu/risk_cut.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/choose_tokens.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Lists the tokens whose rank is at least `least`, and their ranks, in their order; returns how
// many. Lists have room for num_tokens and one vector.
int64_t ListCandidates(const float* shares, int64_t num_tokens, uint32_t least, uint32_t* tokens,
                       uint32_t* ranks) {
  const hn::ScalableTag<uint32_t> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const hn::RebindToSigned<decltype(d)> di;
  const auto below = hn::Set(di, static_cast<int32_t>(least) - 1);
  const auto sign = hn::Set(d, 0x7fffffffu);
  const auto* bits = reinterpret_cast<const uint32_t*>(shares);
  int64_t count = 0, i = 0;
  // Compressed in registers: some machines take long to compress to memory.
  for (; i + n <= num_tokens; i += n) {
    const auto rank = hn::And(hn::LoadU(d, bits + i), sign);
    const auto is_candidate = hn::RebindMask(d, hn::Gt(hn::BitCast(di, rank), below));
    hn::StoreU(hn::Compress(rank, is_candidate), d, ranks + count);
    hn::StoreU(hn::Compress(hn::Iota(d, static_cast<uint32_t>(i)), is_candidate), d,
               tokens + count);
    count += static_cast<int64_t>(hn::CountTrue(d, is_candidate));
  }
  for (; i < num_tokens; ++i) {
    ranks[count] = bits[i] & 0x7fffffffu;
    tokens[count] = static_cast<uint32_t>(i);
    count += ranks[count] >= least ? 1 : 0;
  }
  return count;
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {
namespace {

HWY_EXPORT(ListCandidates);

void ChooseByRisk(const ChooseTokensTask& task) {
  RankCut<int64_t> budget(task.shares, task.num_tokens, task.token_budget,
                          [](int64_t) { return 1; });
  RiskCut risk(absl::MakeConstSpan(task.risks, task.num_tokens), task.risk_limit, task.shares);
  int64_t num_chosen = 0;
  for (int64_t i = 0; i < task.num_tokens; ++i) {
    const uint32_t bits = RankBits(task.shares[i]);
    // Both are asked about every token.
    const bool risky = risk.Includes(i, bits);
    const bool chosen = budget.Includes(bits, 1) && risky;
    task.chosen[i] = chosen ? 1 : 0;
    num_chosen += chosen ? 1 : 0;
  }
  *task.num_chosen = num_chosen;
}

// Also of what is no number, whose sign says nothing.
uint32_t Rank(float share) { return RankBits(share) & 0x7fffffffu; }

// Buffers, grown to the most tokens that the thread has seen.
struct Candidates {
  std::vector<uint32_t> tokens, ranks, sorted;
};

// A rank that, by a sample, half as many again as `count` tokens reach; 0 where a sample says
// little.
uint32_t LikelyRank(const ChooseTokensTask& task, int64_t count, std::vector<uint32_t>& sample) {
  constexpr int64_t kSample = 1024;
  const int64_t step = task.num_tokens / kSample;
  if (step < 4) return 0;
  const int64_t size = task.num_tokens / step;
  const int64_t at = size * count * 3 / (2 * task.num_tokens) + 16;
  if (at >= size) return 0;
  for (int64_t i = 0; i < size; ++i) sample[i] = Rank(task.shares[i * step]);
  std::nth_element(sample.begin(), sample.begin() + at, sample.begin() + size, std::greater<>());
  return sample[at];
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
  constexpr int64_t kVectorMax = 64;
  if (const auto room = static_cast<size_t>(task.num_tokens + kVectorMax);
      candidates.tokens.size() < room) {
    for (auto* list : {&candidates.tokens, &candidates.ranks, &candidates.sorted}) {
      list->resize(room);
    }
  }
  auto& [tokens, ranks, sorted] = candidates;
  const auto list = [&](uint32_t least) {
    return HWY_DYNAMIC_DISPATCH(ListCandidates)(task.shares, task.num_tokens, least, tokens.data(),
                                                ranks.data());
  };
  int64_t num_candidates = list(LikelyRank(task, count, sorted));
  if (num_candidates < count) num_candidates = list(0);

  const auto cut = sorted.begin() + (count - 1);
  std::copy_n(ranks.begin(), num_candidates, sorted.begin());
  std::nth_element(sorted.begin(), cut, sorted.begin() + num_candidates, std::greater<>());
  // Of those that equal the last, only the first.
  int64_t num_equal = 1 + std::count(sorted.begin(), cut, *cut);
  std::fill_n(task.chosen, task.num_tokens, 0);
  for (int64_t i = 0; i < num_candidates; ++i) {
    if (ranks[i] < *cut || (ranks[i] == *cut && num_equal-- <= 0)) continue;
    task.chosen[tokens[i]] = 1;
  }
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
