#include "cpu/select_clusters.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/rank_cut.h"
#include "cpu/risk_cut.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

void SumProbabilities(const SelectClustersTask& task) {
  std::fill_n(task.probabilities, task.num_clusters, 0.0f);
  for (int h = 0; h < task.num_queries; ++h) {
    const float* scores = task.scores + h * task.stride;
    const float max = Greatest(scores, task.num_clusters);
    if (task.log_totals != nullptr) task.log_totals[h] = max;
    if (max == -std::numeric_limits<float>::infinity()) continue;
    const float mass = MassAbove(max, scores, task.num_clusters);
    if (task.log_totals != nullptr) task.log_totals[h] = max + std::log(mass);
    AddShares(scores, task.num_clusters, max, mass, task.probabilities);
  }
  // What has a score at all ranks before what has none.
  // Nearly all have a probability: all at once, which compilers turn into vectors.
  constexpr float kLeast = std::numeric_limits<float>::min();
  bool all_have = true;
  for (int64_t i = 0; i < task.num_clusters; ++i) all_have &= task.probabilities[i] >= kLeast;
  for (int64_t i = 0; i < task.num_clusters && !all_have; ++i) {
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

HWY_EXPORT(SumProbabilities);

void SelectClusters(const SelectClustersTask& task) {
  HWY_DYNAMIC_DISPATCH(SumProbabilities)(task);
  const float* p = task.probabilities;
  const int64_t count = task.num_clusters;

  int64_t num_retrieved = 0;
  RankCut<int64_t> budget(p, count, task.token_budget, [&](int64_t i) { return task.sizes[i]; });
  RiskCut risk(task.risk, task.num_queries, p, count);
  for (int64_t i = 0; i < count; ++i) {
    // Both are asked about every cluster.
    const bool risky = risk.Includes(i, RankBits(p[i]));
    const bool retrieved = budget.Includes(RankBits(p[i]), task.sizes[i]) && risky;
    task.zones[i] = retrieved ? task.first_zone : task.last_zone;
    task.retrieved[num_retrieved] = static_cast<uint32_t>(i);
    num_retrieved += retrieved ? 1 : 0;
  }
  *task.num_retrieved = num_retrieved;
  if (task.ranked) {
    std::sort(task.retrieved, task.retrieved + num_retrieved,
              [p](uint32_t a, uint32_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
  }
  if (task.num_estimation <= 0) return;

  // The retrieved are a prefix of the ranking, so the estimated reach from its end to this cut.
  const int64_t num_answered = num_retrieved + std::min(task.num_estimation, count);
  RankCut<int64_t> estimation(p, count, num_answered, [](int64_t) { return 1; });
  for (int64_t i = 0; i < count; ++i) {
    const bool included = estimation.Includes(RankBits(p[i]), 1);
    if (included && p[i] > 0.0f && task.zones[i] != task.first_zone) {
      task.zones[i] = Zone::kEstimation;
    }
  }
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
