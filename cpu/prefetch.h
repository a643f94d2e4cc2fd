// Asks for memory before it is needed. Inlined all of it, or the compiler takes calls of functions
// that only prefetch for idle and leaves them out.
#ifndef WAVEKV_CPU_PREFETCH_H_
#define WAVEKV_CPU_PREFETCH_H_

#include <cstddef>
#include <cstdint>

#include "cpu/targets.h"
#include "hwy/base.h"
#include "storage/cluster_index.h"

namespace wavekv::cpu {

// Asks for bytes to be brought into the second-level cache: the first level's miss buffers are too
// few to cover DRAM latency at full bandwidth.
HWY_INLINE void PrefetchBytes(const std::byte* from, int64_t bytes) {
  const auto into_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(from) % 64);
  for (int64_t i = -into_line; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// Asks for the factors of a cluster's codes: two lines, all that up to 33 take.
HWY_INLINE void PrefetchFactors(const ClusterIndex& index, int64_t cluster) {
  const uint16_t* const first = index.code_factors + index.offsets[cluster];
  __builtin_prefetch(first, 0, 2);
  __builtin_prefetch(first + index.cluster_size(cluster) - 1, 0, 2);
}

// Asks for the codes of a cluster's tokens and their factors.
HWY_INLINE void PrefetchCodes(const ClusterIndex& index, int64_t cluster) {
  const auto words = static_cast<int64_t>(index.code_words());
  PrefetchBytes(reinterpret_cast<const std::byte*>(index.codes + index.offsets[cluster] * words),
                index.cluster_size(cluster) * words * static_cast<int64_t>(sizeof(uint64_t)));
  PrefetchFactors(index, cluster);
}

// Clusters whose codes are asked for before they are needed: they lie apart, and to wait for each
// of them takes longer than to look all of its tokens up.
inline constexpr int64_t kCodesAhead = 16;

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_PREFETCH_H_
