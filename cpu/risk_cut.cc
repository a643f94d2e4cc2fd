#include "cpu/risk_cut.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/risk_cut.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Risks of one vector of items at query h; log_masses are given.
HWY_INLINE V RisksOf(const RiskLimit& limit, int h, V log_masses, V variances, V hidden_variances,
                     V key_spreads) {
  const Full d;
  const V most = hn::Set(d, 80.0f), inverse = hn::Set(d, limit.inverse_squares[h]);
  const V log_share = hn::Sub(log_masses, hn::Set(d, limit.lses[h]));
  const V log_square = hn::Add(log_share, log_share);
  V risk = hn::Mul(Exp(d, hn::Min(log_square, most)), hn::Mul(variances, inverse));
  if (limit.hidden_variances != nullptr) {
    const V x = hn::Mul(hn::Set(d, limit.logit_spreads[h]), key_spreads);
    const V square = Exp(d, hn::Min(hn::Add(log_square, x), most));
    risk = hn::MulAdd(square, hn::Mul(hidden_variances, inverse), risk);
  }
  return hn::Min(risk, hn::Set(d, std::numeric_limits<float>::max()));
}

void ComputeRisks(const RiskLimit& limit, int num_queries, int64_t count, float* risks) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += n) {
    const auto load = [&](const float* from) HWY_ATTR {
      return from == nullptr ? hn::Zero(d) : LoadSome(from, i, count);
    };
    const V variances = load(limit.variances), hidden = load(limit.hidden_variances),
            key_spreads = load(limit.key_spreads);
    V greatest = hn::Zero(d);
    for (int h = 0; h < num_queries; ++h) {
      const V log_masses = load(limit.log_masses + h * limit.stride);
      greatest = hn::Max(greatest, RisksOf(limit, h, log_masses, variances, hidden, key_spreads));
    }
    alignas(64) float all[hn::MaxLanes(Full())];
    hn::Store(greatest, d, all);
    std::copy_n(all, std::min(count - i, n), risks + i);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {
namespace {

HWY_EXPORT(ComputeRisks);

absl::Span<const float> Risks(const RiskLimit* limit, int num_queries, int64_t count) {
  if (limit == nullptr) return {};
  // Grows to the longest ranking that the thread has seen.
  thread_local std::vector<float> risks;
  if (static_cast<int64_t>(risks.size()) < count) risks.resize(count);
  HWY_DYNAMIC_DISPATCH(ComputeRisks)(*limit, num_queries, count, risks.data());
  return absl::MakeConstSpan(risks.data(), count);
}

double MustBeRead(absl::Span<const float> risks, double limit) {
  double sum = 0.0;
  for (const float risk : risks) sum += risk;
  // Numbers that nothing can be said of are read.
  return std::isnan(sum) ? std::numeric_limits<double>::infinity() : sum - limit;
}

}  // namespace

RiskCut::RiskCut(const RiskLimit* limit, int num_queries, const float* probabilities, int64_t count)
    : RiskCut(Risks(limit, num_queries, count), limit == nullptr ? 0.0 : limit->limit,
              probabilities) {}

RiskCut::RiskCut(absl::Span<const float> risks, double limit, const float* probabilities)
    : risks_(risks),
      cut_([&](int64_t i) { return RankBits(probabilities[i]); },
           static_cast<int64_t>(risks.size()), MustBeRead(risks, limit),
           [&](int64_t i) { return double{risks[i]}; }) {}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
