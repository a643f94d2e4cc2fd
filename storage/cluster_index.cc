#include "storage/cluster_index.h"

#include <cstring>

namespace wavekv {
namespace {

constexpr int64_t kSectionAlignment = 64;

int64_t AlignUp(int64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

// Byte offsets of the sections, in the order the header file documents.
struct Sections {
  int64_t offsets, log_sizes, key_spreads, key_radii, value_spreads, mean_value, centroids,
      value_means, positions, rows, end;
};

Sections Layout(const KvShape& shape, DType statistics_dtype, int64_t num_clusters,
                int64_t num_tokens) {
  const int64_t statistic_bytes = DTypeBytes(statistics_dtype);
  Sections at;
  int64_t next = AlignUp(sizeof(ClusterIndexHeader));
  const auto place = [&next](int64_t bytes) {
    const int64_t here = next;
    next = AlignUp(next + bytes);
    return here;
  };
  at.offsets = place((num_clusters + 1) * sizeof(uint32_t));
  at.log_sizes = place(num_clusters * sizeof(float));
  at.key_spreads = place(num_clusters * sizeof(float));
  at.key_radii = place(num_clusters * sizeof(float));
  at.value_spreads = place(num_clusters * sizeof(float));
  at.mean_value = place(shape.head_dim_v * sizeof(float));
  at.centroids = place(num_clusters * shape.head_dim_k * statistic_bytes);
  at.value_means = place(num_clusters * shape.head_dim_v * statistic_bytes);
  at.positions = place(num_tokens * sizeof(uint16_t));
  at.rows = place(num_tokens * (shape.head_dim_k + shape.head_dim_v) * DTypeBytes(shape.dtype));
  at.end = next;
  return at;
}

}  // namespace

int64_t ClusterIndexBytes(const KvShape& shape, DType statistics_dtype, int64_t num_clusters,
                          int64_t num_tokens) {
  return Layout(shape, statistics_dtype, num_clusters, num_tokens).end;
}

int64_t ClusterIndexOverheadBytes(const KvShape& shape, DType statistics_dtype,
                                  int64_t num_clusters, int64_t num_tokens) {
  return Layout(shape, statistics_dtype, num_clusters, num_tokens).rows;
}

MutableClusterIndex FormatClusterIndex(std::byte* extent, const KvShape& shape,
                                       DType statistics_dtype, int64_t position_begin,
                                       int64_t num_clusters, int64_t num_tokens) {
  ClusterIndexHeader header;
  header.kv_dtype = shape.dtype;
  header.statistics_dtype = statistics_dtype;
  header.num_clusters = static_cast<uint32_t>(num_clusters);
  header.num_tokens = static_cast<uint32_t>(num_tokens);
  header.head_dim_k = static_cast<uint16_t>(shape.head_dim_k);
  header.head_dim_v = static_cast<uint16_t>(shape.head_dim_v);
  header.position_begin = position_begin;
  std::memcpy(extent, &header, sizeof(header));

  const Sections at = Layout(shape, statistics_dtype, num_clusters, num_tokens);
  const auto floats = [extent](int64_t offset) {
    return reinterpret_cast<float*>(extent + offset);
  };
  MutableClusterIndex index;
  index.shape = shape;
  index.statistics_dtype = statistics_dtype;
  index.position_begin = position_begin;
  index.num_clusters = num_clusters;
  index.num_tokens = num_tokens;
  index.offsets = reinterpret_cast<uint32_t*>(extent + at.offsets);
  index.log_sizes = floats(at.log_sizes);
  index.key_spreads = floats(at.key_spreads);
  index.key_radii = floats(at.key_radii);
  index.value_spreads = floats(at.value_spreads);
  index.mean_value = floats(at.mean_value);
  index.centroids = extent + at.centroids;
  index.value_means = extent + at.value_means;
  index.positions = reinterpret_cast<uint16_t*>(extent + at.positions);
  index.rows = extent + at.rows;
  return index;
}

ClusterIndex ReadOnly(const MutableClusterIndex& index) {
  return {index.shape,         index.statistics_dtype, index.position_begin,
          index.num_clusters,  index.num_tokens,       index.offsets,
          index.log_sizes,     index.key_spreads,      index.key_radii,
          index.value_spreads, index.mean_value,       index.centroids,
          index.value_means,   index.positions,        index.rows};
}

}  // namespace wavekv
