#include "cpu/prefetch_index.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/targets.h"
#include "hwy/base.h"
#include "storage/cluster_index.h"

namespace wavekv::cpu {
namespace {

// Machines find out by themselves that what follows is read in order.
constexpr int64_t kMost = 4096;

// Inlined, or the compiler takes calls for idle and leaves them out.
template <typename T>
HWY_INLINE void Prefetch(const T* first, int64_t count) {
  const auto* const at = reinterpret_cast<const std::byte*>(first);
  const int64_t bytes = std::min(count * static_cast<int64_t>(sizeof(T)), kMost);
  const auto into_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % 64);
  for (int64_t i = -into_line; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
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
  const ClusterIndex& index = *task.index;
  // Of the others it asks for itself.
  constexpr int64_t kFirst = 16;
  for (int64_t i = 0; i < std::min(kFirst, task.num_clusters); ++i) {
    const int64_t cluster = task.clusters[i];
    const int64_t token = index.offsets[cluster], count = index.cluster_size(cluster);
    Prefetch(index.codes + token * index.code_words(), count * index.code_words());
    Prefetch(index.code_factors + token, count);
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
