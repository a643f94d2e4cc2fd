#include "index/segment_builder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "compute/rotation.h"
#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "storage/float16.h"
#include "tests/index/naive_backend.h"
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

void Write(absl::Span<const KvRange> rows, const Clustering& clustering,
           const MutableClusterIndex& out) {
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  const absl::Status status = WriteClusterIndex(rows, clustering, *backend, out);
  EXPECT_TRUE(status.ok()) << status;
}

// A sealed index with the memory it lies in.
struct Built {
  Clustering clustering;
  std::vector<std::byte> memory;
  std::byte* extent = nullptr;
  int64_t num_bytes = 0;
  ClusterIndex index;
};

Built Write(const Rows& rows, Clustering clustering, StatisticsFormat statistics, int code_bits) {
  Built built;
  built.clustering = std::move(clustering);
  const ClusterIndexShape shape = IndexShape(built.clustering, rows.shape, statistics, code_bits);
  built.num_bytes = ClusterIndexBytes(shape);
  built.memory.resize(built.num_bytes + 64);
  void* aligned = built.memory.data();
  size_t space = built.memory.size();
  built.extent = static_cast<std::byte*>(std::align(64, built.num_bytes, aligned, space));
  std::memset(built.extent, 0, built.num_bytes);  // padding is not written
  const MutableClusterIndex out = FormatClusterIndex(built.extent, shape, kPositionBegin);
  Write(rows.ranges, built.clustering, out);
  built.index = ReadOnly(out);
  return built;
}

Built Build(const Rows& rows, StatisticsFormat statistics, int num_threads = 1, int code_bits = 1) {
  const auto executor = MakeThreadPool(num_threads);
  const auto backend = MakeCpuBackend(executor.get());
  auto clustering = ClusterRows(rows.ranges, rows.shape, {}, 16, *backend);
  EXPECT_TRUE(clustering.ok()) << clustering.status();
  return Write(rows, *std::move(clustering), statistics, code_bits);
}

struct Case {
  DType kv_dtype;
  StatisticsFormat statistics;
  int head_dim_k;
  int head_dim_v;
};

class SegmentBuilderTest : public ::testing::TestWithParam<Case> {
 protected:
  KvShape shape() const {
    return {GetParam().head_dim_k, GetParam().head_dim_v, GetParam().kv_dtype};
  }
};

INSTANTIATE_TEST_SUITE_P(Types, SegmentBuilderTest,
                         ::testing::Values(Case{DType::kBFloat16, StatisticsFormat::kFloat32, 64,
                                                64},
                                           Case{DType::kFloat16, StatisticsFormat::kInt8, 80, 128},
                                           Case{DType::kFloat32, StatisticsFormat::kInt4, 128, 96},
                                           Case{DType::kBFloat16, StatisticsFormat::kInt4, 256, 8},
                                           Case{DType::kBFloat16, StatisticsFormat::kInt8, 8, 64}),
                         [](const auto& test) {
                           return std::string(DTypeName(test.param.kv_dtype)) + "With" +
                                  StatisticsFormatName(test.param.statistics) + "Statistics" +
                                  std::to_string(test.param.head_dim_k) + "x" +
                                  std::to_string(test.param.head_dim_v);
                         });

TEST_P(SegmentBuilderTest, RowsAreThoseOfTheClusteringByteForByte) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built built = Build(rows, GetParam().statistics);
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

// The stored means of one side, keys or values, in the coordinates of the rows, in double.
struct StoredMeans {
  const ClusterIndex& index;
  const StatisticsRows& clusters;
  const StatisticsRows& supers;
  const float* segment_mean;
  int dim;

  std::vector<double> OfSuper(int64_t super) const { return Plain(RotatedSuper(super)); }

  std::vector<double> OfCluster(int64_t cluster) const {
    int64_t super = 0;
    while (cluster >= index.super_offsets[super + 1]) ++super;
    std::vector<double> mean = RotatedSuper(super);
    Add(clusters, cluster, index.statistics, mean);
    return Plain(mean);
  }

 private:
  std::vector<double> RotatedSuper(int64_t super) const {
    std::vector<double> mean(segment_mean, segment_mean + dim);
    Add(supers, super, SuperFormat(index.statistics), mean);
    return mean;
  }

