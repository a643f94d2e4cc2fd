#include "index/cluster_segment.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/index/naive_backend.h"
#include "tests/testing/random.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int kDim = 32;

// A CPU backend with its pool.
struct CpuBackend {
  explicit CpuBackend(int num_threads)
      : executor(MakeThreadPool(num_threads)), backend(MakeCpuBackend(executor.get())) {}
  std::unique_ptr<Executor> executor;
  std::unique_ptr<Backend> backend;
};

absl::StatusOr<Clustering> Cluster(std::vector<float> keys, int dim,
                                   const ClusteringOptions& options, Backend& backend) {
  return ClusterSegment(absl::MakeSpan(keys), dim, options, backend);
}

// What must hold of every clustering.
void ExpectWellFormed(const Clustering& clustering, int64_t num_tokens,
                      const ClusteringOptions& options) {
  ASSERT_GE(clustering.num_clusters(), 1);
  ASSERT_EQ(clustering.offsets.front(), 0u);
  ASSERT_EQ(clustering.offsets.back(), num_tokens);
  ASSERT_EQ(clustering.members.size(), static_cast<size_t>(num_tokens));
  EXPECT_GE(clustering.num_clusters(),
            std::max<int64_t>(num_tokens / options.tokens_per_cluster, 1));
  std::vector<int> seen(num_tokens, 0);
  for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
    const uint32_t begin = clustering.offsets[c];
    const uint32_t end = clustering.offsets[c + 1];
    ASSERT_LT(begin, end) << "cluster " << c << " is empty";
    EXPECT_LE(end - begin, static_cast<uint32_t>(options.cluster_tokens_max)) << "cluster " << c;
    for (uint32_t m = begin; m < end; ++m) {
      ASSERT_LT(clustering.members[m], num_tokens);
      ++seen[clustering.members[m]];
      if (m > begin) {
        EXPECT_LT(clustering.members[m - 1], clustering.members[m]);
      }
    }
    if (c > 0) {
      EXPECT_LT(clustering.members[clustering.offsets[c - 1]], clustering.members[begin]);
    }
  }
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
}

struct Input {
  std::string name;
  std::vector<float> keys;
};

// Keys that could break a clustering, and ordinary ones.
std::vector<Input> Inputs(testing::Random& random) {
  std::vector<Input> inputs;
  for (const int64_t num_tokens : {1, 2, 15, 16, 17, 100, 1000}) {
    inputs.push_back(
        {"gaussian " + std::to_string(num_tokens), random.Gaussians(num_tokens * kDim)});
  }
  inputs.push_back({"all zero", std::vector<float>(600 * kDim, 0.0f)});
  inputs.push_back({"all equal", std::vector<float>(600 * kDim, 0.3f)});

  const std::vector<float> few = random.Gaussians(5 * kDim);
  Input duplicates = {"duplicates of five", {}};
  for (int i = 0; i < 600; ++i) {
    const int64_t which = random.Integer(0, 4);
    duplicates.keys.insert(duplicates.keys.end(), few.begin() + which * kDim,
                           few.begin() + (which + 1) * kDim);
  }
  inputs.push_back(duplicates);

  Input some_zero = {"half zero vectors", random.Gaussians(600 * kDim)};
  for (int64_t i = 0; i < 300; ++i) {
    std::fill_n(some_zero.keys.begin() + random.Integer(0, 599) * kDim, kDim, 0.0f);
  }
  inputs.push_back(some_zero);

  Input norms = {"norms from 1e-4 to 1e4", random.Gaussians(600 * kDim)};
  for (int i = 0; i < 600 * kDim; ++i) {
    norms.keys[i] *= std::pow(10.0f, static_cast<float>(i / kDim % 9 - 4));
  }
  inputs.push_back(norms);

  Input geometric = {"each token ten percent longer than the last", random.Gaussians(600 * kDim)};
  for (int i = 0; i < 600 * kDim; ++i) {
    geometric.keys[i] = std::pow(1.1f, static_cast<float>(i / kDim - 300));
  }
  inputs.push_back(geometric);

  Input giant = {"one giant cluster and some others", random.Gaussians(600 * kDim, 1e-5f)};
  for (int i = 0; i < 10 * kDim; ++i) giant.keys[i] += random.Gaussian(10.0f);
  for (int i = 10 * kDim; i < 600 * kDim; ++i) giant.keys[i] += 5.0f;
  inputs.push_back(giant);

  Input largest = {"the largest numbers of fp32", random.Gaussians(600 * kDim)};
  for (float& x : largest.keys) x = std::copysign(std::numeric_limits<float>::max(), x);
  inputs.push_back(largest);

  Input smallest = {"the smallest numbers of fp32", random.Gaussians(600 * kDim)};
  for (float& x : smallest.keys) x = std::copysign(std::numeric_limits<float>::denorm_min(), x);
  inputs.push_back(smallest);
  return inputs;
}

