#include "cpu/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "compute/rotation.h"
#include "cpu/estimate_parts.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/estimate_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/estimate_masses-inl.h"
#include "cpu/estimate_weights-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "cpu/statistics_rows-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the means, and means that share a tile.
constexpr int kQueries = 16;
constexpr int kTile = 32;

// Weights of items for queries, as EstimateParts keeps them.
struct Weights {
  const float* batches;
  int64_t num_items;

  float Of(int query, int64_t item) const {
    constexpr int kBatch = EstimateParts::kBatch;
    return batches[(query / kBatch * num_items + item) * kBatch + query % kBatch];
  }
};

// sums [num_queries, head_dim_v] += weights . means, for the rows listed.
void AddMeans(const ClusterIndex& index, const StatisticsRows& means, StatisticsFormat format,
              const std::vector<uint32_t>& list, const Weights& weights, int first_query,
              int num_queries, float* sums) {
  const int dim = index.shape.head_dim_v;
  alignas(64) float values[kTile * kHeadDimMax];
  const std::byte* rows[kTile];
  float tile_weights[kQueries * kTile];
  for (size_t first = 0; first < list.size(); first += kTile) {
    const int count = static_cast<int>(std::min<size_t>(kTile, list.size() - first));
    for (size_t i = first + kTile; i < std::min(first + 2 * kTile, list.size()); ++i) {
      PrefetchBytes(means.row(list[i]), means.row_bytes);
    }
    for (int i = 0; i < count; ++i) {
      const uint32_t mean = list[first + i];
      LoadRow(means.row(mean), dim, format, means.scale(mean), values + i * dim);
      rows[i] = reinterpret_cast<const std::byte*>(values + i * dim);
      for (int q = 0; q < num_queries; ++q) {
        tile_weights[q * kTile + i] = weights.Of(first_query + q, mean);
      }
    }
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      AddWeightedRows<DType::kFloat32>(d, {rows, count, dim}, {tile_weights, kTile}, num_queries,
                                       sums);
    });
  }
}

// output [num_queries, head_dim_v] += weights . values of the tokens listed.
template <DType kType>
void AddValues(const ClusterIndex& index, const EstimateParts& parts, int first_query,
               int num_queries, float* output) {
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax];  // paired order
  std::fill_n(sums, num_queries * dim, 0.0f);
  const std::byte* rows[2][kTile];
  float tile_weights[kQueries * kTile];
  const auto& tokens = parts.taken_tokens;
  const Weights weights = {parts.taken_weights.data(), static_cast<int64_t>(tokens.size())};
  const auto count_from = [&](size_t first) {
    return static_cast<int>(
        std::min<size_t>(kTile, tokens.size() - std::min(first, tokens.size())));
  };
  const auto list = [&](size_t first, const std::byte** to) {
    const int count = count_from(first);
    for (int i = 0; i < count; ++i) to[i] = tokens[first + i].value;
    // Kernels ask for a full tile of rows that come next.
    std::fill(to + count, to + kTile, tokens[std::min(first, tokens.size() - 1)].value);
  };
  list(0, rows[0]);
  for (size_t first = 0; first < tokens.size(); first += kTile) {
    const int count = count_from(first);
    const std::byte** mine = rows[first / kTile % 2];
    const std::byte** next = rows[(first / kTile + 1) % 2];
    list(first + kTile, next);
    for (int i = 0; i < count; ++i) {
      for (int q = 0; q < num_queries; ++q) {
        tile_weights[q * kTile + i] = weights.Of(first_query + q, static_cast<int64_t>(first) + i);
      }
    }
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      AddWeightedRows<kType>(d, {mine, count, dim, next}, {tile_weights, kTile}, num_queries, sums);
    });
  }
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    LoadPaired<kType>(d, sums, num_queries * dim, sums);
    for (int i = 0; i < num_queries * dim; i += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Add(hn::LoadU(d, output + i), hn::LoadU(d, sums + i)), d, output + i);
    }
  });
}

void AddValues(const ClusterIndex& index, const EstimateParts& parts, int first_query,
               int num_queries, float* output) {
  switch (index.shape.dtype) {
    case DType::kFloat32:
      return AddValues<DType::kFloat32>(index, parts, first_query, num_queries, output);
    case DType::kFloat16:
      return AddValues<DType::kFloat16>(index, parts, first_query, num_queries, output);
    case DType::kBFloat16:
      return AddValues<DType::kBFloat16>(index, parts, first_query, num_queries, output);
  }
}

