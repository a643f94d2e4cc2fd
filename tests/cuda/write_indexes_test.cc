#include "cuda/write_indexes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "compute/rotation.h"
#include "gtest/gtest.h"
#include "index/segment_builder.h"
#include "storage/float16.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr int64_t kPositionBegin = 1000;
constexpr StatisticsFormat kAllFormats[] = {StatisticsFormat::kFloat32, StatisticsFormat::kInt8,
                                            StatisticsFormat::kInt4};

// An index in host memory.
struct HostIndex {
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };

  explicit HostIndex(const ClusterIndexShape& index_shape) : shape(index_shape) {
    extent.reset(static_cast<std::byte*>(std::aligned_alloc(64, ClusterIndexBytes(shape))));
    std::memset(extent.get(), 0xff, ClusterIndexBytes(shape));
    index = LocateClusterIndex(extent.get(), shape, kPositionBegin);
  }

  ClusterIndexShape shape;
  std::unique_ptr<std::byte, Free> extent;
  MutableClusterIndex index;
};

// What makes the rows of a test: groups of alike ones, all around an offset.
struct RowsOptions {
  float scale = 1.0f;
  float offset = 3.0f;
  float noise = 0.3f;
};

// The rows of one side of a kv head.
struct SideRows {
  SideRows(Random& random, int64_t tokens, int row_dim, DType row_dtype, const RowsOptions& options)
      : dim(row_dim), dtype(row_dtype) {
    const int64_t num_groups = std::max<int64_t>(tokens / 40, 1);
    const std::vector<float> offset = random.Gaussians(dim, options.offset);
    const std::vector<float> groups = random.Gaussians(num_groups * dim);
    std::vector<float> numbers;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t group = random.Integer(0, num_groups - 1);
      for (int d = 0; d < dim; ++d) {
        numbers.push_back(options.scale *
                          (offset[d] + groups[group * dim + d] + random.Gaussian(options.noise)));
      }
    }
    bytes = Encode(numbers, dtype);
  }

  int64_t row_bytes() const { return dim * DTypeBytes(dtype); }
  double Element(int64_t token, int d) const {
    return LoadElement(bytes.data(), dtype, token * dim + d);
  }

  int dim;
  DType dtype;
  std::vector<std::byte> bytes;
};

// A task on the device, and what the CPU makes of the same.
struct Problem {
  int64_t num_tokens = 0;
  Clustering clustering;
  std::vector<SideRows> sides;  // keys, values
  std::unique_ptr<HostIndex> expected;
  std::byte* extent = nullptr;
  GpuWriteIndexTask task;
};

Clustering EqualClusters(int64_t num_tokens, int64_t cluster_tokens, int64_t super_clusters) {
  Clustering clustering;
  for (int64_t t = 0; t < num_tokens; t += cluster_tokens) {
    clustering.offsets.push_back(static_cast<uint32_t>(t));
  }
  clustering.offsets.push_back(static_cast<uint32_t>(num_tokens));
  for (int64_t c = 0; c < clustering.num_clusters(); c += super_clusters) {
    clustering.super_offsets.push_back(static_cast<uint32_t>(c));
  }
  clustering.super_offsets.push_back(static_cast<uint32_t>(clustering.num_clusters()));
  clustering.members.resize(num_tokens);
  std::iota(clustering.members.rbegin(), clustering.members.rend(), 0);
  return clustering;
}

// The stored means of one side in the coordinates of the rows, in double.
struct StoredMeans {
  StoredMeans(const MutableClusterIndex& out, bool keys)
      : index(out),
        clusters(keys ? out.centroids : out.value_means),
        supers(keys ? out.super_centroids : out.super_value_means),
        mean(keys ? out.mean_key : out.mean_value),
        dim(keys ? out.shape.head_dim_k : out.shape.head_dim_v),
        rotation(dim) {}

  std::vector<double> OfSuper(int64_t super) const { return Back(Rotated(super, -1)); }
  std::vector<double> OfCluster(int64_t super, int64_t cluster) const {
    return Back(Rotated(super, cluster));
  }
  // Of a cluster minus of its super-cluster.
  double SquaredLength(int64_t cluster) const {
    std::vector<double> row(dim, 0.0);
    Add(clusters, cluster, index.statistics, row);
    return std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
  }

