#include "cpu/score_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <vector>

#include "cpu/targets.h"
#include "wavekv/instruction_sets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/integer_rows-inl.h"
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the centroids, and centroids that share a tile.
constexpr int kQueries = IntegerQueries::kBatch;
constexpr int kTile = 32;

using Floats = hn::CappedTag<float, kTile>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));

// Some of the task's queries, as the two levels of an index are multiplied with them. In batches
// there is a number of each query, of which those past `count` may be anything.
struct Queries {
  int dim = 0;
  int begin = 0;  // in the task
  int count = 0;
  StatisticsFormat format = StatisticsFormat::kInt4;
  std::vector<float> rows;
  float logit_spreads[kQueries];
  IntegerQueries of_clusters;
  IntegerQueries of_supers;
  bool by_bytes = false;

  // Nothing to do where the last task's were the same: those of a segment and of the next are.
  void Load(const float* queries, int num_queries, const ClusterIndex& index, int first) {
    begin = first;
    const int new_count = std::min(kQueries, num_queries - first);
    const float* from = queries + static_cast<int64_t>(first) * index.shape.head_dim_k;
    const auto size = static_cast<size_t>(new_count) * index.shape.head_dim_k;
    if (dim == index.shape.head_dim_k && format == index.statistics && count == new_count &&
        by_bytes == UsesIntegerProducts() &&
        std::memcmp(from, rows.data(), size * sizeof(float)) == 0) {
      return;
    }
    dim = index.shape.head_dim_k;
    format = index.statistics;
    count = new_count;
    by_bytes = UsesIntegerProducts();
    rows.assign(from, from + size);
    for (int q = 0; q < count; ++q) {
      const float* query = rows.data() + q * dim;
      logit_spreads[q] = Dot(query, query, dim) / static_cast<float>(dim);
    }
    if (format == StatisticsFormat::kFloat32) return;
    of_clusters.Load(rows.data(), count, dim, format);
    of_supers.Load(rows.data(), count, dim, SuperFormat(format));
  }
};

// batches [count, kQueries]: products with the means from `first` on, at most kTile. Room for a
// whole tile.
void Multiply(const Queries& queries, const IntegerQueries& integers, const StatisticsRows& means,
              int64_t first, int count, float* batches) {
  // The next tile's. Behind the last rows stand other sections.
  PrefetchBytes(means.row(first + count), kTile * means.row_bytes);
  if (queries.format != StatisticsFormat::kFloat32) {
    return integers.Multiply(means, first, count, batches);
  }
  for (int i = 0; i < count; ++i) {
    const auto* mean = reinterpret_cast<const float*>(means.row(first + i));
    for (int q = 0; q < kQueries; ++q) {
      const float* query = queries.rows.data() + std::min(q, queries.count - 1) * queries.dim;
      batches[i * kQueries + q] = Dot(query, mean, queries.dim);
    }
  }
}

// Of the items of a tile, or more.
struct Statistics {
  const float* log_sizes;
  const float* key_spreads;
};

// Where results go: those of query `q` of all start at q * stride.
struct Results {
  MassEstimate mass;
  Ranking ranking;
  float* log_masses;   // also given: what is to be added to products
  float* rank_scores;  // nullptr: not wanted
  int64_t stride;
};

// Turns a vector of products into log-masses and rank scores.
HWY_INLINE void Rate(hn::Vec<Floats> product, const Statistics& statistics, int i,
                     float logit_spread, const Results& results, float* log_masses,
                     float* rank_scores) {
  const Floats d;
  const auto logit = ClampLogit(d, hn::Add(product, hn::LoadU(d, log_masses + i)));
  const auto bound = hn::Add(logit, hn::LoadU(d, statistics.log_sizes + i));
  const auto variance = hn::Mul(hn::Set(d, logit_spread), hn::LoadU(d, statistics.key_spreads + i));
  const auto gain = hn::Min(hn::Mul(hn::Set(d, 0.5f), variance), hn::Set(d, kLogMassGainMax));
  const auto second_order = hn::Add(bound, gain);
  hn::StoreU(results.mass == MassEstimate::kSecondOrder ? second_order : bound, d, log_masses + i);
  if (rank_scores == nullptr) return;
  const auto optimistic = hn::Add(second_order, hn::Sqrt(variance));
  hn::StoreU(results.ranking == Ranking::kCentroid ? logit : optimistic, d, rank_scores + i);
}

