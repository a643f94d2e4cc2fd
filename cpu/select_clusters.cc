#include "cpu/select_clusters.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/candidates.h"
#include "cpu/rank_cut.h"
#include "cpu/risk_cut.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// weights = e^{score - max}; returns their sum. Rows have room for a vector behind the last.
float Weigh(const float* scores, int64_t count, float max, float* weights) {
  const Full d;
  const V offset = hn::Set(d, max);
  V sums = hn::Zero(d);
  ForEachVector(scores, count, [&](int64_t i, V score) HWY_ATTR {
    const V weight = Exp(d, hn::Sub(score, offset));
    hn::StoreU(weight, d, weights + i);
    sums = hn::Add(sums, weight);
  });
  return hn::GetLane(hn::SumOfLanes(d, sums));
}

void SumProbabilities(const SelectClustersTask& task) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = task.num_clusters;
  // Two rows, which grow to the most clusters that the thread has seen.
  constexpr int64_t kVectorMax = 16;
  thread_local std::vector<float> rows;
  const int64_t row = count + kVectorMax;
  if (static_cast<int64_t>(rows.size()) < 2 * row) rows.resize(2 * row);
  float* const weights = rows.data();
  float* const sums = rows.data() + row;
  std::fill_n(sums, count, 0.0f);
  for (int h = 0; h < task.num_queries; ++h) {
    const float* scores = task.scores + h * task.stride;
    const float max = Greatest(scores, count);
    if (task.log_totals != nullptr) task.log_totals[h] = max;
    if (max == -std::numeric_limits<float>::infinity()) continue;
    const float mass = Weigh(scores, count, max, weights);
    if (task.log_totals != nullptr) task.log_totals[h] = max + std::log(mass);
    const V inverse = hn::Set(d, 1.0f / mass);
    for (int64_t i = 0; i < count; i += n) {
      const V sum = hn::MulAdd(hn::LoadU(d, weights + i), inverse, hn::LoadU(d, sums + i));
      hn::StoreU(sum, d, sums + i);
    }
  }
  std::copy_n(sums, count, task.probabilities);
  // What has a score at all ranks before what has none.
  constexpr float kLeast = std::numeric_limits<float>::min();
  V least = hn::Set(d, kLeast);
  int64_t i = 0;
  for (; i + n <= count; i += n) least = hn::Min(least, hn::LoadU(d, sums + i));
  // Nearly always all have a probability.
  if (hn::GetLane(hn::MinOfLanes(d, least)) < kLeast) i = 0;
  for (; i < count; ++i) {
    if (task.probabilities[i] >= kLeast) continue;
    for (int h = 0; h < task.num_queries; ++h) {
      if (task.scores[h * task.stride + i] == -std::numeric_limits<float>::infinity()) continue;
      task.probabilities[i] = kLeast;
      break;
    }
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

namespace {

HWY_EXPORT(SumProbabilities);

// About how many clusters hold so many tokens, by a sample.
int64_t ClustersOf(const SelectClustersTask& task, int64_t tokens) {
  constexpr int64_t kSample = 256;
  const int64_t step = std::max<int64_t>(1, task.num_clusters / kSample);
  int64_t sampled = 0, clusters = 0;
  for (int64_t i = 0; i < task.num_clusters; i += step, ++clusters) sampled += task.sizes[i];
  if (sampled == 0) return task.num_clusters;
  const double share = static_cast<double>(tokens) / static_cast<double>(sampled);
  return static_cast<int64_t>(
      std::min(static_cast<double>(task.num_clusters), share * static_cast<double>(clusters)));
}

// The clusters of the first zone, which are listed and marked; all others are of the last zone.
void SelectFirstZone(const SelectClustersTask& task) {
  const float* const p = task.probabilities;
  const int64_t count = task.num_clusters;
  std::fill_n(task.zones, count, task.last_zone);
  *task.num_retrieved = 0;
  if (task.token_budget <= 0) return;
  int64_t num_retrieved = 0;
  const auto add = [&](uint32_t cluster, bool retrieved) {
    task.zones[cluster] = retrieved ? task.first_zone : task.last_zone;
    task.retrieved[num_retrieved] = cluster;
    num_retrieved += retrieved ? 1 : 0;
  };
  if (task.risk != nullptr) {
    const auto rank = [p](int64_t i) { return RankBits(p[i]); };
    RankCut<int64_t> budget(rank, count, task.token_budget,
                            [&](int64_t i) { return task.sizes[i]; });
    RiskCut risk(task.risk, task.num_queries, p, count);
    for (int64_t i = 0; i < count; ++i) {
      // Both are asked about every cluster.
      const bool risky = risk.Includes(i, rank(i));
      add(static_cast<uint32_t>(i), budget.Includes(rank(i), task.sizes[i]) && risky);
    }
  } else {
    thread_local Candidates candidates;
    const auto size = [&](int64_t i) { return int64_t{task.sizes[candidates.item(i)]}; };
    const auto list = [&](int64_t wanted) {
      candidates.List(p, count, wanted);
      int64_t tokens = 0;
      for (int64_t i = 0; i < candidates.size(); ++i) tokens += size(i);
      return tokens;
    };
    if (list(ClustersOf(task, task.token_budget)) < task.token_budget) {
      candidates.ListAll(p, count);
    }
    RankCut<int64_t> budget([&](int64_t i) { return candidates.rank(i); }, candidates.size(),
                            task.token_budget, size);
    for (int64_t i = 0; i < candidates.size(); ++i) {
      add(candidates.item(i), budget.Includes(candidates.rank(i), size(i)));
    }
  }
  *task.num_retrieved = num_retrieved;
}

}  // namespace

void SelectClusters(const SelectClustersTask& task) {
  HWY_DYNAMIC_DISPATCH(SumProbabilities)(task);
  SelectFirstZone(task);
  const float* const p = task.probabilities;
  const int64_t count = task.num_clusters;
  const int64_t num_retrieved = *task.num_retrieved;
  if (task.ranked) {
    std::sort(task.retrieved, task.retrieved + num_retrieved,
              [p](uint32_t a, uint32_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
  }
  if (task.num_estimation <= 0) return;

  // The retrieved are a prefix of the ranking, so the estimated reach from its end to this cut.
  const int64_t num_answered = num_retrieved + std::min(task.num_estimation, count);
  const auto rank = [p](int64_t i) { return RankBits(p[i]); };
  RankCut<int64_t> estimation(rank, count, num_answered, [](int64_t) { return 1; });
  for (int64_t i = 0; i < count; ++i) {
    const bool included = estimation.Includes(rank(i), 1);
    if (included && p[i] > 0.0f && task.zones[i] != task.first_zone) {
      task.zones[i] = Zone::kEstimation;
    }
  }
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