  void Add(const StatisticsRows& rows, int64_t i, StatisticsFormat format,
           std::vector<double>& mean) const {
    std::vector<float> stored(dim);
    LoadStatisticsRow(rows.row(i), dim, format, rows.scale(i), stored.data());
    for (int j = 0; j < dim; ++j) mean[j] += stored[j];
  }

  std::vector<double> Plain(std::vector<double> mean) const {
    Rotation(dim).ApplyInverse(mean.data());
    return mean;
  }
};

StoredMeans KeyMeans(const ClusterIndex& index) {
  return {index, index.centroids, index.super_centroids, index.mean_key, index.shape.head_dim_k};
}
StoredMeans ValueMeans(const ClusterIndex& index) {
  return {index, index.value_means, index.super_value_means, index.mean_value,
          index.shape.head_dim_v};
}

// The mean of rows, and their mean squared distance from a point.
struct RowStatistics {
  RowStatistics(const std::byte* rows, int64_t count, int dim, DType dtype,
                const std::vector<double>& point)
      : mean(dim, 0.0) {
    for (int64_t i = 0; i < count; ++i) {
      for (int j = 0; j < dim; ++j) {
        const double x = LoadElement(rows, dtype, i * dim + j);
        mean[j] += x / static_cast<double>(count);
        spread += (x - point[j]) * (x - point[j]) / static_cast<double>(count);
        squared += x * x / static_cast<double>(count);
      }
    }
    for (int j = 0; j < dim; ++j) error += (mean[j] - point[j]) * (mean[j] - point[j]);
  }

  std::vector<double> mean;
  double spread = 0.0;   // about the point
  double squared = 0.0;  // mean squared length
  double error = 0.0;    // squared distance of mean and point
};

// Squared error that storing a mean may add, relative to what it is taken from.
double StorageError(StatisticsFormat statistics) {
  return statistics == StatisticsFormat::kFloat32 ? 1e-12
         : statistics == StatisticsFormat::kInt8  ? 2e-4
                                                  : 0.03;
}

TEST_P(SegmentBuilderTest, StatisticsAreThoseOfTheStoredRows) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built built = Build(rows, GetParam().statistics);
  const ClusterIndex& index = built.index;
  const int dim_k = index.shape.head_dim_k, dim_v = index.shape.head_dim_v;
  const double allowed = StorageError(GetParam().statistics);
  for (int64_t c = 0; c < index.num_clusters; ++c) {
    const int64_t size = index.cluster_size(c);
    const RowStatistics keys(index.cluster_keys(c), size, dim_k, GetParam().kv_dtype,
                             KeyMeans(index).OfCluster(c));
    const RowStatistics values(index.cluster_values(c), size, dim_v, GetParam().kv_dtype,
                               ValueMeans(index).OfCluster(c));
    EXPECT_LE(keys.error, allowed * keys.squared);
    EXPECT_LE(values.error, allowed * values.squared);
    EXPECT_NEAR(index.key_spreads[c], keys.spread, 1e-5 * keys.squared);
    EXPECT_NEAR(index.value_spreads[c], values.spread, 1e-5 * values.squared);
    EXPECT_FLOAT_EQ(index.log_sizes[c], std::log(static_cast<float>(size)));
  }
}

