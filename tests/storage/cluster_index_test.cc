#include "storage/cluster_index.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

struct Case {
  DType kv_dtype;
  StatisticsFormat statistics;
  int code_bits;
  int head_dim_k;
  int head_dim_v;
  int64_t num_clusters;
  int64_t num_tokens;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  constexpr std::pair<int, int> kDims[] = {{8, 8},    {64, 64},   {80, 96}, {96, 80},
                                           {128, 64}, {256, 256}, {8, 256}};
  constexpr std::pair<int64_t, int64_t> kSizes[] = {
      {1, 1}, {1, 64}, {7, 100}, {512, 8192}, {4096, 65536}};
  constexpr StatisticsFormat kFormats[] = {StatisticsFormat::kFloat32, StatisticsFormat::kInt8,
                                           StatisticsFormat::kInt4};
  for (const DType kv : kDTypes) {
    for (const StatisticsFormat statistics : kFormats) {
      const int code_bits = statistics == StatisticsFormat::kInt8 ? 4 : 1;
      for (const auto& [dim_k, dim_v] : kDims) {
        for (const auto& [clusters, tokens] : kSizes) {
          cases.push_back({kv, statistics, code_bits, dim_k, dim_v, clusters, tokens});
        }
      }
    }
  }
  return cases;
}

std::string Describe(const Case& c) {
  return std::string("kv ") + DTypeName(c.kv_dtype) + ", statistics " +
         StatisticsFormatName(c.statistics) + ", dims " + std::to_string(c.head_dim_k) + "x" +
         std::to_string(c.head_dim_v) + ", " + std::to_string(c.num_clusters) + " clusters, " +
         std::to_string(c.num_tokens) + " tokens";
}

TEST(ClusterIndexTest, SectionsAreAlignedDisjointAndInTheDocumentedOrder) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Describe(c));
    const int64_t num_supers = (c.num_clusters + 15) / 16;
    const ClusterIndexShape shape = {{c.head_dim_k, c.head_dim_v, c.kv_dtype},
                                     c.statistics,
                                     c.code_bits,
                                     c.num_clusters,
                                     num_supers,
                                     c.num_tokens};
    const int64_t bytes = ClusterIndexBytes(shape);
    // Only the header is written, so the place need not be real beyond it.
    alignas(64) static std::byte header[64];
    const MutableClusterIndex index = FormatClusterIndex(header, shape, 0);
    const auto at = [&](const void* section) {
      return reinterpret_cast<intptr_t>(section) - reinterpret_cast<intptr_t>(&header[0]);
    };
    const int64_t element = DTypeBytes(c.kv_dtype);
    std::vector<std::pair<int64_t, int64_t>> sections = {
        {0, sizeof(ClusterIndexHeader)},
        {at(index.offsets), (c.num_clusters + 1) * 4},
        {at(index.super_offsets), (num_supers + 1) * 4},
        {at(index.log_sizes), c.num_clusters * 4},
        {at(index.key_spreads), c.num_clusters * 4},
        {at(index.value_spreads), c.num_clusters * 4},
        {at(index.super_key_spreads), num_supers * 4},
        {at(index.super_value_spreads), num_supers * 4},
        {at(index.mean_key), c.head_dim_k * 4},
        {at(index.mean_value), c.head_dim_v * 4},
    };
    const auto add_means = [&](const MutableStatisticsRows& means, int64_t count) {
      sections.emplace_back(at(means.rows), count * means.row_bytes);
      EXPECT_EQ(means.scales == nullptr, c.statistics == StatisticsFormat::kFloat32);
      if (means.scales != nullptr) sections.emplace_back(at(means.scales), count * 4);
    };
    EXPECT_EQ(index.centroids.row_bytes, StatisticsRowBytes(c.statistics, c.head_dim_k));
    EXPECT_EQ(index.super_value_means.row_bytes,
              StatisticsRowBytes(SuperFormat(c.statistics), c.head_dim_v));
    add_means(index.centroids, c.num_clusters);
    add_means(index.value_means, c.num_clusters);
    add_means(index.super_centroids, num_supers);
    add_means(index.super_value_means, num_supers);
    sections.emplace_back(at(index.code_factors), c.num_tokens * 2);
    sections.emplace_back(at(index.codes),
                          c.num_tokens * c.code_bits * ((c.head_dim_k + 63) / 64) * 8);
    sections.emplace_back(at(index.positions), c.num_tokens * 2);
    sections.emplace_back(at(index.rows), c.num_tokens * (c.head_dim_k + c.head_dim_v) * element);
    int64_t end = 0;
    for (size_t i = 0; i < sections.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(sections[i].first % 64, 0);
      EXPECT_GE(sections[i].first, end);
      EXPECT_LT(sections[i].first - end, 64) << "more than alignment is lost";
      end = sections[i].first + sections[i].second;
    }
    EXPECT_LE(end, bytes);
    EXPECT_LT(bytes - end, 64);
    EXPECT_EQ(bytes % 64, 0);
    EXPECT_EQ(at(index.rows), ClusterIndexOverheadBytes(shape));
  }
}

