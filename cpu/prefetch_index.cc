#include "cpu/prefetch_index.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/prefetch.h"
#include "storage/cluster_index.h"

namespace wavekv::cpu {
namespace {

// Machines find out by themselves that what follows is read in order.
constexpr int64_t kMost = 4096;

// Inlined, as all in cpu/prefetch.h.
template <typename T>
HWY_INLINE void Prefetch(const T* first, int64_t count) {
  PrefetchBytes(reinterpret_cast<const std::byte*>(first),
                std::min(count * static_cast<int64_t>(sizeof(T)), kMost));
}

HWY_INLINE void PrefetchRows(const StatisticsRows& rows, int64_t count) {
  Prefetch(rows.rows, count * rows.row_bytes);
  if (rows.scales != nullptr) Prefetch(rows.scales, count);
}

}  // namespace

void PrefetchFor(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  Prefetch(index.mean_key, index.shape.head_dim_k);
  Prefetch(index.super_offsets, index.num_supers + 1);
  PrefetchRows(index.super_centroids, index.num_supers);
  PrefetchRows(index.centroids, index.num_clusters);
  Prefetch(index.log_sizes, index.num_clusters);
  Prefetch(index.key_spreads, index.num_clusters);
}

void PrefetchFor(const ScoreTokensTask& task) {
  // For the others it asks itself.
  for (int64_t i = 0; i < std::min(kCodesAhead, task.num_clusters); ++i) {
    PrefetchCodes(*task.index, task.clusters[i]);
  }
}

void PrefetchFor(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  Prefetch(index.mean_value, index.shape.head_dim_v);
  Prefetch(index.super_offsets, index.num_supers + 1);
  Prefetch(index.offsets, index.num_clusters + 1);
  Prefetch(index.value_spreads, index.num_clusters);
  Prefetch(index.super_value_spreads, index.num_supers);
  PrefetchRows(index.super_value_means, index.num_supers);
  if (index.value_means.scales != nullptr) Prefetch(index.value_means.scales, index.num_clusters);
}

}  // namespace wavekv::cpu