// From the batches of a whole tile.
HWY_INLINE void RateTile(const float* batches, const Queries& queries, const Statistics& statistics,
                         const Results& results) {
  const Floats d;
  for (int i = 0; i < kTile; i += kLanes) {
    hn::Vec<Floats> products[kQueries];
    hn::LoadInterleaved4(d, batches + i * kQueries, products[0], products[1], products[2],
                         products[3]);
    for (int q = 0; q < queries.count; ++q) {
      float* const rank_scores =
          results.rank_scores == nullptr ? nullptr : results.rank_scores + q * results.stride;
      Rate(products[q], statistics, i, queries.logit_spreads[q], results,
           results.log_masses + q * results.stride, rank_scores);
    }
  }
}

// A tile that is not full is worked on beside, as there is no room behind it.
void RatePart(const float* batches, int count, const Queries& queries, const Statistics& statistics,
              const Results& results) {
  alignas(64) float log_sizes[kTile] = {}, key_spreads[kTile] = {};
  alignas(64) float log_masses[kQueries * kTile] = {}, rank_scores[kQueries * kTile];
  std::copy_n(statistics.log_sizes, count, log_sizes);
  std::copy_n(statistics.key_spreads, count, key_spreads);
  for (int q = 0; q < queries.count; ++q) {
    std::copy_n(results.log_masses + q * results.stride, count, log_masses + q * kTile);
  }
  RateTile(batches, queries, {log_sizes, key_spreads},
           {results.mass, results.ranking, log_masses, rank_scores, kTile});
  for (int q = 0; q < queries.count; ++q) {
    std::copy_n(log_masses + q * kTile, count, results.log_masses + q * results.stride);
    if (results.rank_scores == nullptr) continue;
    std::copy_n(rank_scores + q * kTile, count, results.rank_scores + q * results.stride);
  }
}

// Scores the items [first, last) of a level whose log_masses have what is to be added to products.
void ScoreItems(const Queries& queries, const IntegerQueries& integers, const StatisticsRows& means,
                const float* log_sizes, const float* key_spreads, int64_t first, int64_t last,
                const Results& results) {
  alignas(64) float batches[kTile * kQueries];
  for (int64_t i = first; i < last; i += kTile) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, last - i));
    Multiply(queries, integers, means, i, count, batches);
    const Statistics statistics = {log_sizes + i, key_spreads + i};
    const Results here = {results.mass, results.ranking, results.log_masses + i,
                          results.rank_scores == nullptr ? nullptr : results.rank_scores + i,
                          results.stride};
    if (count == kTile) {
      RateTile(batches, queries, statistics, here);
    } else {
      RatePart(batches, count, queries, statistics, here);
    }
  }
}

// to [0, count) = value. What stands behind may be overwritten up to `room`.
HWY_INLINE void Fill(float value, int64_t count, int64_t room, float* to) {
  const Floats d;
  const auto values = hn::Set(d, value);
  int64_t i = 0;
  for (; i < count && i + kLanes <= room; i += kLanes) hn::StoreU(values, d, to + i);
  for (; i < count; ++i) to[i] = value;
}