  std::vector<double> Rotated(int64_t super, int64_t cluster) const {
    std::vector<double> row(mean, mean + dim);
    Add(supers, super, SuperFormat(index.statistics), row);
    if (cluster >= 0) Add(clusters, cluster, index.statistics, row);
    return row;
  }

 private:
  void Add(const MutableStatisticsRows& rows, int64_t i, StatisticsFormat format,
           std::vector<double>& to) const {
    std::vector<float> stored(dim);
    LoadStatisticsRow(rows.row(i), dim, format, rows.scale(i), stored.data());
    for (int d = 0; d < dim; ++d) to[d] += stored[d];
  }
  std::vector<double> Back(std::vector<double> row) const {
    rotation.ApplyInverse(row.data());
    return row;
  }

  const MutableClusterIndex& index;
  const MutableStatisticsRows& clusters;
  const MutableStatisticsRows& supers;
  const float* mean;
  int dim;
  Rotation rotation;
};

class WriteIndexesOnGpu : public GpuFixture {
 protected:
  Problem MakeProblem(Random& random, const KvShape& shape, StatisticsFormat statistics, int bits,
                      int64_t num_tokens, const RowsOptions& options,
                      const Clustering* clustering = nullptr) {
    Problem problem;
    problem.num_tokens = num_tokens;
    for (const int dim : {shape.head_dim_k, shape.head_dim_v}) {
      problem.sides.emplace_back(random, num_tokens, dim, shape.dtype, options);
    }
    const SideRows &keys = problem.sides[0], &values = problem.sides[1];
    const KvRange range = {keys.bytes.data(), values.bytes.data(), num_tokens, kPositionBegin,
                           nullptr};
    if (clustering != nullptr) {
      problem.clustering = *clustering;
    } else {
      auto made = ClusterRows({&range, 1}, shape, {}, /*clusters_per_super=*/16, cpu());
      EXPECT_TRUE(made.ok()) << made.status();
      problem.clustering = *std::move(made);
    }
    const ClusterIndexShape index_shape = IndexShape(problem.clustering, shape, statistics, bits);
    problem.expected = std::make_unique<HostIndex>(index_shape);
    const absl::Status written =
        WriteClusterIndex({&range, 1}, problem.clustering, cpu(), problem.expected->index);
    EXPECT_TRUE(written.ok()) << written;

    std::vector<TokenRow> rows(num_tokens);
    const std::byte* const device_keys = Upload(keys.bytes);
    const std::byte* const device_values = Upload(values.bytes);
    for (int64_t t = 0; t < num_tokens; ++t) {
      rows[t] = {device_keys + t * keys.row_bytes(), device_values + t * values.row_bytes()};
    }
    problem.extent = Poison<std::byte>(ClusterIndexBytes(index_shape));
    problem.task = {Upload(rows), Upload(problem.clustering.offsets),
                    Upload(problem.clustering.members), Upload(problem.clustering.super_offsets),
                    LocateClusterIndex(problem.extent, index_shape, kPositionBegin)};
    return problem;
  }

  std::vector<HostIndex> Run(const std::vector<Problem>& problems, bool with_empty_task = false) {
    TaskBounds bounds;
    std::vector<GpuWriteIndexTask> tasks;
    for (const Problem& problem : problems) {
      tasks.push_back(problem.task);
      if (with_empty_task) tasks.emplace_back();
      bounds.shape = problem.task.out.shape;
      bounds.statistics = problem.task.out.statistics;
      bounds.code_bits = problem.task.out.code_bits;
      bounds.num_items = std::max(bounds.num_items, problem.num_tokens);
    }
    const int64_t bytes = operations().write_index_scratch_bytes(bounds);
    EXPECT_EQ(bytes % 256, 0);
    const auto count = static_cast<int64_t>(tasks.size());
    Expect(operations().write_indexes({Upload(tasks), count}, bounds,
                                      Poison<std::byte>(bytes * count), stream()));
    std::vector<HostIndex> got;
    for (const Problem& problem : problems) {
      HostIndex& index = got.emplace_back(problem.expected->shape);
      const int64_t extent_bytes = ClusterIndexBytes(index.shape);
      const std::vector<std::byte> copy = Download(problem.extent, extent_bytes);
      std::memcpy(index.extent.get(), copy.data(), extent_bytes);
    }
    return got;
  }

