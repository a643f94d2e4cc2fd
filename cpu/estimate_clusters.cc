#include "cpu/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/estimate_errors.h"
#include "cpu/estimate_weights.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/estimate_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
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

// Replaces logs by e^{log - offset}, at most e^80.
void Exponentials(float* logs, int64_t count, float offset) {
  const hn::ScalableTag<float> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, offset), most = hn::Set(d, 80.0f);
  const auto of = [&](auto log) HWY_ATTR { return Exp(d, hn::Min(hn::Sub(log, shift), most)); };
  int64_t i = 0;
  for (; i + n <= count; i += n) hn::StoreU(of(hn::LoadU(d, logs + i)), d, logs + i);
  if (i == count) return;
  alignas(64) float rest[hn::MaxLanes(hn::ScalableTag<float>())] = {};
  std::copy(logs + i, logs + count, rest);
  hn::Store(of(hn::Load(d, rest)), d, rest);
  std::copy_n(rest, count - i, logs + i);
}

// sums [num_queries, head_dim_v] += weights . means, for the rows listed; row h of the weights at
// weights + h * stride, by number of the mean.
void AddMeans(const ClusterIndex& index, const StatisticsRows& means, StatisticsFormat format,
              const std::vector<uint32_t>& list, const float* weights, int64_t stride,
              int num_queries, float* sums) {
  const int dim = index.shape.head_dim_v;
  alignas(64) float values[kTile * kHeadDimMax];
  const std::byte* rows[kTile];
  float tile_weights[kQueries * kTile];
  for (size_t first = 0; first < list.size(); first += kTile) {
    const int count = static_cast<int>(std::min<size_t>(kTile, list.size() - first));
    for (int i = 0; i < count; ++i) {
      const uint32_t mean = list[first + i];
      LoadRow(means.row(mean), dim, format, means.scale(mean), values + i * dim);
      rows[i] = reinterpret_cast<const std::byte*>(values + i * dim);
      for (int q = 0; q < num_queries; ++q) {
        tile_weights[q * kTile + i] = weights[q * stride + mean];
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
void AddValues(const ClusterIndex& index, const EstimateWeights& weights, int first_query,
               int num_queries, float* output) {
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax] = {};  // paired order
  const std::byte* rows[kTile];
  float tile_weights[kQueries * kTile];
  const auto& tokens = weights.taken_tokens();
  for (size_t first = 0; first < tokens.size(); first += kTile) {
    const int count = static_cast<int>(std::min<size_t>(kTile, tokens.size() - first));
    for (int i = 0; i < count; ++i) {
      rows[i] = tokens[first + i].value;
      for (int q = 0; q < num_queries; ++q) {
        tile_weights[q * kTile + i] = weights.taken_weights(first_query + q)[first + i];
      }
    }
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      AddWeightedRows<kType>(d, {rows, count, dim}, {tile_weights, kTile}, num_queries, sums);
    });
  }
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    LoadPaired<kType>(d, sums, num_queries * dim, sums);
    for (int i = 0; i < num_queries * dim; i += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Add(hn::LoadU(d, output + i), hn::LoadU(d, sums + i)), d, output + i);
    }
  });
}

void AddValues(const ClusterIndex& index, const EstimateWeights& weights, int first_query,
               int num_queries, float* output) {
  switch (index.shape.dtype) {
    case DType::kFloat32:
      return AddValues<DType::kFloat32>(index, weights, first_query, num_queries, output);
    case DType::kFloat16:
      return AddValues<DType::kFloat16>(index, weights, first_query, num_queries, output);
    case DType::kBFloat16:
      return AddValues<DType::kBFloat16>(index, weights, first_query, num_queries, output);
  }
}

// The weighted sum of all means and values, for some of the queries.
void AnswerQueries(const EstimateClustersTask& task, const EstimateWeights& weights,
                   const Rotation& rotation, int first, int num_queries) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_v;
  alignas(64) float sums[kQueries * kHeadDimMax];
  for (int q = 0; q < num_queries; ++q) {
    for (int i = 0; i < dim; ++i) {
      sums[q * dim + i] = weights.of_means(first + q) * index.mean_value[i];
    }
  }
  AddMeans(index, index.value_means, index.statistics, weights.clusters(),
           weights.cluster_weights(first), index.num_clusters, num_queries, sums);
  AddMeans(index, index.super_value_means, SuperFormat(index.statistics), weights.supers(),
           weights.super_weights(first), index.num_supers, num_queries, sums);
  for (int q = 0; q < num_queries; ++q) rotation.ApplyInverse(sums + q * dim);
  if (!weights.taken_tokens().empty()) AddValues(index, weights, first, num_queries, sums);
  float* output = task.output + static_cast<int64_t>(first) * dim;
  std::copy_n(sums, num_queries * dim, output);
  for (int q = 0; q < num_queries; ++q) {
    const float mass = weights.mass(first + q);
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
  for (int64_t i = 0; i < task.index->num_clusters; ++i) {
    if (task.zones[i] == Zone::kIgnored) lse = LogAdd(lse, log_masses[i]);
  }
  return lse;
}

