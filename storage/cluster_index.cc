#include "storage/cluster_index.h"

#include <cstring>

namespace wavekv {
namespace {

constexpr int64_t kSectionAlignment = 64;

int64_t AlignUp(int64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

// Byte offsets of means and of their scales.
struct RowsSection {
  int64_t rows, scales;
};

// Byte offsets of the sections, in the order the header file documents.
struct Sections {
  int64_t offsets, super_offsets, log_sizes, key_spreads, value_spreads, super_key_spreads,
      super_value_spreads, mean_key, mean_value;
  RowsSection centroids, value_means, super_centroids, super_value_means;
  int64_t code_factors, codes, positions, rows, end;
};

Sections Layout(const ClusterIndexShape& shape) {
  Sections at;
  int64_t next = AlignUp(sizeof(ClusterIndexHeader));
  const auto place = [&next](int64_t bytes) {
    const int64_t here = next;
    next = AlignUp(next + bytes);
    return here;
  };
  const auto place_rows = [&](int64_t count, int dim, StatisticsFormat format) {
    RowsSection section;
    section.rows = place(count * StatisticsRowBytes(format, dim));
    const bool scaled = format != StatisticsFormat::kFloat32;
    section.scales = scaled ? place(count * sizeof(float)) : 0;
    return section;
  };
  const int dim_k = shape.kv.head_dim_k, dim_v = shape.kv.head_dim_v;
  at.offsets = place((shape.num_clusters + 1) * sizeof(uint32_t));
  at.super_offsets = place((shape.num_supers + 1) * sizeof(uint32_t));
  at.log_sizes = place(shape.num_clusters * sizeof(float));
  at.key_spreads = place(shape.num_clusters * sizeof(float));
  at.value_spreads = place(shape.num_clusters * sizeof(float));
  at.super_key_spreads = place(shape.num_supers * sizeof(float));
  at.super_value_spreads = place(shape.num_supers * sizeof(float));
  at.mean_key = place(dim_k * sizeof(float));
  at.mean_value = place(dim_v * sizeof(float));
  const StatisticsFormat super_format = SuperFormat(shape.statistics);
  at.centroids = place_rows(shape.num_clusters, dim_k, shape.statistics);
  at.value_means = place_rows(shape.num_clusters, dim_v, shape.statistics);
  at.super_centroids = place_rows(shape.num_supers, dim_k, super_format);
  at.super_value_means = place_rows(shape.num_supers, dim_v, super_format);
  at.code_factors = place(shape.num_tokens * sizeof(uint16_t));
  at.codes = place(shape.num_tokens * shape.code_bits * CodeWords(dim_k) * sizeof(uint64_t));
  at.positions = place(shape.num_tokens * sizeof(uint16_t));
  at.rows = place(shape.num_tokens * (dim_k + dim_v) * DTypeBytes(shape.kv.dtype));
  at.end = next;
  return at;
}

StatisticsRows ReadOnly(const MutableStatisticsRows& rows) {
  return {rows.rows, rows.scales, rows.row_bytes};
}

}  // namespace

int64_t ClusterIndexBytes(const ClusterIndexShape& shape) { return Layout(shape).end; }

int64_t ClusterIndexOverheadBytes(const ClusterIndexShape& shape) { return Layout(shape).rows; }

ClusterIndexHeader HeaderOf(const ClusterIndexShape& shape, int64_t position_begin) {
  ClusterIndexHeader header;
  header.kv_dtype = shape.kv.dtype;
  header.statistics = shape.statistics;
  header.num_clusters = static_cast<uint32_t>(shape.num_clusters);
  header.num_tokens = static_cast<uint32_t>(shape.num_tokens);
  header.head_dim_k = static_cast<uint16_t>(shape.kv.head_dim_k);
  header.head_dim_v = static_cast<uint16_t>(shape.kv.head_dim_v);
  header.num_supers = static_cast<uint16_t>(shape.num_supers);
  header.code_bits = static_cast<uint16_t>(shape.code_bits);
  header.position_begin = position_begin;
  return header;
}

MutableClusterIndex FormatClusterIndex(std::byte* extent, const ClusterIndexShape& shape,
                                       int64_t position_begin) {
  const ClusterIndexHeader header = HeaderOf(shape, position_begin);
  std::memcpy(extent, &header, sizeof(header));
  return LocateClusterIndex(extent, shape, position_begin);
}

MutableClusterIndex LocateClusterIndex(std::byte* extent, const ClusterIndexShape& shape,
                                       int64_t position_begin) {
  const Sections at = Layout(shape);
  const auto floats = [extent](int64_t offset) {
    return reinterpret_cast<float*>(extent + offset);
  };
  const auto integers = [extent](int64_t offset) {
    return reinterpret_cast<uint32_t*>(extent + offset);
  };
  const auto shorts = [extent](int64_t offset) {
    return reinterpret_cast<uint16_t*>(extent + offset);
  };
  const auto means = [&](const RowsSection& section, int dim, StatisticsFormat format) {
    return MutableStatisticsRows{extent + section.rows,
                                 section.scales == 0 ? nullptr : floats(section.scales),
                                 StatisticsRowBytes(format, dim)};
  };
  MutableClusterIndex index;
  index.shape = shape.kv;
  index.statistics = shape.statistics;
  index.code_bits = shape.code_bits;
  index.position_begin = position_begin;
  index.num_clusters = shape.num_clusters;
  index.num_supers = shape.num_supers;
  index.num_tokens = shape.num_tokens;
  index.offsets = integers(at.offsets);
  index.super_offsets = integers(at.super_offsets);
  index.log_sizes = floats(at.log_sizes);
  index.key_spreads = floats(at.key_spreads);
  index.value_spreads = floats(at.value_spreads);
  index.super_key_spreads = floats(at.super_key_spreads);
  index.super_value_spreads = floats(at.super_value_spreads);
  index.mean_key = floats(at.mean_key);
  index.mean_value = floats(at.mean_value);
  index.centroids = means(at.centroids, shape.kv.head_dim_k, shape.statistics);
  index.value_means = means(at.value_means, shape.kv.head_dim_v, shape.statistics);
  const StatisticsFormat super_format = SuperFormat(shape.statistics);
  index.super_centroids = means(at.super_centroids, shape.kv.head_dim_k, super_format);
  index.super_value_means = means(at.super_value_means, shape.kv.head_dim_v, super_format);
  index.code_factors = shorts(at.code_factors);
  index.codes = reinterpret_cast<uint64_t*>(extent + at.codes);
  index.positions = shorts(at.positions);
  index.rows = extent + at.rows;
  return index;
}

const std::byte* ExtentOf(const ClusterIndex& index) {
  return reinterpret_cast<const std::byte*>(index.offsets) - AlignUp(sizeof(ClusterIndexHeader));
}

ClusterIndex ReadOnly(const MutableClusterIndex& index) {
  return {index.shape,
          index.statistics,
          index.code_bits,
          index.position_begin,
          index.num_clusters,
          index.num_supers,
          index.num_tokens,
          index.offsets,
          index.super_offsets,
          index.log_sizes,
          index.key_spreads,
          index.value_spreads,
          index.super_key_spreads,
          index.super_value_spreads,
          index.mean_key,
          index.mean_value,
          ReadOnly(index.centroids),
          ReadOnly(index.value_means),
          ReadOnly(index.super_centroids),
          ReadOnly(index.super_value_means),
          index.code_factors,
          index.codes,
          index.positions,
          index.rows};
}

}  // namespace wavekv
