#include "index/segment_builder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "storage/float16.h"
#include "tests/testing/random.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int64_t kPositionBegin = 100000;

// Rows of one kv head in two ranges, as a segment that grew over two blocks has them; the second
// names its positions, with gaps.
struct Rows {
  Rows(testing::Random& random, const KvShape& kv_shape, int64_t tokens, float scale = 1.0f)
      : shape(kv_shape), num_tokens(tokens) {
    std::vector<float> key_values = random.Gaussians(num_tokens * shape.head_dim_k, scale);
    for (float& x : key_values) x += scale;
    keys = testing::Encode(key_values, shape.dtype);
    values = testing::Encode(random.Gaussians(num_tokens * shape.head_dim_v, scale), shape.dtype);
    const int64_t split = num_tokens / 3;
    for (int64_t i = 0; i < num_tokens; ++i) positions.push_back(i < split ? i : 2 * i);
    for (int64_t i = split; i < num_tokens; ++i) tail.push_back(static_cast<uint16_t>(2 * i - 7));
    ranges = {{keys.data(), values.data(), split, kPositionBegin, nullptr},
              {key(split), value(split), num_tokens - split, kPositionBegin + 7, tail.data()}};
  }

  const std::byte* key(int64_t token) const {
    return keys.data() + token * shape.head_dim_k * DTypeBytes(shape.dtype);
  }
  const std::byte* value(int64_t token) const {
    return values.data() + token * shape.head_dim_v * DTypeBytes(shape.dtype);
  }

  KvShape shape;
  int64_t num_tokens;
  std::vector<std::byte> keys;
  std::vector<std::byte> values;
  std::vector<int64_t> positions;  // relative to kPositionBegin
  std::vector<uint16_t> tail;
  std::vector<KvRange> ranges;
};

// A sealed index with the memory it lies in.
struct Built {
  Clustering clustering;
  std::vector<std::byte> memory;
  std::byte* extent = nullptr;
  int64_t num_bytes = 0;
  ClusterIndex index;
};

Built Build(const Rows& rows, DType statistics_dtype, int num_threads = 1) {
  const auto executor = MakeThreadPool(num_threads);
  const auto backend = MakeCpuBackend(executor.get());
  Built built;
  auto clustering = ClusterRows(rows.ranges, rows.shape, {}, *backend);
  EXPECT_TRUE(clustering.ok()) << clustering.status();
  built.clustering = *std::move(clustering);
  const int64_t num_clusters = built.clustering.num_clusters();
  built.num_bytes = ClusterIndexBytes(rows.shape, statistics_dtype, num_clusters, rows.num_tokens);
  built.memory.resize(built.num_bytes + 64);
  void* aligned = built.memory.data();
  size_t space = built.memory.size();
  built.extent = static_cast<std::byte*>(std::align(64, built.num_bytes, aligned, space));
  const MutableClusterIndex out = FormatClusterIndex(built.extent, rows.shape, statistics_dtype,
                                                     kPositionBegin, num_clusters, rows.num_tokens);
  WriteClusterIndex(rows.ranges, built.clustering, out);
  built.index = ReadOnly(out);
  return built;
}

struct Case {
  DType kv_dtype;
  DType statistics_dtype;
  int head_dim_k;
  int head_dim_v;
};

class SegmentBuilderTest : public ::testing::TestWithParam<Case> {
 protected:
  KvShape shape() const {
    return {GetParam().head_dim_k, GetParam().head_dim_v, GetParam().kv_dtype};
  }

  // Half a unit in the last place of the statistics dtype, relative.
  double StatisticsRounding() const {
    switch (GetParam().statistics_dtype) {
      case DType::kFloat32:
        return 0x1p-24;
      case DType::kFloat16:
        return 0x1p-11;
      case DType::kBFloat16:
        return 0x1p-8;
    }
    return 0.0;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, SegmentBuilderTest,
                         ::testing::Values(Case{DType::kBFloat16, DType::kFloat32, 64, 64},
                                           Case{DType::kFloat16, DType::kFloat32, 80, 128},
                                           Case{DType::kFloat32, DType::kFloat32, 128, 96},
                                           Case{DType::kBFloat16, DType::kBFloat16, 256, 8},
                                           Case{DType::kBFloat16, DType::kFloat16, 8, 64}),
                         [](const auto& test) {
                           return std::string(DTypeName(test.param.kv_dtype)) + "With" +
                                  DTypeName(test.param.statistics_dtype) + "Statistics" +
                                  std::to_string(test.param.head_dim_k) + "x" +
                                  std::to_string(test.param.head_dim_v);
                         });

TEST_P(SegmentBuilderTest, RowsAreThoseOfTheClusteringByteForByte) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built built = Build(rows, GetParam().statistics_dtype);
  const ClusterIndex& index = built.index;
  ASSERT_EQ(index.num_clusters, built.clustering.num_clusters());
  for (int64_t c = 0; c < index.num_clusters; ++c) {
    ASSERT_EQ(index.offsets[c], built.clustering.offsets[c]);
    const KvRange range = index.cluster_range(c);
    for (int64_t i = 0; i < range.num_tokens; ++i) {
      const int64_t token = built.clustering.members[index.offsets[c] + i];
      EXPECT_EQ(range.position_begin + range.positions[i], kPositionBegin + rows.positions[token]);
      EXPECT_EQ(std::memcmp(range.keys + i * index.key_row_bytes(), rows.key(token),
                            index.key_row_bytes()),
                0);
      EXPECT_EQ(std::memcmp(range.values + i * index.value_row_bytes(), rows.value(token),
                            index.value_row_bytes()),
                0);
    }
  }
  EXPECT_EQ(index.offsets[index.num_clusters], rows.num_tokens);
}