TEST(ClusterSegmentTest, EveryTokenIsInOneClusterNoneIsEmptyNoneIsTooLarge) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  NaiveBackend naive;
  CpuBackend cpu(1);
  for (const Input& input : Inputs(random)) {
    for (const ClusteringOptions& options :
         {ClusteringOptions{}, ClusteringOptions{.tokens_per_cluster = 4, .cluster_tokens_max = 5},
          ClusteringOptions{.tokens_per_cluster = 1},
          ClusteringOptions{.tokens_per_cluster = 10000, .cluster_tokens_max = 10000},
          ClusteringOptions{.cluster_tokens_max = 1}, ClusteringOptions{.kmeans_iterations = 0}}) {
      for (Backend* backend : {static_cast<Backend*>(&naive), cpu.backend.get()}) {
        SCOPED_TRACE(input.name + ", " + std::to_string(options.tokens_per_cluster) + " and " +
                     std::to_string(options.cluster_tokens_max) + " at most, " +
                     (backend == &naive ? "naive" : "cpu"));
        const auto clustering = Cluster(input.keys, kDim, options, *backend);
        ASSERT_TRUE(clustering.ok()) << clustering.status();
        ExpectWellFormed(*clustering, static_cast<int64_t>(input.keys.size()) / kDim, options);
      }
    }
  }
}

TEST(ClusterSegmentTest, EqualKeysAreDividedEvenly) {
  NaiveBackend backend;
  const auto clustering = Cluster(std::vector<float>(1024 * kDim, 0.1f), kDim, {}, backend);
  ASSERT_TRUE(clustering.ok());
  ASSERT_EQ(clustering->num_clusters(), 64);
  for (int64_t c = 0; c <= 64; ++c) EXPECT_EQ(clustering->offsets[c], 16 * c);
}

TEST(ClusterSegmentTest, ClustersHaveTheAverageSizeAskedFor) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> keys = random.Gaussians(2000 * kDim);
  CpuBackend cpu(1);
  for (const int tokens_per_cluster : {8, 16, 50}) {
    const auto clustering =
        Cluster(keys, kDim, {.tokens_per_cluster = tokens_per_cluster, .cluster_tokens_max = 2000},
                *cpu.backend);
    ASSERT_TRUE(clustering.ok());
    EXPECT_EQ(clustering->num_clusters(), 2000 / tokens_per_cluster);
  }
}

TEST(ClusterSegmentTest, PlantedClustersAreRecovered) {
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  constexpr int kNumPlanted = 32;
  const std::vector<float> centres = random.Gaussians(kNumPlanted * kDim, 3.0f);
  std::vector<float> keys(kNumPlanted * 64 * kDim);
  std::vector<int> planted(kNumPlanted * 64);
  for (size_t i = 0; i < planted.size(); ++i) {
    planted[i] = static_cast<int>(i * 7 % kNumPlanted);  // interleaved, 64 tokens each
    for (int j = 0; j < kDim; ++j) {
      keys[i * kDim + j] = centres[planted[i] * kDim + j] + random.Gaussian(0.05f);
    }
  }
  CpuBackend cpu(1);
  const auto clustering = Cluster(keys, kDim, {}, *cpu.backend);
  ASSERT_TRUE(clustering.ok());
  // Four clusters for each planted one; a token counts when its cluster holds one kind alone.
  int64_t num_pure_tokens = 0;
  for (int64_t c = 0; c < clustering->num_clusters(); ++c) {
    std::set<int> origins;
    for (uint32_t m = clustering->offsets[c]; m < clustering->offsets[c + 1]; ++m) {
      origins.insert(planted[clustering->members[m]]);
    }
    if (origins.size() == 1) {
      num_pure_tokens += clustering->offsets[c + 1] - clustering->offsets[c];
    }
  }
  EXPECT_GE(num_pure_tokens, static_cast<int64_t>(planted.size()) * 95 / 100);
}

