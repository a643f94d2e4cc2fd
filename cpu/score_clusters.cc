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
#include "cpu/integer_rows-inl.h"
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the centroids, and centroids that share a tile.
constexpr int kQueries = IntegerQueries::kBatch;
constexpr int kTile = 32;

// Some of the task's queries. In batches there is a number of each query, of which those past
// `count` may be anything.
struct Queries {
  const float* values = nullptr;
  int dim = 0;
  float logit_spreads[kQueries];
  float mean_logits[kQueries] = {};  // products with the segment's mean key
  int begin = 0;
  int count = 0;

  void Load(const float* queries, int num_queries, const ClusterIndex& index, int first) {
    dim = index.shape.head_dim_k;
    begin = first;
    count = std::min(kQueries, num_queries - first);
    values = queries + static_cast<int64_t>(first) * dim;
    for (int q = 0; q < count; ++q) {
      const float* query = values + q * dim;
      logit_spreads[q] = Dot(query, query, dim) / static_cast<float>(dim);
      mean_logits[q] = Dot(query, index.mean_key, dim);
    }
  }
};

// Products of some queries with the means of one level of an index.
class MeanProducts {
 public:
  MeanProducts(const Queries& queries, const StatisticsRows& means, StatisticsFormat format)
      : queries_(queries), means_(means), is_fp32_(format == StatisticsFormat::kFloat32) {
    if (!is_fp32_) integers_.Load(queries.values, queries.count, queries.dim, format);
  }

  // batches [count, kQueries] of the means from `first` on, plus bases[i] for the i-th; at most
  // kTile.
  void Multiply(int64_t first, int count, const float* const* bases, float* batches) const {
    // The next tile's. Behind the last rows stand other sections.
    PrefetchBytes(means_.row(first) + count * means_.row_bytes, kTile * means_.row_bytes);
    if (!is_fp32_) return integers_.Multiply(means_, first, count, bases, batches);
    for (int i = 0; i < count; ++i) {
      const auto* mean = reinterpret_cast<const float*>(means_.row(first + i));
      for (int q = 0; q < kQueries; ++q) {
        const float* query = queries_.values + std::min(q, queries_.count - 1) * queries_.dim;
        batches[i * kQueries + q] = Dot(query, mean, queries_.dim) + bases[i][q];
      }
    }
  }

 private:
  const Queries& queries_;
  const StatisticsRows& means_;
  const bool is_fp32_;
  IntegerQueries integers_;
};

// Of the items of a tile, or more.
struct Statistics {
  const float* log_sizes;
  const float* key_spreads;
};

// Turns batches of logits of a tile into log-masses and rank scores [count] of query `q`. What is
// written may be kTile long; what is read is.
void Rate(const float* logits, const Statistics& statistics, float logit_spread, MassEstimate mass,
          Ranking ranking, float* log_masses, float* rank_scores) {
  const hn::ScalableTag<float> d;
  const auto spread = hn::Set(d, logit_spread);
  const auto half = hn::Set(d, 0.5f);
  const auto gain_max = hn::Set(d, kLogMassGainMax);
  for (int i = 0; i < kTile; i += static_cast<int>(hn::Lanes(d))) {
    const auto logit = hn::Load(d, logits + i);
    const auto bound = hn::Add(logit, hn::LoadU(d, statistics.log_sizes + i));
    const auto variance = hn::Mul(spread, hn::LoadU(d, statistics.key_spreads + i));
    const auto second_order = hn::Add(bound, hn::Min(hn::Mul(half, variance), gain_max));
    hn::StoreU(mass == MassEstimate::kSecondOrder ? second_order : bound, d, log_masses + i);
    if (rank_scores == nullptr) continue;
    const auto optimistic = hn::Add(second_order, hn::Sqrt(variance));
    hn::StoreU(ranking == Ranking::kCentroid ? logit : optimistic, d, rank_scores + i);
  }
}

