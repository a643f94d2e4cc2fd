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

template <DType kType>
void ScoreTile(const ClusterIndex& index, int64_t first, const float* queries, int num_queries,
               PerQuery log_masses) {
  const std::byte* centroids[kTile];
  const std::byte* next[kTile];
  AddressCentroids(index, first, centroids);
  AddressCentroids(index, first + kTile, next);
  const int count = static_cast<int>(std::min<int64_t>(kTile, index.num_clusters - first));
  const Rows rows = {centroids, count, index.shape.head_dim_k, next};
  alignas(64) float logits[kQueries * kTile];
  WithVectorsFor(rows.dim, [&](auto d) HWY_ATTR {
    DotRows<kType>(d, rows, queries, num_queries, {logits, kTile});
  });
  for (int q = 0; q < num_queries; ++q) {
    for (int i = 0; i < count; ++i) {
      log_masses.data[q * log_masses.stride + i] =
          logits[q * kTile + i] + index.log_sizes[first + i];
    }
  }
}

template <DType kType>
void Score(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_k;
  alignas(64) float queries[kQueries * kHeadDimMax];
  for (int q = 0; q < task.num_queries; q += kQueries) {
    const int num_queries = std::min(kQueries, task.num_queries - q);
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      StorePaired<kType>(d, task.queries + q * dim, num_queries * dim, queries);
    });
    for (int64_t first = 0; first < index.num_clusters; first += kTile) {
      ScoreTile<kType>(
          index, first, queries, num_queries,
          {task.log_masses + q * task.log_masses_stride + first, task.log_masses_stride});
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
