#include "cpu/score_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
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
  TileStatistics(const float* the_log_sizes, const float* the_key_spreads, int count) {
    std::copy_n(the_log_sizes, count, log_sizes);
    std::copy_n(the_key_spreads, count, key_spreads);
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

  void Load(const float* queries, int num_queries, const ClusterIndex& index, int first) {
    const int dim = index.shape.head_dim_k;
    begin = first;
    count = std::min(kQueries, num_queries - first);
    values = queries + static_cast<int64_t>(first) * dim;
    for (int q = 0; q < count; ++q) {
      const float* query = values + q * dim;
      float squared = 0.0f, mean = 0.0f;
      for (int i = 0; i < dim; ++i) {
        squared += query[i] * query[i];
        mean += query[i] * index.mean_key[i];
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
    // The next tile's. Behind the last rows stand other sections.
    PrefetchBytes(means.row(first) + kTile * means.row_bytes, kTile * means.row_bytes);
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
// segment's mean included. Scores clusters [first, first + count), at most kTile, the first of
// which belongs to `super`.
void ScoreTile(const ScoreClustersTask& task, const Queries& queries, const float* super_logits,
               int64_t first, int count, int64_t super) {
  const ClusterIndex& index = *task.index;
  // Those past the end of the tile may be anything.
  alignas(64) float log_masses[kQueries * kTile];
  MultiplyTile(index.centroids, index.statistics, index.shape.head_dim_k, first, first + count,
               queries, log_masses);
  for (int i = 0; i < count; ++i) {
    while (first + i >= index.super_offsets[super + 1]) ++super;
    const float* logits = super_logits + super * kQueries;
    for (int q = 0; q < queries.count; ++q) log_masses[q * kTile + i] += logits[q];
  }
  const TileStatistics statistics(index.log_sizes + first, index.key_spreads + first, count);
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

// The clusters of a super-cluster that is not opened.
void ShareMass(const ScoreClustersTask& task, const Queries& queries, int64_t super) {
  const ClusterIndex& index = *task.index;
  const int64_t first = index.super_offsets[super], last = index.super_offsets[super + 1];
  const float log_size = std::log(static_cast<float>(index.super_size(super)));
  for (int q = queries.begin; q < queries.begin + queries.count; ++q) {
    const float log_mass = task.super_log_masses[q * task.super_stride + super];
    float* log_masses = task.log_masses + q * task.stride;
    for (int64_t i = first; i < last; ++i) {
      log_masses[i] = log_mass + (index.log_sizes[i] - log_size);
    }
    if (task.rank_scores == nullptr) continue;
    std::fill(task.rank_scores + q * task.stride + first, task.rank_scores + q * task.stride + last,
              -std::numeric_limits<float>::infinity());
  }
}

// The clusters of some queries, whose products with the super-clusters are given as to ScoreTile.
void ScoreOpened(const ScoreClustersTask& task, const Queries& queries, const float* super_logits) {
  const ClusterIndex& index = *task.index;
  const auto opened = [&](int64_t s) {
    return task.super_zones == nullptr || task.super_zones[s] == Zone::kSketch;
  };
  for (int64_t super = 0; super < index.num_supers;) {
    if (!opened(super)) {
      ShareMass(task, queries, super++);
      continue;
    }
    // A run of opened ones, in tiles.
    const int64_t first_super = super;
    while (super < index.num_supers && opened(super)) ++super;
    int64_t tile_super = first_super;
    const int64_t end = index.super_offsets[super];
    for (int64_t i = index.super_offsets[first_super]; i < end; i += kTile) {
      while (i >= index.super_offsets[tile_super + 1]) ++tile_super;
      const int count = static_cast<int>(std::min<int64_t>(kTile, end - i));
      ScoreTile(task, queries, super_logits, i, count, tile_super);
    }
  }
}

// products [queries.count, kTile] of the queries and the super-clusters' centroids from `first` on,
// the segment's mean included; returns how many there are.
int MultiplySupers(const ClusterIndex& index, const Queries& queries, int64_t first,
                   float* products) {
  const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_supers - first));
  MultiplyTile(index.super_centroids, SuperFormat(index.statistics), index.shape.head_dim_k, first,
               index.num_supers, queries, products);
  for (int q = 0; q < queries.count; ++q) {
    for (int i = 0; i < count; ++i) products[q * kTile + i] += queries.mean_logits[q];
  }
  return count;
}

void ScoreClustersOf(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  // Grows to the largest index that the thread has seen.
  thread_local std::vector<float> super_logits;
  super_logits.resize(index.num_supers * kQueries);
  Queries queries;
  for (int first = 0; first < task.num_queries; first += kQueries) {
    queries.Load(task.queries, task.num_queries, index, first);
    for (int64_t s = 0; s < index.num_supers; s += kTile) {
      alignas(64) float products[kQueries * kTile];
      const int count = MultiplySupers(index, queries, s, products);
      for (int i = 0; i < count; ++i) {
        for (int q = 0; q < queries.count; ++q) {
          super_logits[(s + i) * kQueries + q] = products[q * kTile + i];
        }
      }
    }
    ScoreOpened(task, queries, super_logits.data());
  }
}

void ScoreSupersOf(const ScoreSupersTask& task) {
  const ClusterIndex& index = *task.index;
  Queries queries;
  for (int first = 0; first < task.num_queries; first += kQueries) {
    queries.Load(task.queries, task.num_queries, index, first);
    for (int64_t s = 0; s < index.num_supers; s += kTile) {
      alignas(64) float products[kQueries * kTile];
      alignas(64) float rank_scores[kTile], log_sizes[kTile];
      const int count = MultiplySupers(index, queries, s, products);
      for (int i = 0; i < count; ++i) {
        log_sizes[i] = std::log(static_cast<float>(index.super_size(s + i)));
      }
      const TileStatistics statistics(log_sizes, index.super_key_spreads + s, count);
      for (int q = 0; q < queries.count; ++q) {
        float* log_masses = products + q * kTile;
        AddSizesAndSpreads(statistics, queries.logit_spreads[q], task.mass, task.ranking,
                           log_masses, rank_scores);
        const int64_t at = (first + q) * task.stride + s;
        std::copy_n(log_masses, count, task.log_masses + at);
        std::copy_n(rank_scores, count, task.rank_scores + at);
      }
    }
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(ScoreClustersOf);
HWY_EXPORT(ScoreSupersOf);

void ScoreClusters(const ScoreClustersTask& task) { HWY_DYNAMIC_DISPATCH(ScoreClustersOf)(task); }

void ScoreSupers(const ScoreSupersTask& task) { HWY_DYNAMIC_DISPATCH(ScoreSupersOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
