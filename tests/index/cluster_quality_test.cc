#include <cstdio>
#include <memory>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "index/cluster_segment.h"
#include "tests/index/index_quality.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int kDim = 64;
constexpr int64_t kNumTokens = 2048;
constexpr int64_t kNumQueries = 32;
constexpr double kBudget = 0.05;

TEST(ClusterQualityTest, HeavyTokensAreFoundAsWellAsWithFaissKMeans) {
  const TextLikeAttention data(kNumTokens, kNumQueries, kDim, 1);
  const auto executor = MakeThreadPool(2);
  const auto backend = MakeCpuBackend(executor.get());
  std::vector<float> scratch = data.keys;
  const auto clustering = ClusterSegment(absl::MakeSpan(scratch), kDim, {}, *backend);
  ASSERT_TRUE(clustering.ok()) << clustering.status();
  const auto measure = [&](const Clustering& c) {
    return MeasureIndexQuality(c, data.keys, data.values, data.queries, kDim, kBudget);
  };
  const IndexQuality ours = measure(*clustering);
  const IndexQuality faiss = measure(ClusterByFaiss(data.keys, kDim, kNumTokens / 16, 10, 1));
  for (const auto& [name, quality] : {std::pair{"ours", ours}, {"faiss, 10 iterations", faiss}}) {
    std::printf("%-22s recall@100 %.3f  captured mass %.3f  output error %.3f  spread %.2f\n", name,
                quality.recall_at_100, quality.captured_mass, quality.output_error,
                quality.mean_spread);
  }
  // Tokens at random would give recall and mass equal to the budget.
  EXPECT_GT(ours.recall_at_100, 8 * kBudget);
  EXPECT_GT(ours.recall_at_100, faiss.recall_at_100 - 0.03);
  EXPECT_GT(ours.captured_mass, faiss.captured_mass - 0.03);
  EXPECT_LT(ours.output_error, faiss.output_error * 1.05 + 0.01);
}

TEST(ClusterQualityTest, ManyClustersAreAsTightAsAfterTenIterationsOfFaiss) {
  constexpr int64_t kMany = 4096;  // 256 clusters: more than points look at
  const TextLikeAttention data(kMany, kNumQueries, kDim, 2);
  const auto executor = MakeThreadPool(2);
  const auto backend = MakeCpuBackend(executor.get());
  std::vector<float> scratch = data.keys;
  const auto clustering = ClusterSegment(absl::MakeSpan(scratch), kDim, {}, *backend);
  ASSERT_TRUE(clustering.ok()) << clustering.status();
  const auto spread = [&](const Clustering& c) {
    return MeasureIndexQuality(c, data.keys, data.values, data.queries, kDim, kBudget).mean_spread;
  };
  const double ours = spread(*clustering);
  const double faiss = spread(ClusterByFaiss(data.keys, kDim, kMany / 16, 10, 1));
  std::printf("spread %.3f, faiss %.3f\n", ours, faiss);
  EXPECT_LT(ours, 1.01 * faiss);
}

}  // namespace
}  // namespace wavekv