// The clusters of super-clusters [first, last), which are opened.
void ScoreOpened(const ScoreClustersTask& task, const Queries& queries, const float* super_logits,
                 int64_t first, int64_t last) {
  const ClusterIndex& index = *task.index;
  const int64_t begin = index.super_offsets[first], end = index.super_offsets[last];
  float* const log_masses = task.log_masses + queries.begin * task.stride;
  for (int64_t s = first; s < last; ++s) {
    const int64_t at = index.super_offsets[s];
    const int64_t count = index.super_offsets[s + 1] - at;
    for (int q = 0; q < queries.count; ++q) {
      Fill(super_logits[s * kQueries + q], count, end - at, log_masses + q * task.stride + at);
    }
  }
  float* const rank_scores =
      task.rank_scores == nullptr ? nullptr : task.rank_scores + queries.begin * task.stride;
  ScoreItems(queries, queries.of_clusters, index.centroids, index.log_sizes, index.key_spreads,
             begin, end, {task.mass, task.ranking, log_masses, rank_scores, task.stride});
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

// Those from `first` on of the thread's last task that had so many.
Queries& LoadedQueries(int first) {
  thread_local std::deque<Queries> batches;
  const auto batch = static_cast<size_t>(first / kQueries);
  while (batches.size() <= batch) batches.emplace_back();
  return batches[batch];
}

// logits [num_supers, kQueries]: products with the super-clusters' centroids and the segment's
// mean. Grows to the largest index that the thread has seen.
const float* SuperLogits(const ClusterIndex& index, const Queries& queries) {
  thread_local std::vector<float> logits;
  const auto size = static_cast<size_t>((index.num_supers + kTile) * kQueries);
  if (logits.size() < size) logits.resize(size);
  float mean_logits[kQueries] = {};
  for (int q = 0; q < queries.count; ++q) {
    mean_logits[q] = Dot(queries.rows.data() + q * queries.dim, index.mean_key, queries.dim);
  }
  const hn::FixedTag<float, kQueries> d;
  const auto of_mean = hn::LoadU(d, mean_logits);
  for (int64_t s = 0; s < index.num_supers; s += kTile) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_supers - s));
    float* const tile = logits.data() + s * kQueries;
    Multiply(queries, queries.of_supers, index.super_centroids, s, count, tile);
    for (int i = 0; i < count * kQueries; i += kQueries) {
      hn::StoreU(ClampLogit(d, hn::Add(hn::LoadU(d, tile + i), of_mean)), d, tile + i);
    }
  }
  return logits.data();
}

void ScoreClustersOf(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  const auto opened = [&](int64_t s) {
    return task.super_zones == nullptr || task.super_zones[s] == Zone::kSketch;
  };
  for (int q = 0; q < task.num_queries; q += kQueries) {
    Queries& queries = LoadedQueries(q);
    queries.Load(task.queries, task.num_queries, index, q);
    const float* const super_logits = SuperLogits(index, queries);
    for (int64_t super = 0; super < index.num_supers;) {
      if (!opened(super)) {
        ShareMass(task, queries, super++);
        continue;
      }
      int64_t last = super + 1;
      while (last < index.num_supers && opened(last)) ++last;
      ScoreOpened(task, queries, super_logits, super, last);
      super = last;
    }
  }
}

void ScoreSupersOf(const ScoreSupersTask& task) {
  const ClusterIndex& index = *task.index;
  // Grows to the largest index that the thread has seen.
  thread_local std::vector<float> log_sizes;
  log_sizes.resize(index.num_supers);
  for (int64_t s = 0; s < index.num_supers; ++s) {
    log_sizes[s] = std::log(static_cast<float>(index.super_size(s)));
  }
  for (int q = 0; q < task.num_queries; q += kQueries) {
    Queries& queries = LoadedQueries(q);
    queries.Load(task.queries, task.num_queries, index, q);
    float* const log_masses = task.log_masses + q * task.stride;
    for (int h = 0; h < queries.count; ++h) {
      const float* const query = queries.rows.data() + h * queries.dim;
      std::fill_n(log_masses + h * task.stride, index.num_supers,
                  Dot(query, index.mean_key, queries.dim));
    }
    ScoreItems(
        queries, queries.of_supers, index.super_centroids, log_sizes.data(),
        index.super_key_spreads, 0, index.num_supers,
        {task.mass, task.ranking, log_masses, task.rank_scores + q * task.stride, task.stride});
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