TEST(ClusterSegmentTest, TheResultDoesNotDependOnThreadsOrRepetition) {
  testing::Random random(4);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> keys = random.Gaussians(1500 * kDim);
  CpuBackend one(1);
  const auto expected = Cluster(keys, kDim, {}, *one.backend);
  ASSERT_TRUE(expected.ok());
  for (const int num_threads : {1, 2, 4}) {
    CpuBackend cpu(num_threads);
    for (int repetition = 0; repetition < 2; ++repetition) {
      const auto clustering = Cluster(keys, kDim, {}, *cpu.backend);
      ASSERT_TRUE(clustering.ok());
      EXPECT_EQ(clustering->offsets, expected->offsets) << num_threads << " threads";
      EXPECT_EQ(clustering->members, expected->members) << num_threads << " threads";
    }
  }
  const auto other = Cluster(keys, kDim, {.seed = 99}, *one.backend);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(other->members, expected->members);
}

TEST(ClusterSegmentTest, SegmentsClusteredAtOnceDoNotInfluenceEachOther) {
  testing::Random random(5);
  WAVEKV_TRACE_SEED(random);
  constexpr int kNumSegments = 4;
  std::vector<std::vector<float>> keys;
  std::vector<Clustering> alone;
  CpuBackend cpu(1);
  for (int i = 0; i < kNumSegments; ++i) {
    keys.push_back(random.Gaussians((500 + i) * kDim));
    alone.push_back(*Cluster(keys[i], kDim, {}, *cpu.backend));
  }
  std::vector<Clustering> together(kNumSegments);
  std::vector<std::thread> threads;
  for (int i = 0; i < kNumSegments; ++i) {
    threads.emplace_back([&, i] { together[i] = *Cluster(keys[i], kDim, {}, *cpu.backend); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kNumSegments; ++i) {
    EXPECT_EQ(together[i].offsets, alone[i].offsets);
    EXPECT_EQ(together[i].members, alone[i].members);
  }
}

TEST(ClusterSegmentTest, AShiftOfAllKeysChangesNothing) {
  testing::Random random(6);
  WAVEKV_TRACE_SEED(random);
  // Multiples of 1/64 in [-8, 8]: the shift, the sums and the mean of 1024 keys round nothing.
  std::vector<float> keys(1024 * kDim);
  for (float& x : keys) x = static_cast<float>(random.Integer(-512, 512)) / 64.0f;
  std::vector<float> shifted = keys;
  for (float& x : shifted) x += 4.0f;
  NaiveBackend backend;
  const auto clustering = Cluster(keys, kDim, {}, backend);
  const auto clustering_of_shifted = Cluster(shifted, kDim, {}, backend);
  ASSERT_TRUE(clustering.ok() && clustering_of_shifted.ok());
  EXPECT_EQ(clustering->members, clustering_of_shifted->members);
}

TEST(ClusterSegmentTest, ImpossibleOptionsAndKeysAreNamed) {
  NaiveBackend backend;
  const std::vector<float> keys(64 * kDim, 1.0f);
  const auto message = [&](const std::vector<float>& k, const ClusteringOptions& options) {
    const auto clustering = Cluster(k, kDim, options, backend);
    EXPECT_EQ(clustering.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(clustering.status().message());
  };
  EXPECT_EQ(message(keys, {.tokens_per_cluster = 0}),
            "tokens_per_cluster: expected at least 1, got 0");
  EXPECT_EQ(message(keys, {.cluster_tokens_max = -3}),
            "cluster_tokens_max: expected at least 1, got -3");
  EXPECT_EQ(message(keys, {.kmeans_iterations = -1}),
            "kmeans_iterations: expected at least 0, got -1");
  EXPECT_EQ(message({}, {}), "num_tokens: expected at least 1, got 0");
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> bad_keys = keys;
    bad_keys[100] = bad;
    EXPECT_EQ(message(bad_keys, {}), "keys: expected finite values");
  }
}

}  // namespace
}  // namespace wavekv
