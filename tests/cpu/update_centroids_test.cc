#include "compute/update_centroids.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class UpdateCentroidsTest : public BackendFixture {};

struct Clustering {
  std::vector<uint32_t> offsets = {0};
  std::vector<uint32_t> members;

  int64_t num_clusters() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Every third cluster is empty; a point may stand in several.
Clustering RandomClustering(Random& random, int64_t num_points, int64_t num_clusters) {
  Clustering clustering;
  for (int64_t c = 0; c < num_clusters; ++c) {
    const int64_t size = c % 3 == 2 ? 0 : random.Integer(1, 40);
    for (int64_t i = 0; i < size; ++i) {
      clustering.members.push_back(static_cast<uint32_t>(random.Integer(0, num_points - 1)));
    }
    clustering.offsets.push_back(static_cast<uint32_t>(clustering.members.size()));
  }
  return clustering;
}

TEST_F(UpdateCentroidsTest, MeansAreThoseOfTheMembers) {
  Random random(31);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kPoints = 500;
  for (int dim : {8, 40, 80, 128, 256}) {
    const std::vector<float> points = random.Gaussians(kPoints * dim);
    const Clustering clustering = RandomClustering(random, kPoints, 20);
    const std::vector<float> before = random.Gaussians(20 * dim);
    for (bool normalize : {false, true}) {
      ForEachTarget([&] {
        std::vector<float> means = before, lengths(20, -1.0f);
        const UpdateCentroidsTask task = {.points = points.data(),
                                          .dim = dim,
                                          .offsets = clustering.offsets.data(),
                                          .members = clustering.members.data(),
                                          .num_clusters = clustering.num_clusters(),
                                          .normalize = normalize,
                                          .means = means.data(),
                                          .lengths = lengths.data()};
        ASSERT_TRUE(backend().UpdateCentroids({&task, 1}).ok());
        for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
          const uint32_t begin = clustering.offsets[c], end = clustering.offsets[c + 1];
          std::vector<double> mean(dim, 0.0);
          double squared = 0.0;
          for (int d = 0; d < dim; ++d) {
            for (uint32_t m = begin; m < end; ++m)
              mean[d] += points[clustering.members[m] * dim + d];
            mean[d] /= std::max<uint32_t>(end - begin, 1);
            squared += mean[d] * mean[d];
          }
          if (begin == end) {
            EXPECT_EQ(lengths[c], -1.0f);
          } else {
            EXPECT_NEAR(lengths[c], std::sqrt(squared), 40 * 6 * kRounding * std::sqrt(dim));
          }
          for (int d = 0; d < dim; ++d) {
            if (begin == end) {
              EXPECT_EQ(means[c * dim + d], before[c * dim + d]);
              continue;
            }
            const double length = normalize ? std::sqrt(squared) : 1.0;
            // 40 additions of numbers below 6, then a division by a length above 0.1 sqrt(dim).
            EXPECT_NEAR(means[c * dim + d], mean[d] / length,
                        40 * 6 * kRounding / (normalize ? 0.1 : 1.0));
          }
        }
      });
    }
  }
}

TEST_F(UpdateCentroidsTest, AZeroMeanStaysZero) {
  const std::vector<float> points = {1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4, -5, -6, -7, -8};
  const std::vector<uint32_t> offsets = {0, 2}, members = {0, 1};
  ForEachTarget([&] {
    std::vector<float> means = Poison(8);
    const UpdateCentroidsTask task = {.points = points.data(),
                                      .dim = 8,
                                      .offsets = offsets.data(),
                                      .members = members.data(),
                                      .num_clusters = 1,
                                      .normalize = true,
                                      .means = means.data()};
    ASSERT_TRUE(backend().UpdateCentroids({&task, 1}).ok());
    EXPECT_EQ(means, std::vector<float>(8, 0.0f));
  });
}

}  // namespace
}  // namespace wavekv::testing