void AddErrors(const EstimateClustersTask& task, const EstimateWeights& weights) {
  // Grows to the largest index that the thread has seen.
  thread_local EstimateErrors errors;
  errors.Load(task);
  for (int h = 0; h < task.num_queries; ++h) {
    const ErrorTerms terms = errors.Compute(task, h, weights);
    const double answered = terms.missing_mass > 0.0
                                ? weights.offset(h) + std::log(terms.missing_mass)
                                : kMinusInfinity;
    task.missing_lse[h] = static_cast<float>(LogAdd(answered, IgnoredLse(task, h)));
    const double mass = weights.mass(h);
    task.value_variance[h] =
        mass > 0.0 ? static_cast<float>(terms.value_variance / (mass * mass)) : 0.0f;
  }
}

// Copies logs and returns the greatest of those whose `counts` is not 0.
float CopyLogs(const float* from, const float* counts, int64_t count, float* to) {
  const hn::ScalableTag<float> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const auto none = hn::Set(d, kMinusInfinity);
  auto greatest = none;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    const auto log = hn::LoadU(d, from + i);
    const auto is_counted = hn::Ne(hn::LoadU(d, counts + i), hn::Zero(d));
    greatest = hn::Max(greatest, hn::IfThenElse(is_counted, log, none));
    hn::StoreU(log, d, to + i);
  }
  float most = hn::GetLane(hn::MaxOfLanes(d, greatest));
  for (; i < count; ++i) {
    to[i] = from[i];
    if (counts[i] != 0.0f) most = std::max(most, from[i]);
  }
  return most;
}

void SumSketchClusters(EstimateWeights& weights, int query) {
  const hn::ScalableTag<float> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const std::vector<int64_t>& clusters = weights.sketch_clusters();
  const float* left_tokens = weights.left_tokens().data();
  const float* masses = weights.logs(query).data() + weights.answered().size();
  EstimateWeights::SketchMass* sums = weights.sketch_masses(query);
  for (int64_t c = 0; c < weights.num_sketch_clusters(); ++c) {
    auto whole = hn::Zero(d), left = hn::Zero(d);
    for (int64_t t = clusters[c]; t < clusters[c + 1]; t += n) {
      const auto mine = hn::FirstN(d, static_cast<size_t>(clusters[c + 1] - t));
      const auto mass = hn::IfThenElseZero(mine, hn::LoadU(d, masses + t));
      whole = hn::Add(whole, mass);
      left = hn::MulAdd(mass, hn::LoadU(d, left_tokens + t), left);
    }
    sums[c] = {hn::GetLane(hn::SumOfLanes(d, whole)), hn::GetLane(hn::SumOfLanes(d, left))};
  }
}

void LoadQuery(const EstimateClustersTask& task, int query, EstimateWeights& weights) {
  const absl::Span<float> logs = weights.logs(query);
  const int64_t num_clusters = task.index->num_clusters;
  const int64_t num_tokens = static_cast<int64_t>(logs.size()) - num_clusters;
  float greatest = CopyLogs(task.log_masses + query * task.log_masses_stride,
                            weights.answered().data(), num_clusters, logs.data());
  if (num_tokens > 0) {
    const float of_tokens =
        CopyLogs(task.token_logits + query * task.token_stride, weights.left_tokens().data(),
                 num_tokens, logs.data() + num_clusters);
    greatest = std::max(greatest, of_tokens);
  }
  weights.offset(query) = greatest == kMinusInfinity ? 0.0f : greatest;
  Exponentials(logs.data(), static_cast<int64_t>(logs.size()), weights.offset(query));
  SumSketchClusters(weights, query);
}

void EstimateClustersOf(const EstimateClustersTask& task) {
  // Grows to the largest index that the thread has seen.
  thread_local EstimateWeights weights;
  weights.Load(task);
  for (int h = 0; h < task.num_queries; ++h) LoadQuery(task, h, weights);
  weights.Compute(task);
  // Of the last head_dim_v that the thread has seen: to draw the signs takes as long as two rows.
  thread_local std::optional<Rotation> rotation;
  const int dim = task.index->shape.head_dim_v;
  if (!rotation.has_value() || rotation->dim() != dim) rotation.emplace(dim);
  for (int q = 0; q < task.num_queries; q += kQueries) {
    AnswerQueries(task, weights, *rotation, q, std::min(kQueries, task.num_queries - q));
  }
  for (int h = 0; h < task.num_queries; ++h) {
    const float mass = weights.mass(h);
    task.lse[h] = mass > 0.0f ? weights.offset(h) + std::log(mass) : kMinusInfinity;
  }
  if (task.missing_lse != nullptr) AddErrors(task, weights);
  if (task.num_value_means != nullptr) {
    *task.num_value_means = static_cast<int64_t>(weights.clusters().size());
  }
  if (task.num_super_value_means != nullptr) {
    *task.num_super_value_means = static_cast<int64_t>(weights.supers().size());
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
