#include "compute/assign_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class AssignClustersTest : public BackendFixture {
 protected:
  struct Result {
    std::vector<int32_t> assignment;
    std::vector<float> scores;
  };

  Result Assign(const std::vector<float>& points, const std::vector<float>& centroids, int dim) {
    const int64_t num_points = points.size() / dim;
    Result result = {std::vector<int32_t>(num_points, -1), Poison(num_points)};
    const AssignClustersTask task = {.points = points.data(),
                                     .num_points = num_points,
                                     .centroids = centroids.data(),
                                     .num_centroids = static_cast<int64_t>(centroids.size()) / dim,
                                     .dim = dim,
                                     .assignment = result.assignment.data(),
                                     .scores = result.scores.data()};
    EXPECT_TRUE(backend().AssignClusters({&task, 1}).ok());
    return result;
  }
};

struct Shape {
  int64_t num_points, num_centroids;
};

double Dot(const float* a, const float* b, int dim, double* magnitude = nullptr) {
  double dot = 0.0;
  for (int d = 0; d < dim; ++d) {
    dot += static_cast<double>(a[d]) * b[d];
    if (magnitude != nullptr) *magnitude += std::fabs(static_cast<double>(a[d]) * b[d]);
  }
  return dot;
}

TEST_F(AssignClustersTest, FindsTheGreatestInnerProductToRounding) {
  Random random(41);
  WAVEKV_TRACE_SEED(random);
  for (int dim : {8, 40, 80, 128, 256}) {
    for (const Shape& shape : {Shape{1, 1}, {5, 3}, {7, 64}, {130, 65}, {33, 200}, {300, 17}}) {
      const int64_t num_points = shape.num_points, num_centroids = shape.num_centroids;
      const std::vector<float> points = random.Gaussians(num_points * dim);
      const std::vector<float> centroids = random.Gaussians(num_centroids * dim);
      ForEachTarget([&] {
        const Result result = Assign(points, centroids, dim);
        for (int64_t i = 0; i < num_points; ++i) {
          const int32_t c = result.assignment[i];
          ASSERT_GE(c, 0);
          ASSERT_LT(c, num_centroids);
          double best = -1e30, tolerance = 0.0;
          for (int64_t other = 0; other < num_centroids; ++other) {
            double magnitude = 0.0;
            best = std::max(best, Dot(&points[i * dim], &centroids[other * dim], dim, &magnitude));
            tolerance = std::max(tolerance, dim * kRounding * magnitude);
          }
          EXPECT_NEAR(Dot(&points[i * dim], &centroids[c * dim], dim), best, 2 * tolerance);
          EXPECT_NEAR(result.scores[i], best, 2 * tolerance);
        }
      });
    }
  }
}

TEST_F(AssignClustersTest, TiesGoToTheLowerIndex) {
  Random random(42);
  WAVEKV_TRACE_SEED(random);
  constexpr int kDim = 24;
  constexpr int kDistinct = 37;
  // Each centroid stands there three times, 37 places apart.
  std::vector<float> centroids = random.Gaussians(kDistinct * kDim);
  centroids.reserve(3 * centroids.size());
  for (int copy = 0; copy < 2; ++copy) {
    centroids.insert(centroids.end(), centroids.begin(), centroids.begin() + kDistinct * kDim);
  }
  const std::vector<float> points = random.Gaussians(100 * kDim);
  ForEachTarget([&] {
    for (int32_t c : Assign(points, centroids, kDim).assignment) EXPECT_LT(c, kDistinct);
    const std::vector<float> zeros(9 * kDim, 0.0f);
    EXPECT_EQ(Assign(zeros, centroids, kDim).assignment, std::vector<int32_t>(9, 0));
  });
}

TEST_F(AssignClustersTest, NegativeScoresAreScoresToo) {
  const std::vector<float> point = {-1, -1, -1, -1, -1, -1, -1, -1};
  std::vector<float> centroids(70 * 8, 1.0f);
  for (int d = 0; d < 8; ++d) centroids[69 * 8 + d] = 0.5f;
  ForEachTarget([&] {
    const Result result = Assign(point, centroids, 8);
    EXPECT_EQ(result.assignment[0], 69);
    EXPECT_EQ(result.scores[0], -4.0f);
  });
}

TEST_F(AssignClustersTest, DoesNotDependOnTheNumberOfThreads) {
  Random random(43);
  WAVEKV_TRACE_SEED(random);
  constexpr int kDim = 64;
  const std::vector<float> points = random.Gaussians(3000 * kDim);
  const std::vector<float> centroids = random.Gaussians(100 * kDim);
  const Result two = Assign(points, centroids, kDim);
  for (int num_threads : {1, 5}) {
    const std::unique_ptr<Executor> pool = MakeThreadPool(num_threads);
    Result result = {std::vector<int32_t>(3000), Poison(3000)};
    const AssignClustersTask task = {.points = points.data(),
                                     .num_points = 3000,
                                     .centroids = centroids.data(),
                                     .num_centroids = 100,
                                     .dim = kDim,
                                     .assignment = result.assignment.data(),
                                     .scores = result.scores.data()};
    ASSERT_TRUE(MakeCpuBackend(pool.get())->AssignClusters({&task, 1}).ok());
    EXPECT_EQ(result.assignment, two.assignment);
    EXPECT_EQ(result.scores, two.scores);
  }
}

}  // namespace
}  // namespace wavekv::testing