TEST(ClusterIndexTest, HeaderSaysWhatTheExtentHolds) {
  alignas(64) std::byte extent[64];
  FormatClusterIndex(extent, {{80, 96, DType::kFloat16}, StatisticsFormat::kInt8, 2, 33, 3, 500},
                     int64_t{1} << 40);
  ClusterIndexHeader header;
  std::memcpy(&header, extent, sizeof(header));
  EXPECT_EQ(std::memcmp(extent, "WKIX", 4), 0);
  EXPECT_EQ(header.version, 3);
  EXPECT_EQ(header.kv_dtype, DType::kFloat16);
  EXPECT_EQ(header.statistics, StatisticsFormat::kInt8);
  EXPECT_EQ(header.code_bits, 2);
  EXPECT_EQ(header.num_supers, 3);
  EXPECT_EQ(header.num_clusters, 33u);
  EXPECT_EQ(header.num_tokens, 500u);
  EXPECT_EQ(header.head_dim_k, 80);
  EXPECT_EQ(header.head_dim_v, 96);
  EXPECT_EQ(header.position_begin, int64_t{1} << 40);
}

TEST(ClusterIndexTest, ClusterIsOneByteRangeOfKeysThenValues) {
  const ClusterIndexShape shape = {{16, 8, DType::kBFloat16}, StatisticsFormat::kInt4, 1, 4, 1, 70};
  const std::vector<uint32_t> offsets = {0, 1, 5, 6, 70};
  const int64_t bytes = ClusterIndexBytes(shape);
  std::unique_ptr<std::byte, decltype(&std::free)> extent(
      static_cast<std::byte*>(std::aligned_alloc(64, bytes)), &std::free);
  const MutableClusterIndex mutable_index = FormatClusterIndex(extent.get(), shape, 1000);
  std::memcpy(mutable_index.offsets, offsets.data(), offsets.size() * sizeof(uint32_t));
  for (int i = 0; i < 70; ++i) mutable_index.positions[i] = static_cast<uint16_t>(69 - i);
  const ClusterIndex index = ReadOnly(mutable_index);

  const std::byte* next = index.rows;
  for (int64_t c = 0; c < 4; ++c) {
    const int64_t size = offsets[c + 1] - offsets[c];
    const KvRange range = index.cluster_range(c);
    EXPECT_EQ(range.num_tokens, size);
    EXPECT_EQ(range.keys, next);
    EXPECT_EQ(range.values, next + size * 16 * 2);
    EXPECT_EQ(range.position_begin, 1000);
    EXPECT_EQ(range.positions, index.positions + offsets[c]);
    next += size * (16 + 8) * 2;
  }
  EXPECT_LE(next, extent.get() + bytes);
}

TEST(ClusterIndexTest, ReaderSeesTheSameSections) {
  alignas(64) std::byte extent[64];
  const MutableClusterIndex index = FormatClusterIndex(
      extent, {{24, 40, DType::kFloat32}, StatisticsFormat::kInt8, 4, 3, 2, 9}, 7);
  const ClusterIndex reader = ReadOnly(index);
  EXPECT_EQ(reader.shape.head_dim_k, 24);
  EXPECT_EQ(reader.shape.head_dim_v, 40);
  EXPECT_EQ(reader.shape.dtype, DType::kFloat32);
  EXPECT_EQ(reader.statistics, StatisticsFormat::kInt8);
  EXPECT_EQ(reader.code_bits, 4);
  EXPECT_EQ(reader.num_supers, 2);
  EXPECT_EQ(reader.position_begin, 7);
  EXPECT_EQ(reader.num_clusters, 3);
  EXPECT_EQ(reader.num_tokens, 9);
  EXPECT_EQ(reader.offsets, index.offsets);
  EXPECT_EQ(reader.log_sizes, index.log_sizes);
  EXPECT_EQ(reader.key_spreads, index.key_spreads);
  EXPECT_EQ(reader.super_offsets, index.super_offsets);
  EXPECT_EQ(reader.super_key_spreads, index.super_key_spreads);
  EXPECT_EQ(reader.super_value_spreads, index.super_value_spreads);
  EXPECT_EQ(reader.mean_key, index.mean_key);
  EXPECT_EQ(reader.value_spreads, index.value_spreads);
  EXPECT_EQ(reader.mean_value, index.mean_value);
  const auto same = [](const StatisticsRows& a, const MutableStatisticsRows& b) {
    return a.rows == b.rows && a.scales == b.scales && a.row_bytes == b.row_bytes;
  };
  EXPECT_TRUE(same(reader.centroids, index.centroids));
  EXPECT_TRUE(same(reader.value_means, index.value_means));
  EXPECT_TRUE(same(reader.super_centroids, index.super_centroids));
  EXPECT_TRUE(same(reader.super_value_means, index.super_value_means));
  EXPECT_EQ(reader.code_factors, index.code_factors);
  EXPECT_EQ(reader.codes, index.codes);
  EXPECT_EQ(reader.positions, index.positions);
  EXPECT_EQ(reader.rows, index.rows);
}

}  // namespace
}  // namespace wavekv