  // Whatever does not depend on rounding.
  void ExpectSameRows(const Problem& problem, const MutableClusterIndex& got) {
    const MutableClusterIndex& want = problem.expected->index;
    const auto expect_same = [](const auto* a, const auto* b, int64_t count, const char* what) {
      EXPECT_EQ(std::memcmp(a, b, count * sizeof(*a)), 0) << what;
    };
    expect_same(got.offsets, want.offsets, want.num_clusters + 1, "offsets");
    expect_same(got.super_offsets, want.super_offsets, want.num_supers + 1, "super_offsets");
    expect_same(got.positions, want.positions, want.num_tokens, "positions");
    expect_same(got.rows, want.rows,
                want.num_tokens * (want.key_row_bytes() + want.value_row_bytes()), "rows");
    for (int64_t c = 0; c < want.num_clusters; ++c) {
      EXPECT_NEAR(got.log_sizes[c], want.log_sizes[c], 1e-6f * (1.0f + want.log_sizes[c]));
    }
  }

  // That means are stored about as well as the CPU's, and that spreads are those about the means as
  // stored. magnitude: what the rows' elements are like.
  void ExpectSameStatistics(const Problem& problem, const MutableClusterIndex& got, bool is_keys,
                            double magnitude) {
    const MutableClusterIndex& want = problem.expected->index;
    const SideRows& rows = problem.sides[is_keys ? 0 : 1];
    const int dim = rows.dim;
    const StoredMeans means(got, is_keys), expected(want, is_keys);
    const double tiny = 1e-6 * magnitude, tiny_squared = dim * tiny * tiny;
    const auto allowed = [&](double spread) {
      return 1e-4 * spread + std::sqrt(spread * tiny_squared) + tiny_squared;
    };
    for (int d = 0; d < dim; ++d) {
      const float* const mean = is_keys ? got.mean_key : got.mean_value;
      ASSERT_NEAR(mean[d], (is_keys ? want.mean_key : want.mean_value)[d], 3 * tiny) << d;
    }
    const float* const spreads = is_keys ? got.key_spreads : got.value_spreads;
    const float* const super_spreads = is_keys ? got.super_key_spreads : got.super_value_spreads;
    for (int64_t s = 0; s < want.num_supers; ++s) {
      SCOPED_TRACE(s);
      const std::vector<double> of_super = means.OfSuper(s);
      double super_spread = 0.0, error_sum = 0.0, expected_error_sum = 0.0;
      std::vector<double> super_sum(dim);
      for (int64_t c = want.super_offsets[s]; c < want.super_offsets[s + 1]; ++c) {
        const std::vector<double> of_cluster = means.OfCluster(s, c);
        const std::vector<double> expected_of_cluster = expected.OfCluster(s, c);
        const auto size = static_cast<double>(want.cluster_size(c));
        double spread = 0.0, error = 0.0, expected_error = 0.0;
        for (int d = 0; d < dim; ++d) {
          double sum = 0.0;
          for (int64_t t = want.offsets[c]; t < want.offsets[c + 1]; ++t) {
            const double x = rows.Element(problem.clustering.members[t], d);
            sum += x;
            spread += std::pow(x - of_cluster[d], 2);
            if (is_keys) super_spread += std::pow(x - of_super[d], 2);
          }
          super_sum[d] += sum;
          error += std::pow(sum / size - of_cluster[d], 2);
          expected_error += std::pow(sum / size - expected_of_cluster[d], 2);
        }
        if (!is_keys) super_spread += size * means.SquaredLength(c);
        error_sum += error;
        expected_error_sum += expected_error;
        spread /= size;
        ASSERT_NEAR(spreads[c], spread, allowed(spread)) << c;
      }
      // Where the stored mean of a super-cluster is one off, its clusters' have other errors.
      EXPECT_LE(error_sum, 1.1 * expected_error_sum + 4 * tiny_squared * want.num_clusters);
      const auto super_size = static_cast<double>(want.super_size(s));
      super_spread /= super_size;
      ASSERT_NEAR(super_spreads[s], super_spread, allowed(super_spread));
      const std::vector<double> expected_of_super = expected.OfSuper(s);
      double error = 0.0, expected_error = 0.0;
      for (int d = 0; d < dim; ++d) {
        error += std::pow(super_sum[d] / super_size - of_super[d], 2);
        expected_error += std::pow(super_sum[d] / super_size - expected_of_super[d], 2);
      }
      EXPECT_LE(error, 1.01 * expected_error + 4 * tiny_squared);
    }
  }