TEST_P(SegmentBuilderTest, SuperClustersSumUpTheirClusters) {
  testing::Random random(7);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 2100);
  const Built built = Build(rows, GetParam().statistics);
  const ClusterIndex& index = built.index;
  const int dim_k = index.shape.head_dim_k, dim_v = index.shape.head_dim_v;
  const double allowed = StorageError(GetParam().statistics);
  ASSERT_GT(index.num_supers, 3);
  EXPECT_EQ(index.super_offsets[0], 0u);
  EXPECT_EQ(index.super_offsets[index.num_supers], index.num_clusters);
  for (int64_t s = 0; s < index.num_supers; ++s) {
    const int64_t first = index.super_offsets[s], last = index.super_offsets[s + 1];
    ASSERT_GT(last, first);
    EXPECT_LE(last - first, 32);
    const std::vector<double> centroid = KeyMeans(index).OfSuper(s);
    std::vector<std::byte> keys, values;
    for (int64_t c = first; c < last; ++c) {
      const int64_t size = index.cluster_size(c);
      keys.insert(keys.end(), index.cluster_keys(c),
                  index.cluster_keys(c) + size * index.key_row_bytes());
      values.insert(values.end(), index.cluster_values(c),
                    index.cluster_values(c) + size * index.value_row_bytes());
    }
    const int64_t size = index.super_size(s);
    const RowStatistics key_statistics(keys.data(), size, dim_k, GetParam().kv_dtype, centroid);
    const RowStatistics value_statistics(values.data(), size, dim_v, GetParam().kv_dtype,
                                         ValueMeans(index).OfSuper(s));
    EXPECT_LE(key_statistics.error, allowed * key_statistics.squared);
    EXPECT_LE(value_statistics.error, allowed * value_statistics.squared);
    EXPECT_NEAR(index.super_key_spreads[s], key_statistics.spread, 1e-5 * key_statistics.squared);
    double value_spread = 0.0;
    for (int64_t c = first; c < last; ++c) {
      const std::vector<double> of_cluster = ValueMeans(index).OfCluster(c);
      const std::vector<double> of_super = ValueMeans(index).OfSuper(s);
      for (int d = 0; d < dim_v; ++d) {
        value_spread += index.cluster_size(c) * std::pow(of_cluster[d] - of_super[d], 2);
      }
    }
    EXPECT_NEAR(index.super_value_spreads[s], value_spread / size, 1e-5 * value_statistics.squared);
  }
}

TEST_P(SegmentBuilderTest, CodesStandForTheDistancesFromTheCentroid) {
  testing::Random random(8);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const int dim = GetParam().head_dim_k;
  const Rotation rotation(dim);
  for (const int bits : {1, 2, 4}) {
    const Built built = Build(rows, GetParam().statistics, 1, bits);
    const ClusterIndex& index = built.index;
    double cosines = 0.0;
    int64_t num_distances = 0;
    for (int64_t c = 0; c < index.num_clusters; ++c) {
      const std::vector<double> centroid = KeyMeans(index).OfCluster(c);
      for (int64_t i = 0; i < index.cluster_size(c); ++i) {
        std::vector<double> distance(dim);
        double squared = 0.0;
        for (int j = 0; j < dim; ++j) {
          distance[j] =
              LoadElement(index.cluster_keys(c), GetParam().kv_dtype, i * dim + j) - centroid[j];
          squared += distance[j] * distance[j];
        }
        if (squared < 1e-6) continue;  // nothing but the rounding of the means
        rotation.Apply(distance.data());
        const int64_t token = index.offsets[c] + i;
        const uint64_t* words = index.codes + token * index.code_words();
        double product = 0.0, code_squared = 0.0;
        for (int j = 0; j < dim; ++j) {
          int u = 0;
          for (int p = 0; p < bits; ++p) {
            u |= static_cast<int>(words[p * CodeWords(dim) + j / 64] >> (j % 64) & 1) << p;
          }
          const double element = u - ((1 << bits) - 1) / 2.0;
          product += element * distance[j];
          code_squared += element * element;
        }
        const double cosine = product / std::sqrt(squared * code_squared);
        cosines += cosine;
        ++num_distances;
        const double factor = Float16ToFloat32(index.code_factors[token]);
        EXPECT_NEAR(factor, std::sqrt(squared / code_squared / cosine), 2e-3 * factor);
      }
    }
    const double mean_cosine = cosines / static_cast<double>(num_distances);
    EXPECT_GT(mean_cosine, bits == 1 ? 0.75 : bits == 2 ? 0.91 : 0.98) << bits;
  }
}

TEST_P(SegmentBuilderTest, EstimatedMassNeverExceedsTrueMass) {
  // Of means that are stored as they are: rounded ones may err in either direction.
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700, 2.0f);
  const Built built = Build(rows, StatisticsFormat::kFloat32);
  const ClusterIndex& index = built.index;
  const int dim = index.shape.head_dim_k;
  for (int trial = 0; trial < 50; ++trial) {
    const std::vector<float> query =
        random.Gaussians(dim, 3.0f * static_cast<float>(trial) / (50.0f * std::sqrt(1.0f * dim)));
    for (int64_t c = 0; c < index.num_clusters; ++c) {
      const std::vector<double> centroid = KeyMeans(index).OfCluster(c);
      double score = 0.0, magnitude = 0.0;
      for (int j = 0; j < dim; ++j) {
        score += query[j] * centroid[j];
        magnitude += std::abs(query[j] * centroid[j]);
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
      EXPECT_LE(estimate, mass * (1.0 + 1e-6 * (1.0 + magnitude))) << "cluster " << c;
    }
  }
}

