#include "cpu/score_clusters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "cpu/statistics_rows-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the centroids, and centroids that share a tile.
constexpr int kQueries = 16;
constexpr int kTile = 32;

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
                        Ranking ranking, float* log_masses, float* rank_scores) {
  const hn::ScalableTag<float> d;
  const auto spread = hn::Set(d, logit_spread);
  const auto half = hn::Set(d, 0.5f);
  const auto gain_max = hn::Set(d, kLogMassGainMax);
  for (int i = 0; i < kTile; i += static_cast<int>(hn::Lanes(d))) {
    const auto logit = hn::Load(d, log_masses + i);
    const auto bound = hn::Add(logit, hn::Load(d, statistics.log_sizes + i));
    const auto variance = hn::Mul(spread, hn::Load(d, statistics.key_spreads + i));
    const auto second_order = hn::Add(bound, hn::Min(hn::Mul(half, variance), gain_max));
    hn::Store(mass == MassEstimate::kSecondOrder ? second_order : bound, d, log_masses + i);
    const auto optimistic = hn::Add(second_order, hn::Sqrt(variance));
    hn::Store(ranking == Ranking::kCentroid ? logit : optimistic, d, rank_scores + i);
  }
}

// Some of the task's queries.
struct Queries {
  const float* values = nullptr;
  float logit_spreads[kQueries];
  float mean_logits[kQueries];  // products with the segment's mean key
  int begin = 0;
  int count = 0;

  void Load(const ScoreClustersTask& task, int first) {
    const int dim = task.index->shape.head_dim_k;
    begin = first;
    count = std::min(kQueries, task.num_queries - first);
    values = task.queries + static_cast<int64_t>(first) * dim;
    for (int q = 0; q < count; ++q) {
      const float* query = values + q * dim;
      float squared = 0.0f, mean = 0.0f;
      for (int i = 0; i < dim; ++i) {
        squared += query[i] * query[i];
        mean += query[i] * task.index->mean_key[i];
      }
      logit_spreads[q] = squared / static_cast<float>(dim);
      mean_logits[q] = mean;
    }
  }
};

// Means of a tile as fp32 rows; the last stands in for those past the end.
struct TileMeans {
  TileMeans(const StatisticsRows& means, StatisticsFormat format, int dim, int64_t first,
            int64_t end) {
    int64_t last = 0;
    for (int64_t i = 0; i < kTile; ++i) {
      if (first + i < end) {
        LoadRow(means.row(first + i), dim, format, means.scale(first + i), values + i * dim);
        last = i;
      }
      rows[i] = reinterpret_cast<const std::byte*>(values + last * dim);
    }
  }

  const std::byte* rows[kTile];
  alignas(64) float values[kTile * kHeadDimMax];
};

// products [queries.count, kTile] of the queries and the means from `first` to `end`.
void MultiplyTile(const StatisticsRows& means, StatisticsFormat format, int dim, int64_t first,
                  int64_t end, const Queries& queries, float* products) {
  const TileMeans tile(means, format, dim, first, end);
  const int count = static_cast<int>(std::min<int64_t>(kTile, end - first));
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    DotRows<DType::kFloat32>(d, {tile.rows, count, dim}, queries.values, queries.count,
                             {products, kTile});
  });
}

// `super_logits` [num_supers, kQueries]: products of queries and super-clusters' centroids, the
// segment's mean included. `super`: that of the cluster before `first`, updated.
void ScoreTile(const ScoreClustersTask& task, const Queries& queries, const float* super_logits,
               int64_t first, int64_t* super) {
  const ClusterIndex& index = *task.index;
  const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_clusters - first));
  alignas(64) float log_masses[kQueries * kTile] = {};
  MultiplyTile(index.centroids, index.statistics, index.shape.head_dim_k, first, index.num_clusters,
               queries, log_masses);
  for (int i = 0; i < count; ++i) {
    while (first + i >= index.super_offsets[*super + 1]) ++*super;
    const float* logits = super_logits + *super * kQueries;
    for (int q = 0; q < queries.count; ++q) log_masses[q * kTile + i] += logits[q];
  }
  const TileStatistics statistics(index, first, count);
  alignas(64) float rank_scores[kTile];
  for (int q = 0; q < queries.count; ++q) {
    float* masses = log_masses + q * kTile;
    AddSizesAndSpreads(statistics, queries.logit_spreads[q], task.mass, task.ranking, masses,
                       rank_scores);
    const int64_t at = (queries.begin + q) * task.stride + first;
    std::copy_n(masses, count, task.log_masses + at);
    if (task.rank_scores != nullptr) std::copy_n(rank_scores, count, task.rank_scores + at);
  }
}

void ScoreClustersOf(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  // Grows to the largest index that the thread has seen.
  thread_local std::vector<float> super_logits;
  super_logits.resize(index.num_supers * kQueries);
  Queries queries;
  for (int first = 0; first < task.num_queries; first += kQueries) {
    queries.Load(task, first);
    for (int64_t s = 0; s < index.num_supers; s += kTile) {
      alignas(64) float products[kQueries * kTile] = {};
      MultiplyTile(index.super_centroids, SuperFormat(index.statistics), index.shape.head_dim_k, s,
                   index.num_supers, queries, products);
      for (int64_t i = 0; i < std::min<int64_t>(kTile, index.num_supers - s); ++i) {
        for (int q = 0; q < queries.count; ++q) {
          super_logits[(s + i) * kQueries + q] = products[q * kTile + i] + queries.mean_logits[q];
        }
      }
    }
    int64_t super = 0;
    for (int64_t i = 0; i < index.num_clusters; i += kTile) {
      ScoreTile(task, queries, super_logits.data(), i, &super);
    }
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
