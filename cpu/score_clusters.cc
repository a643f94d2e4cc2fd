#include "cpu/score_clusters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the centroids, and centroids that share a tile.
constexpr int kQueries = 16;
constexpr int kTile = 64;

// Addresses of consecutive centroids; the last of all stands in for those past the end.
void AddressCentroids(const ClusterIndex& index, int64_t first, const std::byte** rows) {
  const int64_t bytes = index.shape.head_dim_k * DTypeBytes(index.statistics_dtype);
  for (int64_t i = 0; i < kTile; ++i) {
    rows[i] = index.centroids + std::min(first + i, index.num_clusters - 1) * bytes;
  }
}

// Statistics of the clusters of a tile; those past its end have size 1 and no spread.
struct TileStatistics {
  TileStatistics(const ClusterIndex& index, int64_t first, int count) {
    std::copy_n(index.log_sizes + first, count, log_sizes);
    std::copy_n(index.key_spreads + first, count, key_spreads);
  }

  alignas(64) float log_sizes[kTile] = {};
  alignas(64) float key_spreads[kTile] = {};
};

// Turns the logits of a tile into log-masses, in place, and rank scores. `logit_spread` is |q|^2 /
// head_dim_k: times a key spread, the variance of the logit.
void AddSizesAndSpreads(const TileStatistics& statistics, float logit_spread, MassEstimate mass,
                        float* log_masses, float* rank_scores) {
  const hn::ScalableTag<float> d;
  const auto spread = hn::Set(d, logit_spread);
  const auto half = hn::Set(d, 0.5f);
  const auto gain_max = hn::Set(d, kLogMassGainMax);
  for (int i = 0; i < kTile; i += static_cast<int>(hn::Lanes(d))) {
    const auto bound = hn::Add(hn::Load(d, log_masses + i), hn::Load(d, statistics.log_sizes + i));
    const auto variance = hn::Mul(spread, hn::Load(d, statistics.key_spreads + i));
    const auto second_order = hn::Add(bound, hn::Min(hn::Mul(half, variance), gain_max));
    hn::Store(mass == MassEstimate::kSecondOrder ? second_order : bound, d, log_masses + i);
    hn::Store(hn::Add(second_order, hn::Sqrt(variance)), d, rank_scores + i);
  }
}

float LogitSpread(const float* query, int dim) {
  float squared = 0.0f;
  for (int i = 0; i < dim; ++i) squared += query[i] * query[i];
  return squared / static_cast<float>(dim);
}

// Some of the task's queries, in paired order.
struct PairedQueries {
  alignas(64) float values[kQueries * kHeadDimMax];
  float logit_spreads[kQueries];
  int begin = 0;
  int count = 0;
};

template <DType kType>
void ScoreTile(const ScoreClustersTask& task, const PairedQueries& queries, int64_t first) {
  const ClusterIndex& index = *task.index;
  const std::byte* centroids[kTile];
  const std::byte* next[kTile];
  AddressCentroids(index, first, centroids);
  AddressCentroids(index, first + kTile, next);
  const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_clusters - first));
  const Rows rows = {centroids, count, index.shape.head_dim_k, next};
  alignas(64) float log_masses[kQueries * kTile] = {};
  WithVectorsFor(rows.dim, [&](auto d) HWY_ATTR {
    DotRows<kType>(d, rows, queries.values, queries.count, {log_masses, kTile});
  });
  const TileStatistics statistics(index, first, count);
  alignas(64) float rank_scores[kTile];
  for (int q = 0; q < queries.count; ++q) {
    float* masses = log_masses + q * kTile;
    AddSizesAndSpreads(statistics, queries.logit_spreads[q], task.mass, masses, rank_scores);
    const int64_t at = (queries.begin + q) * task.stride + first;
    std::copy_n(masses, count, task.log_masses + at);
    if (task.rank_scores != nullptr) std::copy_n(rank_scores, count, task.rank_scores + at);
  }
}

template <DType kType>
void Score(const ScoreClustersTask& task) {
  const int dim = task.index->shape.head_dim_k;
  PairedQueries queries;
  for (queries.begin = 0; queries.begin < task.num_queries; queries.begin += kQueries) {
    const float* first_query = task.queries + static_cast<int64_t>(queries.begin) * dim;
    queries.count = std::min(kQueries, task.num_queries - queries.begin);
    for (int q = 0; q < queries.count; ++q) {
      queries.logit_spreads[q] = LogitSpread(first_query + q * dim, dim);
    }
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      StorePaired<kType>(d, first_query, queries.count * dim, queries.values);
    });
    for (int64_t first = 0; first < task.index->num_clusters; first += kTile) {
      ScoreTile<kType>(task, queries, first);
    }
  }
}

void ScoreClustersOf(const ScoreClustersTask& task) {
  switch (task.index->statistics_dtype) {
    case DType::kFloat32:
      return Score<DType::kFloat32>(task);
    case DType::kFloat16:
      return Score<DType::kFloat16>(task);
    case DType::kBFloat16:
      return Score<DType::kBFloat16>(task);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(ScoreClustersOf);

void ScoreClusters(const ScoreClustersTask& task) { HWY_DYNAMIC_DISPATCH(ScoreClustersOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