TEST_P(SegmentBuilderTest, BytesDoNotDependOnThreads) {
  testing::Random random(4);
  WAVEKV_TRACE_SEED(random);
  const Rows rows(random, shape(), 700);
  const Built one = Build(rows, GetParam().statistics, 1);
  for (const int num_threads : {1, 2, 4}) {
    const Built again = Build(rows, GetParam().statistics, num_threads);
    ASSERT_EQ(again.num_bytes, one.num_bytes);
    EXPECT_EQ(std::memcmp(again.extent, one.extent, one.num_bytes), 0) << num_threads;
  }
}

// Bits in which the codes of two indexes of the same clustering differ, of all.
double DifferentBits(const ClusterIndex& a, const ClusterIndex& b) {
  int64_t count = 0;
  for (int64_t w = 0; w < a.num_tokens * a.code_words(); ++w) {
    count += std::popcount(a.codes[w] ^ b.codes[w]);
  }
  return static_cast<double>(count) /
         static_cast<double>(a.num_tokens * a.code_bits * a.shape.head_dim_k);
}

TEST(SegmentBuilderLimitsTest, RowsOfAnyMagnitudeHaveTheSameStatisticsButForTheMagnitude) {
  for (const int code_bits : {1, 2, 4}) {
    testing::Random random(9);
    const Rows rows(random, {80, 64, DType::kFloat32}, 500);
    const Built built = Build(rows, StatisticsFormat::kInt4, 1, code_bits);
    // The smallest and the largest are computed in double, the others in fp32.
    for (const float scale : {0x1p-50f, 0x1p-30f, 0x1p-20f, 0x1p40f, 0x1p52f}) {
      SCOPED_TRACE(scale);
      testing::Random again(9);
      const Rows scaled(again, rows.shape, rows.num_tokens, scale);
      const Built other = Write(scaled, built.clustering, StatisticsFormat::kInt4, code_bits);
      const auto expect_scaled = [](float got, float want, double by) {
        EXPECT_NEAR(got / by, want, 2e-4 * std::abs(want) + 1e-9);
      };
      const double squared = double{scale} * scale;
      for (int64_t c = 0; c < built.index.num_clusters; ++c) {
        expect_scaled(other.index.key_spreads[c], built.index.key_spreads[c], squared);
        expect_scaled(other.index.value_spreads[c], built.index.value_spreads[c], squared);
        expect_scaled(other.index.centroids.scale(c), built.index.centroids.scale(c), scale);
      }
      for (int64_t s = 0; s < built.index.num_supers; ++s) {
        expect_scaled(other.index.super_key_spreads[s], built.index.super_key_spreads[s], squared);
      }
      for (int j = 0; j < 80; ++j) {
        EXPECT_NEAR(other.index.mean_key[j] / scale, built.index.mean_key[j], 1e-5);
      }
      EXPECT_LT(DifferentBits(built.index, other.index), 1e-3);
    }
  }
}

TEST(SegmentBuilderLimitsTest, OneTokenMakesOneClusterOfNoSpread) {
  testing::Random random(5);
  const Rows rows(random, {16, 8, DType::kBFloat16}, 1);
  const Built built = Build(rows, StatisticsFormat::kInt4);
  const ClusterIndex& index = built.index;
  ASSERT_EQ(index.num_clusters, 1);
  ASSERT_EQ(index.num_supers, 1);
  EXPECT_EQ(index.log_sizes[0], 0.0f);
  EXPECT_EQ(index.key_spreads[0], 0.0f);
  EXPECT_EQ(index.super_key_spreads[0], 0.0f);
  EXPECT_EQ(index.code_factors[0], 0);
}