TEST_P(SegmentBuilderTest, StatisticsAreThoseOfTheStoredRows) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built built = Build(rows, GetParam().statistics_dtype);
  const ClusterIndex& index = built.index;
  // Of one side (keys or values) of one cluster: the mean, and spread and radius about `stored`.
  struct Statistics {
    double spread = 0.0;
    double radius = 0.0;
  };
  const auto check = [&](const std::byte* data, int64_t size, int dim, const std::byte* stored,
                         int64_t cluster) {
    Statistics statistics;
    std::vector<double> square(size, 0.0);
    for (int j = 0; j < dim; ++j) {
      double mean = 0.0;
      double magnitude = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        const double x = LoadElement(data, GetParam().kv_dtype, i * dim + j);
        mean += x / static_cast<double>(size);
        magnitude = std::max(magnitude, std::abs(x));
      }
      const double centre = LoadElement(stored, GetParam().statistics_dtype, cluster * dim + j);
      EXPECT_NEAR(centre, mean, magnitude * StatisticsRounding() * 1.01);
      for (int64_t i = 0; i < size; ++i) {
        const double difference = LoadElement(data, GetParam().kv_dtype, i * dim + j) - centre;
        square[i] += difference * difference;
      }
    }
    for (const double s : square) statistics.spread += s / static_cast<double>(size);
    statistics.radius = std::sqrt(*std::max_element(square.begin(), square.end()));
    return statistics;
  };
  std::vector<double> mean_value(index.shape.head_dim_v, 0.0);
  for (int64_t c = 0; c < index.num_clusters; ++c) {
    const int64_t size = index.cluster_size(c);
    const Statistics keys =
        check(index.cluster_keys(c), size, index.shape.head_dim_k, index.centroids, c);
    const Statistics values =
        check(index.cluster_values(c), size, index.shape.head_dim_v, index.value_means, c);
    EXPECT_FLOAT_EQ(index.key_spreads[c], static_cast<float>(keys.spread));
    EXPECT_FLOAT_EQ(index.key_radii[c], static_cast<float>(keys.radius));
    EXPECT_FLOAT_EQ(index.value_spreads[c], static_cast<float>(values.spread));
    EXPECT_FLOAT_EQ(index.log_sizes[c], std::log(static_cast<float>(size)));
    for (int j = 0; j < index.shape.head_dim_v; ++j) {
      for (int64_t i = 0; i < size; ++i) {
        mean_value[j] += LoadElement(index.cluster_values(c), GetParam().kv_dtype,
                                     i * index.shape.head_dim_v + j) /
                         static_cast<double>(index.num_tokens);
      }
    }
  }
  for (int j = 0; j < index.shape.head_dim_v; ++j) {
    EXPECT_NEAR(index.mean_value[j], mean_value[j], 1e-6);
  }
}