  // The clusters whose means are stored as the CPU stores them.
  static std::vector<int64_t> SameClusters(const MutableClusterIndex& got,
                                           const MutableClusterIndex& want, bool is_keys,
                                           double magnitude) {
    const StoredMeans means(got, is_keys), expected(want, is_keys);
    // A super-cluster's mean may be nothing but the rounding of the segment's.
    const auto near = [&](int64_t super, int64_t cluster) {
      const std::vector<double> a = means.Rotated(super, cluster);
      const std::vector<double> b = expected.Rotated(super, cluster);
      for (size_t d = 0; d < a.size(); ++d) {
        if (std::abs(a[d] - b[d]) > 4e-6 * magnitude) return false;
      }
      return true;
    };
    std::vector<int64_t> clusters;
    for (int64_t s = 0; s < want.num_supers; ++s) {
      if (!near(s, -1)) continue;
      for (int64_t c = want.super_offsets[s]; c < want.super_offsets[s + 1]; ++c) {
        if (near(s, c)) clusters.push_back(c);
      }
    }
    return clusters;
  }

  // Element d of a token's code.
  static int CodeElement(const MutableClusterIndex& index, int64_t token, int d) {
    int u = 0;
    for (int p = 0; p < index.code_bits; ++p) {
      const int64_t word = p * CodeWords(index.shape.head_dim_k) + d / 64;
      u |= static_cast<int>(index.codes[token * index.code_words() + word] >> (d % 64) & 1) << p;
    }
    return u;
  }

  // That codes are the CPU's but for elements that lie on a threshold, up to rounding.
  void ExpectSameCodes(const Problem& problem, const MutableClusterIndex& got, double magnitude) {
    const MutableClusterIndex& want = problem.expected->index;
    const StoredMeans means(want, /*keys=*/true);
    const SideRows& keys = problem.sides[0];
    const Rotation rotation(keys.dim);
    int64_t super = 0;
    for (const int64_t c : SameClusters(got, want, /*is_keys=*/true, magnitude)) {
      while (c >= want.super_offsets[super + 1]) ++super;
      const std::vector<double> centroid = means.OfCluster(super, c);
      for (int64_t t = want.offsets[c]; t < want.offsets[c + 1]; ++t) {
        std::vector<double> distance(keys.dim);
        double squared = 0.0;
        for (int d = 0; d < keys.dim; ++d) {
          distance[d] = keys.Element(problem.clustering.members[t], d) - centroid[d];
          squared += distance[d] * distance[d] / keys.dim;
        }
        if (squared < std::pow(1e-4 * magnitude, 2)) continue;  // the rounding of the mean
        rotation.Apply(distance.data());
        const double step = CodeStep(want.code_bits) * std::sqrt(squared);
        for (int d = 0; d < keys.dim; ++d) {
          const int a = CodeElement(got, t, d), b = CodeElement(want, t, d);
          if (a == b) continue;
          ASSERT_EQ(std::abs(a - b), 1) << t << " " << d;
          const double threshold = step * (std::max(a, b) - (1 << want.code_bits >> 1));
          ASSERT_NEAR(distance[d], threshold, 2e-6 * magnitude + 1e-6 * step) << t << " " << d;
        }
        const float factor = Float16ToFloat32(want.code_factors[t]);
        ASSERT_NEAR(Float16ToFloat32(got.code_factors[t]), factor, 3e-3f * factor + 1e-7f) << t;
      }
    }
    // Past the elements codes are zero.
    const int64_t plane_words = CodeWords(keys.dim);
    for (int64_t w = 0; keys.dim % 64 != 0 && w < want.num_tokens * want.code_words(); ++w) {
      if (w % plane_words != plane_words - 1) continue;
      ASSERT_EQ(got.codes[w] >> (keys.dim % 64), 0u);
    }
  }