TEST(SegmentBuilderLimitsTest, TheLastPositionOfTheLargestSegmentFits) {
  constexpr int64_t kTokens = 4;
  std::vector<std::byte> bytes(kTokens * 8 * sizeof(float));
  const uint16_t positions[] = {0, 1, 65534, 65535};
  const KvRange range = {bytes.data(), bytes.data(), kTokens, 7, positions};
  const Clustering clustering = {{0, 2, 4}, {0, 3, 1, 2}, {0, 2}};
  const ClusterIndexShape shape = {
      {8, 8, DType::kFloat32}, StatisticsFormat::kInt4, 1, 2, 1, kTokens};
  std::vector<std::byte> memory(ClusterIndexBytes(shape) + 64);
  void* aligned = memory.data();
  size_t space = memory.size();
  std::byte* extent = static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
  const MutableClusterIndex out = FormatClusterIndex(extent, shape, 7);
  Write({&range, 1}, clustering, out);
  EXPECT_EQ(out.positions[0], 0);
  EXPECT_EQ(out.positions[1], 65535);
  EXPECT_EQ(out.positions[2], 1);
  EXPECT_EQ(out.positions[3], 65534);
}

TEST(SegmentBuilderLimitsTest, StatisticsOfTheLargestKeysAreFinite) {
  for (const StatisticsFormat statistics :
       {StatisticsFormat::kFloat32, StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    std::vector<float> keys(4 * 8, 3e38f);
    for (int i = 8; i < 24; ++i) keys[i] = -3e38f;
    const std::vector<std::byte> bytes = testing::Encode(keys, DType::kFloat32);
    const KvRange range = {bytes.data(), bytes.data(), 4, 0, nullptr};
    const Clustering clustering = {{0, 2, 4}, {0, 1, 2, 3}, {0, 1, 2}};
    const ClusterIndexShape shape = {{8, 8, DType::kFloat32}, statistics, 1, 2, 2, 4};
    std::vector<std::byte> memory(ClusterIndexBytes(shape) + 64);
    void* aligned = memory.data();
    size_t space = memory.size();
    std::byte* extent = static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
    const MutableClusterIndex out = FormatClusterIndex(extent, shape, 0);
    Write({&range, 1}, clustering, out);
    for (int64_t c = 0; c < 2; ++c) {
      std::vector<float> centroid(8);
      LoadStatisticsRow(out.centroids.row(c), 8, statistics, out.centroids.scale(c),
                        centroid.data());
      for (const float x : centroid) EXPECT_TRUE(std::isfinite(x));
      EXPECT_TRUE(std::isfinite(out.key_spreads[c]));
      EXPECT_TRUE(std::isfinite(out.super_key_spreads[c]));
    }
    for (int t = 0; t < 4; ++t) {
      EXPECT_TRUE(std::isfinite(Float16ToFloat32(out.code_factors[t])));
    }
  }
}

// Counts how often those who build make room for others.
class CountingBackend final : public NaiveBackend {
 public:
  absl::Status WriteIndex(absl::Span<const WriteIndexTask> tasks) override {
    return cpu_->WriteIndex(tasks);
  }
  void Yield() override { ++yields; }

  int64_t yields = 0;

 private:
  const std::unique_ptr<Executor> executor_ = MakeThreadPool(1);
  const std::unique_ptr<Backend> cpu_ = MakeCpuBackend(executor_.get());
};

TEST(SegmentBuilderYieldTest, LongWorkBetweenOperationsIsCutInPieces) {
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kTokens = 4096;
  const Rows rows(random, {8, 8, DType::kFloat32}, kTokens);
  CountingBackend backend;
  auto clustering = ClusterRows(rows.ranges, rows.shape, {}, 16, backend);
  ASSERT_TRUE(clustering.ok()) << clustering.status();
  // Rounds try cuts; the rest of the work is operations.
  EXPECT_GE(backend.yields, clustering->num_clusters() / 8);

  const ClusterIndexShape shape =
      IndexShape(*clustering, rows.shape, StatisticsFormat::kInt4, /*code_bits=*/1);
  std::vector<std::byte> memory(ClusterIndexBytes(shape) + 64);
  void* aligned = memory.data();
  size_t space = memory.size();
  auto* const extent = static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
  backend.yields = 0;
  ASSERT_TRUE(WriteClusterIndex(rows.ranges, *clustering, backend,
                                FormatClusterIndex(extent, shape, kPositionBegin))
                  .ok());
  EXPECT_GE(backend.yields, clustering->num_supers() + clustering->num_clusters() / 16);
}

}  // namespace
}  // namespace wavekv
