#include "cpu/estimate_clusters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/estimate_errors.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/estimate_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Queries that share a pass over the clusters.
constexpr int kQueries = 16;

// Some clusters, answered together.
struct Batch {
  static constexpr int kClusters = RowTile::kRows;

  int count = 0;
  int64_t clusters[kClusters];

  // True when that fills the batch.
  bool Add(int64_t cluster) {
    clusters[count++] = cluster;
    return count == kClusters;
  }
};

// sums [num_queries, head_dim_v] += weights . value means of the batch.
template <DType kType>
void AddValueMeans(const ClusterIndex& index, const Batch& batch, PerQuery weights, int num_queries,
                   float* sums) {
  const int dim = index.shape.head_dim_v;
  const std::byte* means[Batch::kClusters];
  for (int i = 0; i < batch.count; ++i) {
    means[i] = index.value_means + batch.clusters[i] * dim * DTypeBytes(kType);
  }
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    AddWeightedRows<kType>(d, {means, batch.count, dim}, weights, num_queries, sums);
  });
}

// Mean of the values of the remainder zone's tokens, if it has any: the segment's sum without that
// of all other clusters.
template <DType kType>
void RemainderMean(const EstimateClustersTask& task, float* mean) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_v;
  alignas(64) float sum[kHeadDimMax] = {};  // of the others' values, paired order
  int64_t num_tokens = index.num_tokens;
  Batch batch;
  const auto flush = [&] {
    float sizes[Batch::kClusters];
    for (int i = 0; i < batch.count; ++i) {
      sizes[i] = static_cast<float>(index.cluster_size(batch.clusters[i]));
    }
    AddValueMeans<kType>(index, batch, {sizes, Batch::kClusters}, 1, sum);
    batch.count = 0;
  };
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (task.zones[i] == Zone::kRemainder) continue;
    num_tokens -= index.cluster_size(i);
    if (batch.Add(i)) flush();
  }
  if (num_tokens == 0) return;
  flush();
  WithVectorsFor(dim, [&](auto d) HWY_ATTR { LoadPaired<kType>(d, sum, dim, sum); });
  for (int i = 0; i < dim; ++i) {
    const double left = static_cast<double>(index.mean_value[i]) * index.num_tokens - sum[i];
    mean[i] = static_cast<float>(left / static_cast<double>(num_tokens));
  }
}

// An estimate is attention to value means, with log-masses for logits: the state of some queries.
struct Estimate {
  int num_queries;
  const float* log_masses;  // of the first of them
  OnlineSoftmax softmax[kQueries];
  float remainder[kQueries] = {};                       // sum of the remainder zone's weights
  alignas(64) float sums[kQueries * kHeadDimMax] = {};  // of weighted value means, paired order
};

template <DType kType>
void AddBatch(const EstimateClustersTask& task, const Batch& batch, Zone zone, Estimate& estimate) {
  const int dim = task.index->shape.head_dim_v;
  alignas(64) float weights[kQueries * Batch::kClusters];
  for (int q = 0; q < estimate.num_queries; ++q) {
    const float* log_masses = estimate.log_masses + q * task.log_masses_stride;
    float* row = weights + q * Batch::kClusters;
    for (int i = 0; i < batch.count; ++i) row[i] = log_masses[batch.clusters[i]];
    const OnlineSoftmax::Change change = estimate.softmax[q].Weigh(row, batch.count);
    if (change.shrink != 1.0f) ScaleRow(estimate.sums + q * dim, dim, change.shrink);
    estimate.remainder[q] *= change.shrink;
    if (zone == Zone::kRemainder) estimate.remainder[q] += change.mass;
  }
  if (zone == Zone::kEstimation) {
    AddValueMeans<kType>(*task.index, batch, {weights, Batch::kClusters}, estimate.num_queries,
                         estimate.sums);
  }
}

// Writes the results of the queries from `first` on.
template <DType kType>
void Finish(const EstimateClustersTask& task, int first, const float* remainder_mean,
            const Estimate& estimate) {
  const int dim = task.index->shape.head_dim_v;
  float* output = task.output + static_cast<int64_t>(first) * dim;
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    LoadPaired<kType>(d, estimate.sums, estimate.num_queries * dim, output);
  });
  for (int q = 0; q < estimate.num_queries; ++q, output += dim) {
    for (int i = 0; i < dim; ++i) output[i] += estimate.remainder[q] * remainder_mean[i];
    ScaleRow(output, dim, estimate.softmax[q].inverse_mass());
    task.lse[first + q] = estimate.softmax[q].lse();
  }
}

template <DType kType>
void EstimateQueries(const EstimateClustersTask& task, int first, int num_queries,
                     const float* remainder_mean) {
  Estimate estimate = {num_queries, task.log_masses + first * task.log_masses_stride};
  Batch batches[2];
  const auto flush = [&](Zone zone) {
    Batch& batch = batches[zone == Zone::kEstimation];
    AddBatch<kType>(task, batch, zone, estimate);
    batch.count = 0;
  };
  for (int64_t i = 0; i < task.index->num_clusters; ++i) {
    const Zone zone = task.zones[i];
    if (zone == Zone::kRetrieval) continue;
    if (batches[zone == Zone::kEstimation].Add(i)) flush(zone);
  }
  flush(Zone::kEstimation);
  flush(Zone::kRemainder);
  Finish<kType>(task, first, remainder_mean, estimate);
}

template <DType kType>
void EstimateAll(const EstimateClustersTask& task) {
  float remainder_mean[kHeadDimMax] = {};
  RemainderMean<kType>(task, remainder_mean);
  for (int q = 0; q < task.num_queries; q += kQueries) {
    EstimateQueries<kType>(task, q, std::min(kQueries, task.num_queries - q), remainder_mean);
  }
}

void EstimateClustersOf(const EstimateClustersTask& task) {
  switch (task.index->statistics_dtype) {
    case DType::kFloat32:
      return EstimateAll<DType::kFloat32>(task);
    case DType::kFloat16:
      return EstimateAll<DType::kFloat16>(task);
    case DType::kBFloat16:
      return EstimateAll<DType::kBFloat16>(task);
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
  EstimateErrors(task);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