// Where a tile's results go: those of query `q` of all start at q * stride.
struct Results {
  MassEstimate mass;
  Ranking ranking;
  float* log_masses;
  float* rank_scores;  // nullptr: not wanted
  int64_t stride;
};

// batches [count, kQueries] of logits, room for kTile, to results [queries.count, count].
void FinishTile(const float* batches, int count, const Queries& queries, Statistics statistics,
                const Results& results) {
  alignas(64) float logits[kQueries * kTile];
  TransposeBatches(batches, count, logits, kTile);
  // A tile that is not full is worked on beside, as there is no room behind it.
  alignas(64) float log_sizes[kTile] = {}, key_spreads[kTile] = {};
  alignas(64) float log_masses[kTile], rank_scores[kTile];
  const bool full = count == kTile;
  if (!full) {
    std::copy_n(statistics.log_sizes, count, log_sizes);
    std::copy_n(statistics.key_spreads, count, key_spreads);
    statistics = {log_sizes, key_spreads};
  }
  const bool ranks = results.rank_scores != nullptr;
  for (int q = 0; q < queries.count; ++q) {
    float* masses_to = results.log_masses + q * results.stride;
    float* scores_to = ranks ? results.rank_scores + q * results.stride : nullptr;
    Rate(logits + q * kTile, statistics, queries.logit_spreads[q], results.mass, results.ranking,
         full ? masses_to : log_masses, full || !ranks ? scores_to : rank_scores);
    if (full) continue;
    std::copy_n(log_masses, count, masses_to);
    if (ranks) std::copy_n(rank_scores, count, scores_to);
  }
}

// batches [num_supers, kQueries]: products with the super-clusters' centroids, the segment's mean
// included. Room for whole tiles.
void MultiplySupers(const ClusterIndex& index, const Queries& queries, float* batches) {
  const MeanProducts products(queries, index.super_centroids, SuperFormat(index.statistics));
  const float* bases[kTile];
  std::fill_n(bases, kTile, queries.mean_logits);
  for (int64_t s = 0; s < index.num_supers; s += kTile) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_supers - s));
    products.Multiply(s, count, bases, batches + s * kQueries);
  }
}

// Some clusters of opened super-clusters: runs of neighbours.
class ClusterTile {
 public:
  // super_logits [num_supers, kQueries]: products with the super-clusters.
  ClusterTile(const ScoreClustersTask& task, const Queries& queries, const float* super_logits)
      : task_(task),
        index_(*task.index),
        queries_(queries),
        super_logits_(super_logits),
        products_(queries, index_.centroids, index_.statistics) {}

  // Scores the clusters of a super-cluster, or lists them to be scored with others.
  void Add(int64_t super) {
    int64_t first = index_.super_offsets[super];
    const int64_t end = index_.super_offsets[super + 1];
    while (first < end) {
      const int added = static_cast<int>(std::min<int64_t>(kTile - count_, end - first));
      if (num_runs_ > 0 && runs_[num_runs_ - 1].end == first) {
        runs_[num_runs_ - 1].end += added;
      } else {
        runs_[num_runs_++] = {first, first + added};
      }
      std::fill_n(bases_ + count_, added, super_logits_ + super * kQueries);
      count_ += added;
      first += added;
      if (count_ == kTile) Flush();
    }
  }

  // Scores those that are listed.
  void Flush() {
    alignas(64) float batches[kTile * kQueries];
    int at = 0;
    for (int r = 0; r < num_runs_; ++r) {
      const int count = static_cast<int>(runs_[r].end - runs_[r].first);
      products_.Multiply(runs_[r].first, count, bases_ + at, batches + at * kQueries);
      at += count;
    }
    if (num_runs_ == 1) {
      const int64_t first = runs_[0].first;
      const int64_t to = queries_.begin * task_.stride + first;
      FinishTile(batches, count_, queries_, {index_.log_sizes + first, index_.key_spreads + first},
                 {task_.mass, task_.ranking, task_.log_masses + to,
                  task_.rank_scores == nullptr ? nullptr : task_.rank_scores + to, task_.stride});
    } else if (num_runs_ > 1) {
      FinishRuns(batches);
    }
    num_runs_ = count_ = 0;
  }

