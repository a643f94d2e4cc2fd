// The bytes of one sealed (segment, kv head): its clusters, their statistics and their rows.
//
// One contiguous extent, sections in this order, each starting at a multiple of 64 bytes:
//
//   header         ClusterIndexHeader
//   offsets        uint32 [num_clusters + 1]  first token of each cluster, in cluster order (CSR)
//   log_sizes      fp32   [num_clusters]      ln(tokens in the cluster)
//   key_spreads    fp32   [num_clusters]      mean of |k - centroid|^2
//   key_radii      fp32   [num_clusters]      max of |k - centroid|
//   value_spreads  fp32   [num_clusters]      mean of |v - value mean|^2
//   mean_value     fp32   [head_dim_v]        mean of the segment's values
//   centroids      statistics dtype [num_clusters, head_dim_k]  true mean of the cluster's keys
//   value_means    statistics dtype [num_clusters, head_dim_v]  true mean of the cluster's values
//   positions      uint16 [num_tokens]        original position minus the segment's first
//   rows           kv dtype, per cluster: its K rows, then its V rows
//
// So a cluster is one byte range (one transfer), and everything a query reads to decide precedes
// the rows.
#ifndef WAVEKV_STORAGE_CLUSTER_INDEX_H_
#define WAVEKV_STORAGE_CLUSTER_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "storage/kv_range.h"
#include "wavekv/types.h"

namespace wavekv {

// Positions inside a segment are 16 bits.
inline constexpr int64_t kSegmentTokensMax = 65536;

struct ClusterIndexHeader {
  static constexpr uint32_t kMagic = 0x58494b57;  // "WKIX", little endian
  static constexpr uint16_t kVersion = 1;

  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  DType kv_dtype = DType::kBFloat16;
  DType statistics_dtype = DType::kFloat32;
  uint32_t num_clusters = 0;
  uint32_t num_tokens = 0;
  uint16_t head_dim_k = 0;
  uint16_t head_dim_v = 0;
  uint32_t reserved = 0;
  int64_t position_begin = 0;
};
static_assert(sizeof(ClusterIndexHeader) == 32, "the header is part of the stored format");

// Typed pointers into one sealed extent. `Byte` is const std::byte for readers.
//
// Threads: a sealed index never changes; any number of readers.
template <bool kMutable>
struct BasicClusterIndex {
  template <typename T>
  using Ptr = std::conditional_t<kMutable, T*, const T*>;

  KvShape shape;
  DType statistics_dtype = DType::kFloat32;
  int64_t position_begin = 0;
  int64_t num_clusters = 0;
  int64_t num_tokens = 0;
  Ptr<uint32_t> offsets = nullptr;
  Ptr<float> log_sizes = nullptr;
  Ptr<float> key_spreads = nullptr;
  Ptr<float> key_radii = nullptr;
  Ptr<float> value_spreads = nullptr;
  Ptr<float> mean_value = nullptr;
  Ptr<std::byte> centroids = nullptr;
  Ptr<std::byte> value_means = nullptr;
  Ptr<uint16_t> positions = nullptr;
  Ptr<std::byte> rows = nullptr;

  int64_t key_row_bytes() const { return shape.head_dim_k * DTypeBytes(shape.dtype); }
  int64_t value_row_bytes() const { return shape.head_dim_v * DTypeBytes(shape.dtype); }
  int64_t cluster_size(int64_t cluster) const { return offsets[cluster + 1] - offsets[cluster]; }

  // First byte of the cluster's K rows and of its V rows.
  Ptr<std::byte> cluster_keys(int64_t cluster) const {
    return rows + offsets[cluster] * (key_row_bytes() + value_row_bytes());
  }
  Ptr<std::byte> cluster_values(int64_t cluster) const {
    return cluster_keys(cluster) + cluster_size(cluster) * key_row_bytes();
  }

  KvRange cluster_range(int64_t cluster) const {
    return {cluster_keys(cluster), cluster_values(cluster), cluster_size(cluster), position_begin,
            positions + offsets[cluster]};
  }
};

using ClusterIndex = BasicClusterIndex<false>;
using MutableClusterIndex = BasicClusterIndex<true>;

// Bytes of the extent that holds such an index, and of the part before the rows.
int64_t ClusterIndexBytes(const KvShape& shape, DType statistics_dtype, int64_t num_clusters,
                          int64_t num_tokens);
int64_t ClusterIndexOverheadBytes(const KvShape& shape, DType statistics_dtype,
                                  int64_t num_clusters, int64_t num_tokens);

// Writes the header into `extent` (64-byte aligned, ClusterIndexBytes() long) and returns pointers
// to its sections, whose contents the caller fills in.
MutableClusterIndex FormatClusterIndex(std::byte* extent, const KvShape& shape,
                                       DType statistics_dtype, int64_t position_begin,
                                       int64_t num_clusters, int64_t num_tokens);

// The same index for readers.
ClusterIndex ReadOnly(const MutableClusterIndex& index);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_CLUSTER_INDEX_H_