// The weighted sum of all means and values, for some of the queries.
void AnswerQueries(const EstimateClustersTask& task, const EstimateParts& parts,
                   const Rotation& rotation, int first, int num_queries) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax];
  for (int q = 0; q < num_queries; ++q) {
    for (int i = 0; i < dim; ++i) {
      sums[q * dim + i] = parts.sums[first + q].of_means * index.mean_value[i];
    }
  }
  AddMeans(index, index.value_means, index.statistics, parts.clusters,
           {parts.cluster_weights.data(), index.num_clusters}, first, num_queries, sums);
  AddMeans(index, index.super_value_means, SuperFormat(index.statistics), parts.supers,
           {parts.super_weights.data(), index.num_supers}, first, num_queries, sums);
  for (int q = 0; q < num_queries; ++q) rotation.ApplyInverse(sums + q * dim);
  if (!parts.taken_tokens.empty()) AddValues(index, parts, first, num_queries, sums);
  float* output = task.output + static_cast<int64_t>(first) * dim;
  std::copy_n(sums, num_queries * dim, output);
  for (int q = 0; q < num_queries; ++q) {
    const float mass = parts.sums[first + q].mass;
    ScaleRow(output + q * dim, dim, mass > 0.0f ? 1.0f / mass : 0.0f);
  }
}

// ln(e^a + e^b)
double LogAdd(double a, double b) {
  const double most = std::max(a, b);
  return most == kMinusInfinity ? most : most + std::log1p(std::exp(std::min(a, b) - most));
}

// Of the masses of ignored clusters, which may be of any magnitude beside the others.
double IgnoredLse(const EstimateClustersTask& task, int query) {
  const float* log_masses = task.log_masses + query * task.log_masses_stride;
  double lse = kMinusInfinity;
  // Only the paper's zones have any.
  if (std::memchr(task.zones, static_cast<int>(Zone::kIgnored), task.index->num_clusters) ==
      nullptr) {
    return lse;
  }
  for (int64_t i = 0; i < task.index->num_clusters; ++i) {
    if (task.zones[i] == Zone::kIgnored) lse = LogAdd(lse, log_masses[i]);
  }
  return lse;
}

void StoreErrors(const EstimateClustersTask& task, const EstimateParts& parts) {
  for (int h = 0; h < task.num_queries; ++h) {
    const EstimateParts::Sums& sums = parts.sums[h];
    const double answered =
        sums.missing_mass > 0.0 ? sums.offset + std::log(sums.missing_mass) : kMinusInfinity;
    task.missing_lse[h] = static_cast<float>(LogAdd(answered, IgnoredLse(task, h)));
    const double mass = sums.mass;
    task.value_variance[h] =
        mass > 0.0 ? static_cast<float>(sums.value_variance / (mass * mass)) : 0.0f;
  }
}

// The first means and values that will be added up, later ones are asked for on the way. Inlined,
// or the compiler takes calls for idle and leaves them out.
HWY_INLINE void PrefetchFirst(const ClusterIndex& index, const EstimateParts& parts) {
  for (size_t i = 0; i < std::min<size_t>(kTile, parts.clusters.size()); ++i) {
    PrefetchBytes(index.value_means.row(parts.clusters[i]), index.value_means.row_bytes);
  }
  for (size_t i = 0; i < std::min<size_t>(kTile, parts.taken_tokens.size()); ++i) {
    PrefetchBytes(parts.taken_tokens[i].value, index.value_row_bytes());
  }
}

void EstimateClustersOf(const EstimateClustersTask& task) {
  // Grows to the largest index that the thread has seen.
  thread_local EstimateParts parts;
  parts.Load(task);
  PrefetchFirst(*task.index, parts);
  if (task.missing_lse != nullptr) LoadSpreads(task, parts);
  for (int q = 0; q < task.num_queries; q += EstimateParts::kBatch) {
    BatchMasses(task, q, parts).Compute();
    BatchWeights(task, q, parts).Compute();
  }
  // Of the last head_dim_v that the thread has seen: to draw the signs takes as long as two rows.
  thread_local std::optional<Rotation> rotation;
  const int dim = task.index->shape.head_dim_v;
  if (!rotation.has_value() || rotation->dim() != dim) rotation.emplace(dim);
  for (int q = 0; q < task.num_queries; q += kQueries) {
    AnswerQueries(task, parts, *rotation, q, std::min(kQueries, task.num_queries - q));
  }
  for (int h = 0; h < task.num_queries; ++h) {
    const EstimateParts::Sums& sums = parts.sums[h];
    task.lse[h] = sums.mass > 0.0f ? sums.offset + std::log(sums.mass) : kMinusInfinity;
  }
  if (task.missing_lse != nullptr) StoreErrors(task, parts);
  if (task.num_value_means != nullptr) {
    *task.num_value_means = static_cast<int64_t>(parts.clusters.size());
  }
  if (task.num_super_value_means != nullptr) {
    *task.num_super_value_means = static_cast<int64_t>(parts.supers.size());
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(EstimateClustersOf);

void EstimateClusters(const EstimateClustersTask& task) {
  HWY_DYNAMIC_DISPATCH(EstimateClustersOf)(task);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