 private:
  struct Run {
    int64_t first;
    int64_t end;
  };

  void FinishRuns(const float* batches) const {
    alignas(64) float log_sizes[kTile], key_spreads[kTile];
    alignas(64) float log_masses[kQueries * kTile], rank_scores[kQueries * kTile];
    int at = 0;
    for (int r = 0; r < num_runs_; ++r) {
      std::copy(index_.log_sizes + runs_[r].first, index_.log_sizes + runs_[r].end, log_sizes + at);
      std::copy(index_.key_spreads + runs_[r].first, index_.key_spreads + runs_[r].end,
                key_spreads + at);
      at += static_cast<int>(runs_[r].end - runs_[r].first);
    }
    FinishTile(batches, count_, queries_, {log_sizes, key_spreads},
               {task_.mass, task_.ranking, log_masses, rank_scores, kTile});
    for (int q = 0; q < queries_.count; ++q) {
      const int64_t to = (queries_.begin + q) * task_.stride;
      at = q * kTile;
      for (int r = 0; r < num_runs_; ++r) {
        const int64_t count = runs_[r].end - runs_[r].first;
        std::copy_n(log_masses + at, count, task_.log_masses + to + runs_[r].first);
        if (task_.rank_scores != nullptr) {
          std::copy_n(rank_scores + at, count, task_.rank_scores + to + runs_[r].first);
        }
        at += static_cast<int>(count);
      }
    }
  }

  const ScoreClustersTask& task_;
  const ClusterIndex& index_;
  const Queries& queries_;
  const float* const super_logits_;
  const MeanProducts products_;
  int num_runs_ = 0;
  int count_ = 0;
  Run runs_[kTile];
  const float* bases_[kTile];
};

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

// Grows to the largest index that the thread has seen.
float* RoomForSupers(int64_t num_supers) {
  thread_local std::vector<float> batches;
  const auto size = static_cast<size_t>((num_supers + kTile) * kQueries);
  if (batches.size() < size) batches.resize(size);
  return batches.data();
}

void ScoreClustersOf(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  const auto opened = [&](int64_t s) {
    return task.super_zones == nullptr || task.super_zones[s] == Zone::kSketch;
  };
  float* super_logits = RoomForSupers(index.num_supers);
  Queries queries;
  for (int q = 0; q < task.num_queries; q += kQueries) {
    queries.Load(task.queries, task.num_queries, index, q);
    MultiplySupers(index, queries, super_logits);
    ClusterTile tile(task, queries, super_logits);
    for (int64_t super = 0; super < index.num_supers; ++super) {
      if (opened(super)) {
        tile.Add(super);
      } else {
        ShareMass(task, queries, super);
      }
    }
    tile.Flush();
  }
}

void ScoreSupersOf(const ScoreSupersTask& task) {
  const ClusterIndex& index = *task.index;
  float* logits = RoomForSupers(index.num_supers);
  Queries queries;
  for (int q = 0; q < task.num_queries; q += kQueries) {
    queries.Load(task.queries, task.num_queries, index, q);
    MultiplySupers(index, queries, logits);
    for (int64_t s = 0; s < index.num_supers; s += kTile) {
      const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_supers - s));
      alignas(64) float log_sizes[kTile];
      for (int i = 0; i < count; ++i) {
        log_sizes[i] = std::log(static_cast<float>(index.super_size(s + i)));
      }
      const int64_t at = q * task.stride + s;
      FinishTile(
          logits + s * kQueries, count, queries, {log_sizes, index.super_key_spreads + s},
          {task.mass, task.ranking, task.log_masses + at, task.rank_scores + at, task.stride});
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
