#include "compute/assign_clusters.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

std::vector<int16_t> Integers(Random& random, int64_t count, int largest) {
  std::vector<int16_t> result(count);
  for (int16_t& x : result) x = static_cast<int16_t>(random.Integer(-largest, largest));
  return result;
}

class AssignClustersTest : public BackendFixture {
 protected:
  struct Result {
    std::vector<int32_t> assignment;
    std::vector<int32_t> products;
  };

  static Result Assign(Backend& on, const std::vector<int16_t>& points,
                       const std::vector<int16_t>& centroids, int dim) {
    const int64_t num_points = points.size() / dim, num_centroids = centroids.size() / dim;
    Result result = {std::vector<int32_t>(num_points, -1),
                     std::vector<int32_t>(num_points * num_centroids, -1)};
    const AssignClustersTask task = {.points = points.data(),
                                     .num_points = num_points,
                                     .centroids = centroids.data(),
                                     .num_centroids = num_centroids,
                                     .dim = dim,
                                     .assignment = result.assignment.data(),
                                     .products = result.products.data()};
    EXPECT_TRUE(on.AssignClusters({&task, 1}).ok());
    return result;
  }
};

struct Shape {
  int64_t num_points, num_centroids;
};

int32_t Product(const int16_t* a, const int16_t* b, int dim) {
  int32_t product = 0;
  for (int d = 0; d < dim; ++d) product += a[d] * b[d];
  return product;
}

TEST_F(AssignClustersTest, FindsTheFirstOfTheGreatestInnerProducts) {
  Random random(41);
  WAVEKV_TRACE_SEED(random);
  for (int dim : {8, 40, 80, 128, 576}) {
    for (const Shape& shape : {Shape{1, 1}, {5, 3}, {7, 64}, {130, 65}, {33, 200}, {600, 17}}) {
      const int64_t num_points = shape.num_points, num_centroids = shape.num_centroids;
      // Small numbers, so that there are ties.
      const int largest = static_cast<int>(random.Integer(1, 300));
      const std::vector<int16_t> points = Integers(random, num_points * dim, largest);
      const std::vector<int16_t> centroids = Integers(random, num_centroids * dim, 2);
      ForEachTarget([&] {
        const Result result = Assign(backend(), points, centroids, dim);
        for (int64_t i = 0; i < num_points; ++i) {
          int32_t best = 0;
          for (int32_t c = 0; c < num_centroids; ++c) {
            const int32_t product = Product(&points[i * dim], &centroids[c * dim], dim);
            ASSERT_EQ(result.products[i * num_centroids + c], product) << i << " and " << c;
            if (product > result.products[i * num_centroids + best]) best = c;
          }
          ASSERT_EQ(result.assignment[i], best) << i;
        }
      });
    }
  }
}

TEST_F(AssignClustersTest, LooksAtTheRowsThatAreNamedAndLeavesTheOthersAlone) {
  Random random(44);
  WAVEKV_TRACE_SEED(random);
  for (int round = 0; round < 40; ++round) {
    const int dim = static_cast<int>(8 * random.Integer(1, 20));
    const int64_t num_points = random.Integer(1, 700), num_centroids = random.Integer(1, 200);
    const std::vector<int16_t> points = Integers(random, num_points * dim, 4096);
    const std::vector<int16_t> centroids = Integers(random, num_centroids * dim, 1000);
    // Tasks for different points of one array, each with centroids of its own.
    std::vector<uint32_t> order(num_points);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random.engine());
    const int64_t num_named = random.Integer(1, num_points), split = random.Integer(0, num_named);
    std::vector<uint32_t> named[2];
    for (std::vector<uint32_t>& list : named) {
      for (uint32_t c = 0; c < num_centroids; ++c) {
        if (random.Integer(0, 2) == 0) list.push_back(c);
      }
      if (list.empty()) list.push_back(0);
    }
    ForEachTarget([&] {
      std::vector<int32_t> assignment(num_points, -7);
      AssignClustersTask tasks[2];
      for (int t = 0; t < 2; ++t) {
        tasks[t] = {.points = points.data(),
                    .point_ids = order.data() + (t == 0 ? 0 : split),
                    .num_points = t == 0 ? split : num_named - split,
                    .centroids = centroids.data(),
                    .centroid_ids = named[t].data(),
                    .num_centroids = static_cast<int64_t>(named[t].size()),
                    .dim = dim,
                    .assignment = assignment.data()};
      }
      ASSERT_TRUE(backend().AssignClusters(tasks).ok());
      for (int64_t i = 0; i < num_points; ++i) {
        const uint32_t point = order[i];
        if (i >= num_named) {
          ASSERT_EQ(assignment[point], -7);
          continue;
        }
        const std::vector<uint32_t>& list = named[i < split ? 0 : 1];
        uint32_t best = list[0];
        for (const uint32_t c : list) {
          if (Product(&points[point * dim], &centroids[c * dim], dim) >
              Product(&points[point * dim], &centroids[best * dim], dim)) {
            best = c;
          }
        }
        ASSERT_EQ(assignment[point], static_cast<int32_t>(best));
      }
    });
  }
}

TEST_F(AssignClustersTest, TheLargestNumbersOfAnyHeadFit) {
  // The longest key, all elements at their largest, and centroids of length 1 along and against it.
  constexpr int kDim = kHeadDimMax;
  const std::vector<int16_t> point(kDim, 4096);
  const auto element = static_cast<int16_t>(16384 / 24);  // 24^2 = 576
  std::vector<int16_t> centroids(2 * kDim, element);
  std::fill_n(centroids.begin(), kDim, static_cast<int16_t>(-element));
  ForEachTarget([&] {
    const Result result = Assign(backend(), point, centroids, kDim);
    EXPECT_EQ(result.assignment[0], 1);
    EXPECT_EQ(result.products[1], kDim * 4096 * element);
    EXPECT_EQ(result.products[0], -result.products[1]);
  });
}

TEST_F(AssignClustersTest, DoesNotDependOnTheNumberOfThreads) {
  Random random(43);
  WAVEKV_TRACE_SEED(random);
  constexpr int kDim = 64;
  const std::vector<int16_t> points = Integers(random, 3000 * kDim, 4096);
  const std::vector<int16_t> centroids = Integers(random, 100 * kDim, 1000);
  const Result two = Assign(backend(), points, centroids, kDim);
  for (int num_threads : {1, 5}) {
    const std::unique_ptr<Executor> pool = MakeThreadPool(num_threads);
    const Result result = Assign(*MakeCpuBackend(pool.get()), points, centroids, kDim);
    EXPECT_EQ(result.assignment, two.assignment);
    EXPECT_EQ(result.products, two.products);
  }
}

}  // namespace
}  // namespace wavekv::testing
