// The bytes of one sealed (segment, kv head): its clusters, their statistics and their rows.
//
// One contiguous extent, sections in this order, each starting at a multiple of 64 bytes:
//
//   header             ClusterIndexHeader
//   offsets            uint32 [num_clusters + 1]   first token of each cluster (CSR)
//   super_offsets      uint32 [num_supers + 1]     first cluster of each super-cluster (CSR)
//   log_sizes          fp32   [num_clusters]       ln(tokens in the cluster)
//   key_spreads        fp32   [num_clusters]       mean of |k - centroid|^2
//   value_spreads      fp32   [num_clusters]       mean of |v - value mean|^2
//   super_key_spreads  fp32   [num_supers]         mean of |k - centroid of the super-cluster|^2
//   super_value_spreads fp32  [num_supers]         mean over tokens of |value mean of the cluster -
//                                                  value mean of the super-cluster|^2
//   mean_key           fp32   [head_dim_k]         mean of the segment's keys
//   mean_value         fp32   [head_dim_v]         mean of the segment's values
//   centroids          rows   [num_clusters, head_dim_k]  true mean of the cluster's keys
//   value_means        rows   [num_clusters, head_dim_v]  true mean of the cluster's values
//   super_centroids    rows   [num_supers, head_dim_k]
//   super_value_means  rows   [num_supers, head_dim_v]
//   code_factors       fp16   [num_tokens]         scale of the token's code
//   codes              uint64 [num_tokens, code_bits, code_words]
//   positions          uint16 [num_tokens]         original position minus the segment's first
//   rows               kv dtype, per cluster: its K rows, then its V rows
//
// Means are rotated (compute/rotation.h) and stored as differences, so that few bits say much: a
// super-cluster's from the segment's mean (which is stored rotated too), a cluster's from that of
// its super-cluster as stored. "Rows" are fp32, or integers followed by one fp32 scale per row in a
// section of its own (storage/statistics_row.h), of 8 bits for super-clusters. Spreads refer to the
// means as stored.
//
// The code of a token stands for its distance d = R(k - centroid), R the rotation: element j in
// code_bits bits, u_j = floor(d_j / step) + 2^(code_bits - 1) kept within [0, 2^code_bits); word w
// of plane p holds bit p of u_(64 w) to u_(64 w + 63), bits past head_dim_k are 0. The token's d is
// near code_factor * (u - (2^code_bits - 1) / 2).
//
// A cluster is one byte range (one transfer), a super-cluster a run of clusters, and everything a
// query reads to decide precedes the rows.
#ifndef WAVEKV_STORAGE_CLUSTER_INDEX_H_
#define WAVEKV_STORAGE_CLUSTER_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "storage/kv_range.h"
#include "storage/statistics_row.h"
#include "wavekv/types.h"

namespace wavekv {

// Positions inside a segment are 16 bits.
inline constexpr int64_t kSegmentTokensMax = 65536;

struct ClusterIndexHeader {
  static constexpr uint32_t kMagic = 0x58494b57;  // "WKIX", little endian
  static constexpr uint16_t kVersion = 3;

  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  DType kv_dtype = DType::kBFloat16;
  StatisticsFormat statistics = StatisticsFormat::kInt4;
  uint32_t num_clusters = 0;
  uint32_t num_tokens = 0;
  uint16_t head_dim_k = 0;
  uint16_t head_dim_v = 0;
  uint16_t num_supers = 0;
  uint16_t code_bits = 0;
  int64_t position_begin = 0;
};
static_assert(sizeof(ClusterIndexHeader) == 32, "the header is part of the stored format");

// What fixes the size of an index.
struct ClusterIndexShape {
  KvShape kv;
  StatisticsFormat statistics = StatisticsFormat::kInt4;
  int code_bits = 1;  // 1, 2 or 4
  int64_t num_clusters = 0;
  int64_t num_supers = 0;
  int64_t num_tokens = 0;
};

// Words of one plane of a token's code.
constexpr int64_t CodeWords(int head_dim_k) { return (head_dim_k + 63) / 64; }

// Bits of a code's element, where 0 asks for as many as suit the length of keys.
constexpr int ResolveCodeBits(int code_bits, int head_dim_k) {
  return code_bits != 0 ? code_bits : head_dim_k <= 64 ? 2 : 1;
}

// The step of a code relative to the root mean square of a distance's elements: what keeps most of
// normally distributed ones.
constexpr double CodeStep(int code_bits) {
  return code_bits == 1 ? 1.0 : code_bits == 2 ? 0.9957 : 0.335;
}

// Rows of means, with their scales.
template <typename Byte, typename Float>
struct BasicStatisticsRows {
  Byte* rows = nullptr;
  Float* scales = nullptr;  // nullptr for fp32
  int64_t row_bytes = 0;