  void ExpectSame(const Problem& problem, const HostIndex& got, const RowsOptions& options) {
    ExpectSameRows(problem, got.index);
    const double magnitude = options.scale * std::max(1.0f, options.offset);
    for (const bool is_keys : {true, false}) {
      SCOPED_TRACE(is_keys ? "keys" : "values");
      ExpectSameStatistics(problem, got.index, is_keys, magnitude);
      const auto num_same = static_cast<double>(
          SameClusters(got.index, problem.expected->index, is_keys, magnitude).size());
      EXPECT_GE(num_same, 0.9 * static_cast<double>(got.index.num_clusters) - 2.0);
    }
    ExpectSameCodes(problem, got.index, magnitude);
  }
};

struct Case {
  DType dtype;
  StatisticsFormat statistics;
  int code_bits;
  int head_dim_k;
  int head_dim_v;
  int64_t num_tokens;
};

TEST_P(WriteIndexesOnGpu, GivesWhatTheCpuGives) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  const auto kF32 = StatisticsFormat::kFloat32, kI8 = StatisticsFormat::kInt8,
             kI4 = StatisticsFormat::kInt4;
  const Case cases[] = {
      {DType::kBFloat16, kI4, 1, 128, 128, 700}, {DType::kFloat16, kI8, 2, 64, 64, 500},
      {DType::kFloat32, kF32, 4, 80, 128, 300},  {DType::kBFloat16, kI4, 2, 96, 80, 400},
      {DType::kFloat16, kI4, 1, 256, 8, 300},    {DType::kBFloat16, kI8, 4, 8, 40, 300},
      {DType::kFloat16, kI4, 1, 576, 512, 120},  {DType::kFloat32, kI4, 2, 192, 24, 200},
      {DType::kFloat32, kI8, 1, 16, 576, 120},   {DType::kBFloat16, kF32, 2, 120, 136, 200},
      {DType::kBFloat16, kI4, 4, 56, 320, 150},
  };
  for (const Case& c : cases) {
    const KvShape shape = {c.head_dim_k, c.head_dim_v, c.dtype};
    SCOPED_TRACE(::testing::Message() << DTypeName(c.dtype) << " " << c.head_dim_k << " "
                                      << StatisticsFormatName(c.statistics));
    const RowsOptions options;
    std::vector<Problem> problems;
    for (const int64_t num_tokens : {c.num_tokens, random.Integer(1, 40), int64_t{1}}) {
      problems.push_back(
          MakeProblem(random, shape, c.statistics, c.code_bits, num_tokens, options));
    }
    const std::vector<HostIndex> got = Run(problems, /*with_empty_task=*/true);
    for (size_t i = 0; i < problems.size(); ++i) ExpectSame(problems[i], got[i], options);
  }
}

TEST_P(WriteIndexesOnGpu, ClustersMayBeOfAnySize) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  const KvShape shape = {64, 32, DType::kBFloat16};
  const RowsOptions options;
  std::vector<Problem> problems;
  for (const Clustering& clustering :
       {EqualClusters(150, 1, 1), EqualClusters(150, 1, 150), EqualClusters(2100, 2100, 1),
        EqualClusters(600, 33, 7), EqualClusters(257, 64, 2)}) {
    problems.push_back(MakeProblem(random, shape, StatisticsFormat::kInt4, 1,
                                   static_cast<int64_t>(clustering.members.size()), options,
                                   &clustering));
  }
  const std::vector<HostIndex> got = Run(problems);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSame(problems[i], got[i], options);
  }
}

