#include "cpu/select_clusters.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

using Full = hn::ScalableTag<float>;
using V = hn::Vec<Full>;

// Calls visit(i, vector of masses[i, i + N)); the last vector is filled up with -infinity.
template <class Visit>
HWY_INLINE void ForEachVector(const float* masses, int64_t count, const Visit& visit) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + n <= count; i += n) visit(i, hn::LoadU(d, masses + i));
  if (i == count) return;
  alignas(64) float rest[hn::MaxLanes(Full())];
  std::fill_n(rest, n, -std::numeric_limits<float>::infinity());
  std::copy(masses + i, masses + count, rest);
  visit(i, hn::Load(d, rest));
}

// probabilities += softmax(masses).
void AddSoftmax(const float* masses, int64_t count, float* probabilities) {
  const Full d;
  V greatest = hn::Set(d, -std::numeric_limits<float>::infinity());
  ForEachVector(masses, count,
                [&](int64_t, V mass) HWY_ATTR { greatest = hn::Max(greatest, mass); });
  const V max = hn::MaxOfLanes(d, greatest);
  if (hn::GetLane(max) == -std::numeric_limits<float>::infinity()) return;

  V sums = hn::Zero(d);
  ForEachVector(masses, count, [&](int64_t, V mass) HWY_ATTR {
    sums = hn::Add(sums, Exp(d, hn::Sub(mass, max)));
  });
  const V inverse = hn::Div(hn::Set(d, 1.0f), hn::SumOfLanes(d, sums));
  ForEachVector(masses, count, [&](int64_t i, V mass) HWY_ATTR {
    const V share = hn::Mul(inverse, Exp(d, hn::Sub(mass, max)));
    const auto n = static_cast<int64_t>(hn::Lanes(d));
    if (i + n <= count) {
      hn::StoreU(hn::Add(hn::LoadU(d, probabilities + i), share), d, probabilities + i);
    } else {
      alignas(64) float rest[hn::MaxLanes(Full())];
      hn::Store(share, d, rest);
      for (int64_t j = i; j < count; ++j) probabilities[j] += rest[j - i];
    }
  });
}

void SumProbabilities(const SelectClustersTask& task) {
  std::fill_n(task.probabilities, task.num_clusters, 0.0f);
  for (int h = 0; h < task.num_queries; ++h) {
    AddSoftmax(task.scores + h * task.stride, task.num_clusters, task.probabilities);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {
namespace {

HWY_EXPORT(SumProbabilities);

// The bits of numbers that are not negative are ordered as the numbers are.
uint32_t Bits(float probability) { return std::bit_cast<uint32_t>(probability); }

// Cuts the ranking: before the cut stand the clusters of greater bits, and of those with equal
// bits, in index order, as many as it takes to use up `left`.
class Cut {
 public:
  // The shortest prefix of the ranking whose weights (at least 1 each) reach `target`.
  template <typename Weight>
  Cut(const float* probabilities, int64_t count, int64_t target, const Weight& weight)
      : left_(target) {
    if (target <= 0) {
      bits_ = std::numeric_limits<uint32_t>::max();
      return;
    }
    // The sign bit is 0, so 31 bits: 11, then 10, then 10, each time among those that agree so far.
    for (auto [shift, width] : {std::pair{20, 11}, {10, 10}, {0, 10}}) {
      int64_t weights[1 << 11] = {};
      const uint32_t mask = (1u << width) - 1;
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = Bits(probabilities[i]);
        // 64 bits, for the first shift is by 31.
        if (uint64_t{bits ^ bits_} >> (shift + width) != 0) continue;
        weights[bits >> shift & mask] += weight(i);
      }
      uint32_t digit = mask;
      for (; digit > 0 && weights[digit] < left_; --digit) left_ -= weights[digit];
      bits_ |= digit << shift;
    }
  }

  // To be asked once for every cluster, in index order.
  bool Includes(uint32_t bits, int64_t weight) {
    if (bits != bits_) return bits > bits_;
    if (left_ <= 0) return false;
    left_ -= weight;
    return true;
  }

 private:
  uint32_t bits_ = 0;
  int64_t left_;
};

}  // namespace

void SelectClusters(const SelectClustersTask& task) {
  HWY_DYNAMIC_DISPATCH(SumProbabilities)(task);
  const float* p = task.probabilities;
  const int64_t count = task.num_clusters;

  int64_t num_retrieved = 0;
  Cut retrieval(p, count, task.token_budget, [&](int64_t i) { return int64_t{task.sizes[i]}; });
  for (int64_t i = 0; i < count; ++i) {
    const bool retrieved = retrieval.Includes(Bits(p[i]), task.sizes[i]);
    task.zones[i] = retrieved ? Zone::kRetrieval : Zone::kRemainder;
    task.retrieved[num_retrieved] = static_cast<uint32_t>(i);
    num_retrieved += retrieved ? 1 : 0;
  }
  *task.num_retrieved = num_retrieved;
  std::sort(task.retrieved, task.retrieved + num_retrieved,
            [p](uint32_t a, uint32_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
  if (task.num_estimation <= 0) return;

  // The retrieved are a prefix of the ranking, so the estimated reach from its end to this cut.
  const int64_t num_answered = num_retrieved + std::min(task.num_estimation, count);
  Cut estimation(p, count, num_answered, [](int64_t) { return 1; });
  for (int64_t i = 0; i < count; ++i) {
    if (estimation.Includes(Bits(p[i]), 1) && task.zones[i] != Zone::kRetrieval) {
      task.zones[i] = Zone::kEstimation;
    }
  }
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