  constexpr Byte* row(int64_t i) const { return rows + i * row_bytes; }
  constexpr float scale(int64_t i) const { return scales == nullptr ? 1.0f : scales[i]; }
};
using StatisticsRows = BasicStatisticsRows<const std::byte, const float>;
using MutableStatisticsRows = BasicStatisticsRows<std::byte, float>;

// Typed pointers into one sealed extent. `Byte` is const std::byte for readers.
//
// Threads: a sealed index never changes; any number of readers.
template <bool kMutable>
struct BasicClusterIndex {
  template <typename T>
  using Ptr = std::conditional_t<kMutable, T*, const T*>;
  using Rows = std::conditional_t<kMutable, MutableStatisticsRows, StatisticsRows>;

  KvShape shape;
  StatisticsFormat statistics = StatisticsFormat::kInt4;
  int code_bits = 1;
  int64_t position_begin = 0;
  int64_t num_clusters = 0;
  int64_t num_supers = 0;
  int64_t num_tokens = 0;
  Ptr<uint32_t> offsets = nullptr;
  Ptr<uint32_t> super_offsets = nullptr;
  Ptr<float> log_sizes = nullptr;
  Ptr<float> key_spreads = nullptr;
  Ptr<float> value_spreads = nullptr;
  Ptr<float> super_key_spreads = nullptr;
  Ptr<float> super_value_spreads = nullptr;
  Ptr<float> mean_key = nullptr;
  Ptr<float> mean_value = nullptr;
  Rows centroids;
  Rows value_means;
  Rows super_centroids;
  Rows super_value_means;
  Ptr<uint16_t> code_factors = nullptr;
  Ptr<uint64_t> codes = nullptr;
  Ptr<uint16_t> positions = nullptr;
  Ptr<std::byte> rows = nullptr;

  constexpr int64_t key_row_bytes() const { return shape.head_dim_k * DTypeBytes(shape.dtype); }
  constexpr int64_t value_row_bytes() const { return shape.head_dim_v * DTypeBytes(shape.dtype); }
  constexpr int64_t cluster_size(int64_t cluster) const {
    return offsets[cluster + 1] - offsets[cluster];
  }
  // Tokens of a super-cluster.
  constexpr int64_t super_size(int64_t super) const {
    return offsets[super_offsets[super + 1]] - offsets[super_offsets[super]];
  }
  constexpr ClusterIndexShape full_shape() const {
    return {shape, statistics, code_bits, num_clusters, num_supers, num_tokens};
  }
  constexpr int64_t code_words() const {
    return code_bits * CodeWords(shape.head_dim_k);
  }  // of a token

  // First byte of the cluster's K rows and of its V rows.
  constexpr Ptr<std::byte> cluster_keys(int64_t cluster) const {
    return rows + offsets[cluster] * (key_row_bytes() + value_row_bytes());
  }
  constexpr Ptr<std::byte> cluster_values(int64_t cluster) const {
    return cluster_keys(cluster) + cluster_size(cluster) * key_row_bytes();
  }

  constexpr KvRange cluster_range(int64_t cluster) const {
    return {cluster_keys(cluster), cluster_values(cluster), cluster_size(cluster), position_begin,
            positions + offsets[cluster]};
  }
};

using ClusterIndex = BasicClusterIndex<false>;
using MutableClusterIndex = BasicClusterIndex<true>;

// Bytes of the extent that holds such an index, and of the part before the rows.
int64_t ClusterIndexBytes(const ClusterIndexShape& shape);
int64_t ClusterIndexOverheadBytes(const ClusterIndexShape& shape);

// On a GPU the extent of an index begins with a copy of its ClusterIndex, for kernels.
inline constexpr int64_t kIndexRecordBytes = 512;
static_assert(sizeof(ClusterIndex) <= kIndexRecordBytes);

// Writes the header into `extent` (64-byte aligned, ClusterIndexBytes() long) and returns pointers
// to its sections, whose contents the caller fills in.
MutableClusterIndex FormatClusterIndex(std::byte* extent, const ClusterIndexShape& shape,
                                       int64_t position_begin);

// The same in two halves, for memory that only a device can write: what to write first, and where
// the sections lie.
ClusterIndexHeader HeaderOf(const ClusterIndexShape& shape, int64_t position_begin);
MutableClusterIndex LocateClusterIndex(std::byte* extent, const ClusterIndexShape& shape,
                                       int64_t position_begin);

// Where the extent of an index begins.
const std::byte* ExtentOf(const ClusterIndex& index);

// The same index for readers.
ClusterIndex ReadOnly(const MutableClusterIndex& index);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_CLUSTER_INDEX_H_