TEST_P(WriteIndexesOnGpu, RowsMayBeOfAnyMagnitude) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllFormats) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const RowsOptions& options :
           {RowsOptions{1e-15f}, RowsOptions{1e-5f}, RowsOptions{1e15f}, RowsOptions{1.0f, 300.0f},
            RowsOptions{1.0f, 3.0f, 0.0f}}) {
        SCOPED_TRACE(::testing::Message()
                     << options.scale << " " << options.offset << " " << options.noise << " "
                     << StatisticsFormatName(statistics) << " " << DTypeName(dtype));
        std::vector<Problem> problems;
        problems.push_back(MakeProblem(random, {64, 16, dtype}, statistics, 2, 120, options));
        const std::vector<HostIndex> got = Run(problems);
        ExpectSame(problems[0], got[0], options);
      }
    }
  }
}

// Their spreads are beyond fp32.
TEST_P(WriteIndexesOnGpu, LargestRowsHaveCodesAndFiniteStatistics) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  for (const float scale : {1e30f, 2e37f}) {
    for (const StatisticsFormat statistics : kAllFormats) {
      SCOPED_TRACE(::testing::Message() << scale << " " << StatisticsFormatName(statistics));
      const RowsOptions options = {scale, 1.0f};
      std::vector<Problem> problems;
      problems.push_back(
          MakeProblem(random, {40, 64, DType::kFloat32}, statistics, 2, 150, options));
      const std::vector<HostIndex> got = Run(problems);
      const MutableClusterIndex& index = got[0].index;
      ExpectSameRows(problems[0], index);
      ExpectSameCodes(problems[0], index, scale);
      for (const bool is_keys : {true, false}) {
        EXPECT_GE(SameClusters(index, problems[0].expected->index, is_keys, scale).size(),
                  index.num_clusters * 8 / 10);
      }
      for (int64_t c = 0; c < index.num_clusters; ++c) {
        if (index.cluster_size(c) == 1) continue;  // the rounding of the mean, if anything
        EXPECT_FLOAT_EQ(index.key_spreads[c], problems[0].expected->index.key_spreads[c]);
        EXPECT_FLOAT_EQ(index.value_spreads[c], problems[0].expected->index.value_spreads[c]);
      }
      for (int64_t s = 0; s < index.num_supers; ++s) {
        EXPECT_EQ(index.super_key_spreads[s], std::numeric_limits<float>::max());
        EXPECT_TRUE(std::isfinite(index.super_value_spreads[s]));
      }
    }
  }
}

TEST_P(WriteIndexesOnGpu, RowsThatAreAllTheSameHaveNoSpread) {
  Random random(5);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllFormats) {
    std::vector<Problem> problems;
    problems.push_back(
        MakeProblem(random, {24, 128, DType::kFloat16}, statistics, 4, 1, RowsOptions{}));
    const Clustering clustering = EqualClusters(100, 10, 5);
    problems.push_back(MakeProblem(random, {24, 128, DType::kFloat16}, statistics, 4, 100,
                                   RowsOptions{0.0f}, &clustering));
    for (const HostIndex& got : Run(problems)) {
      const MutableClusterIndex& index = got.index;
      for (int64_t c = 0; c < index.num_clusters; ++c) {
        EXPECT_EQ(index.key_spreads[c], 0.0f);
        EXPECT_EQ(index.value_spreads[c], 0.0f);
      }
      for (int64_t s = 0; s < index.num_supers; ++s) EXPECT_EQ(index.super_key_spreads[s], 0.0f);
      for (int64_t t = 0; t < index.num_tokens; ++t) EXPECT_EQ(index.code_factors[t], 0);
      for (int64_t w = 0; w < index.num_tokens * index.code_words(); ++w) {
        EXPECT_EQ(index.codes[w], 0u);
      }
    }
  }
}

TEST_P(WriteIndexesOnGpu, BytesAreTheSameEveryTime) {
  Random random(6);
  WAVEKV_TRACE_SEED(random);
  std::vector<Problem> problems;
  problems.push_back(MakeProblem(random, {80, 64, DType::kBFloat16}, StatisticsFormat::kInt4, 2,
                                 300, RowsOptions{}));
  const std::vector<HostIndex> first = Run(problems);
  const std::vector<HostIndex> second = Run(problems);
  EXPECT_EQ(
      std::memcmp(first[0].extent.get(), second[0].extent.get(), ClusterIndexBytes(first[0].shape)),
      0);
}

WAVEKV_ON_EACH_GPU(WriteIndexesOnGpu);

}  // namespace
}  // namespace wavekv::testing
