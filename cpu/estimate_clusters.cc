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
#include "cpu/add_means-inl.h"
#include "cpu/estimate_masses-inl.h"
#include "cpu/estimate_weights-inl.h"
#include "cpu/rotation-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over means and values, and values that share a tile.
constexpr int kQueries = 16;
constexpr int kTile = 32;

// output [num_queries, head_dim_v] += weights . values of the tokens listed.
template <DType kType>
void AddValues(const ClusterIndex& index, const std::byte* const* chosen_values,
               const EstimateParts& parts, int first_query, int num_queries, float* output) {
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax];  // paired order
  std::fill_n(sums, num_queries * dim, 0.0f);
  alignas(64) float tile_weights[kQueries * kTile];
  const BatchedWeights weights = {parts.taken_weights.data(), parts.taken_stride()};
  for (int64_t first = 0; first < parts.num_taken; first += kTile) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, parts.num_taken - first));
    weights.Transpose(first, count, first_query, num_queries, tile_weights, kTile);
    const bool more = first + 2 * kTile <= parts.num_taken;
    const std::byte* const* ahead = more ? chosen_values + first + kTile : nullptr;
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      AddWeightedRows<kType>(d, {chosen_values + first, count, dim, ahead}, {tile_weights, kTile},
                             num_queries, sums);
    });
  }
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    LoadPaired<kType>(d, sums, num_queries * dim, sums);
    for (int i = 0; i < num_queries * dim; i += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Add(hn::LoadU(d, output + i), hn::LoadU(d, sums + i)), d, output + i);
    }
  });
}

void AddValues(const ClusterIndex& index, const std::byte* const* chosen_values,
               const EstimateParts& parts, int first_query, int num_queries, float* output) {
  switch (index.shape.dtype) {
    case DType::kFloat32:
      return AddValues<DType::kFloat32>(index, chosen_values, parts, first_query, num_queries,
                                        output);
    case DType::kFloat16:
      return AddValues<DType::kFloat16>(index, chosen_values, parts, first_query, num_queries,
                                        output);
    case DType::kBFloat16:
      return AddValues<DType::kBFloat16>(index, chosen_values, parts, first_query, num_queries,
                                         output);
  }
}

// The weighted sum of all means and values, for some of the queries.
void AnswerQueries(const EstimateClustersTask& task, const EstimateParts& parts,
                   const Rotation& rotation, int first, int num_queries) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax];
  const hn::CappedTag<float, 8> d;  // divides every dim
  for (int q = 0; q < num_queries; ++q) {
    const auto weight = hn::Set(d, parts.sums[first + q].of_means);
    for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Mul(weight, hn::LoadU(d, index.mean_value + i)), d, sums + q * dim + i);
    }
  }
  AddMeans<kQueries>(index.value_means, index.statistics, dim, parts.clusters,
                     {parts.cluster_weights.data(), parts.cluster_stride()}, first, num_queries,
                     sums);
  AddMeans<kQueries>(index.super_value_means, SuperFormat(index.statistics), dim, parts.supers,
                     {parts.super_weights.data(), parts.super_stride()}, first, num_queries, sums);
  for (int q = 0; q < num_queries; ++q) RotateBack(rotation, sums + q * dim);
  if (parts.num_taken > 0) {
    AddValues(index, task.chosen_values, parts, first, num_queries, sums);
  }
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

// The first means and values that will be added up, of which those that were attended may have left
// the cache since; later ones are asked for on the way. Inlined, or the compiler takes calls for
// idle and leaves them out.
HWY_INLINE void PrefetchFirst(const EstimateClustersTask& task, const EstimateParts& parts) {
  const ClusterIndex& index = *task.index;
  for (size_t i = 0; i < std::min<size_t>(kMeansTile, parts.clusters.size()); ++i) {
    PrefetchBytes(index.value_means.row(parts.clusters[i]), index.value_means.row_bytes);
  }
  for (int64_t i = 0; i < std::min<int64_t>(kTile, parts.num_taken); ++i) {
    PrefetchBytes(task.chosen_values[i], index.value_row_bytes());
  }
}

// Masses, weights and sums of a batch of queries from first_query on.
template <bool kErrors>
void WeighBatch(const EstimateClustersTask& task, int first_query, EstimateParts& parts) {
  QueryBatch batch(task, first_query);
  FindOffsets(task, parts, batch);
  ComputeClusterMasses<kErrors>(task, parts, batch);
  BatchWeights<kErrors>(task, first_query, parts, batch).Compute();
  const Full d;
  for (int q = 0; q < QueryBatch::kBatch; ++q) {
    EstimateParts::Sums& sums = parts.sums[first_query + q];
    sums.offset = batch.offsets[q];
    const auto sum = [&](V lanes)
                         HWY_ATTR { return double{hn::GetLane(hn::SumOfLanes(d, lanes))}; };
    sums.missing_mass = sum(batch.missing[q]);
    sums.value_variance = sum(batch.variances[q]);
    const double scale = batch.token_scales[q];
    if (scale == 0.0) continue;  // else 0 times infinity
    sums.missing_mass += scale * kDoubt * sum(batch.doubtful[q]);
    sums.value_variance += scale * scale * sum(batch.token_variances[q]);
  }
}

void EstimateClustersOf(const EstimateClustersTask& task) {
  // Grows to the largest index that the thread has seen.
  thread_local EstimateParts parts;
  parts.Load(task);
  PrefetchFirst(task, parts);
  const bool with_errors = task.missing_lse != nullptr;
  if (with_errors) LoadSpreads(*task.index, parts);
  for (int q = 0; q < task.num_queries; q += EstimateParts::kBatch) {
    with_errors ? WeighBatch<true>(task, q, parts) : WeighBatch<false>(task, q, parts);
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
  if (with_errors) StoreErrors(task, parts);
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