TEST_P(SegmentBuilderTest, EstimatedMassNeverExceedsTrueMass) {
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700, 2.0f);
  const Built built = Build(rows, GetParam().statistics_dtype);
  const ClusterIndex& index = built.index;
  const int dim = index.shape.head_dim_k;
  for (int trial = 0; trial < 50; ++trial) {
    const std::vector<float> query =
        random.Gaussians(dim, 3.0f * static_cast<float>(trial) / (50.0f * std::sqrt(1.0f * dim)));
    double estimate_of_all = 0.0;
    double mass_of_all = 0.0;
    double slack_of_all = 0.0;
    for (int64_t c = 0; c < index.num_clusters; ++c) {
      double score = 0.0;
      double rounding = 0.0;  // of q . c, from the rounding of c
      for (int j = 0; j < dim; ++j) {
        const double x = LoadElement(index.centroids, GetParam().statistics_dtype, c * dim + j);
        score += query[j] * x;
        rounding += std::abs(query[j] * x) * StatisticsRounding();
      }
      double mass = 0.0;
      for (int64_t i = 0; i < index.cluster_size(c); ++i) {
        double logit = 0.0;
        for (int j = 0; j < dim; ++j) {
          logit += query[j] * LoadElement(index.cluster_keys(c), GetParam().kv_dtype, i * dim + j);
        }
        mass += std::exp(logit);
      }
      const double estimate = std::exp(score + static_cast<double>(index.log_sizes[c]));
      // ln(n) is a float of at most 8, so it is off by less than 2^-21.
      const double slack = estimate * (std::exp(rounding + 0x1p-21) - 1.0);
      EXPECT_LE(estimate, mass + slack) << "cluster " << c;
      estimate_of_all += estimate;
      mass_of_all += mass;
      slack_of_all += slack;
    }
    EXPECT_LE(estimate_of_all, mass_of_all + slack_of_all);
  }
}

TEST_P(SegmentBuilderTest, BytesDoNotDependOnThreads) {
  testing::Random random(4);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built one = Build(rows, GetParam().statistics_dtype, 1);
  for (const int num_threads : {1, 2, 4}) {
    const Built again = Build(rows, GetParam().statistics_dtype, num_threads);
    ASSERT_EQ(again.num_bytes, one.num_bytes);
    EXPECT_EQ(std::memcmp(again.extent, one.extent, one.num_bytes), 0) << num_threads;
  }
}

TEST(SegmentBuilderLimitsTest, OneTokenMakesOneClusterOfNoSpread) {
  testing::Random random(5);
  const Rows rows(random, {16, 8, DType::kBFloat16}, 1);
  const Built built = Build(rows, DType::kFloat32);
  const ClusterIndex& index = built.index;
  ASSERT_EQ(index.num_clusters, 1);
  EXPECT_EQ(index.log_sizes[0], 0.0f);
  EXPECT_EQ(index.key_spreads[0], 0.0f);
  EXPECT_EQ(index.key_radii[0], 0.0f);
}

TEST(SegmentBuilderLimitsTest, TheLastPositionOfTheLargestSegmentFits) {
  constexpr int64_t kTokens = 4;
  std::vector<std::byte> bytes(kTokens * 8 * sizeof(float));
  const uint16_t positions[] = {0, 1, 65534, 65535};
  const KvRange range = {bytes.data(), bytes.data(), kTokens, 7, positions};
  const Clustering clustering = {{0, 2, 4}, {0, 3, 1, 2}};
  const KvShape shape = {8, 8, DType::kFloat32};
  std::vector<std::byte> memory(ClusterIndexBytes(shape, DType::kFloat32, 2, kTokens) + 64);
  void* aligned = memory.data();
  size_t space = memory.size();
  std::byte* extent = static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
  const MutableClusterIndex out = FormatClusterIndex(extent, shape, DType::kFloat32, 7, 2, kTokens);
  WriteClusterIndex({&range, 1}, clustering, out);
  EXPECT_EQ(out.positions[0], 0);
  EXPECT_EQ(out.positions[1], 65535);
  EXPECT_EQ(out.positions[2], 1);
  EXPECT_EQ(out.positions[3], 65534);
}

TEST(SegmentBuilderLimitsTest, StatisticsTooSmallForTheKeysSaturate) {
  std::vector<float> row(8, 1e30f);
  const std::vector<std::byte> bytes = testing::Encode(row, DType::kFloat32);
  const KvRange range = {bytes.data(), bytes.data(), 1, 0, nullptr};
  const KvShape shape = {8, 8, DType::kFloat32};
  const Clustering clustering = {{0, 1}, {0}};
  std::vector<std::byte> memory(ClusterIndexBytes(shape, DType::kFloat16, 1, 1) + 64);
  void* aligned = memory.data();
  size_t space = memory.size();
  std::byte* extent = static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
  const MutableClusterIndex out = FormatClusterIndex(extent, shape, DType::kFloat16, 0, 1, 1);
  WriteClusterIndex({&range, 1}, clustering, out);
  EXPECT_EQ(LoadElement(out.centroids, DType::kFloat16, 0), 65504.0f);
  EXPECT_TRUE(std::isfinite(out.key_spreads[0]));
  EXPECT_TRUE(std::isfinite(out.key_radii[0]));
}

}  // namespace
}  // namespace wavekv
