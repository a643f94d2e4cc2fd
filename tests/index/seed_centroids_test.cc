#include "index/seed_centroids.h"

#include <omp.h>

#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

constexpr int kDim = 16;

void ExpectUnitRows(const std::vector<float>& rows) {
  for (size_t i = 0; i < rows.size(); i += kDim) {
    double square = 0.0;
    for (int j = 0; j < kDim; ++j) square += static_cast<double>(rows[i + j]) * rows[i + j];
    ASSERT_NEAR(square, 1.0, 1e-5) << "row " << i / kDim;
  }
}

TEST(SeedCentroidsTest, RowsAreOfUnitLength) {
  testing::Random random(1);
  for (const int64_t num_centroids : {1, 2, 63, 64, 300}) {
    const std::vector<float> points = random.Gaussians(300 * kDim, 10.0f);
    const auto seeds = SeedCentroids(points.data(), 300, kDim, num_centroids, 7);
    ASSERT_TRUE(seeds.ok()) << seeds.status();
    ASSERT_EQ(seeds->size(), static_cast<size_t>(num_centroids * kDim));
    ExpectUnitRows(*seeds);
  }
}

TEST(SeedCentroidsTest, ZeroAndEqualPointsGiveUnitRows) {
  for (const float value : {0.0f, 3.0f}) {
    const std::vector<float> points(200 * kDim, value);
    const auto seeds = SeedCentroids(points.data(), 200, kDim, 20, 7);
    ASSERT_TRUE(seeds.ok()) << seeds.status();
    ExpectUnitRows(*seeds);
  }
}

TEST(SeedCentroidsTest, SameArgumentsGiveTheSameBytesInEveryThread) {
  testing::Random random(2);
  const std::vector<float> points = random.Gaussians(2048 * kDim);
  const auto expected = SeedCentroids(points.data(), 2048, kDim, 128, 7);
  ASSERT_TRUE(expected.ok());
  std::vector<std::vector<float>> seeds(4);
  std::vector<std::thread> threads;
  for (std::vector<float>& result : seeds) {
    threads.emplace_back([&] { result = *SeedCentroids(points.data(), 2048, kDim, 128, 7); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& result : seeds) EXPECT_EQ(result, *expected);
}

TEST(SeedCentroidsTest, AnotherSeedGivesOtherCentroids) {
  testing::Random random(3);
  const std::vector<float> points = random.Gaussians(2048 * kDim);
  EXPECT_NE(*SeedCentroids(points.data(), 2048, kDim, 128, 7),
            *SeedCentroids(points.data(), 2048, kDim, 128, 8));
}

TEST(SeedCentroidsTest, TheCallersOpenMpSettingsStayAsTheyWere) {
  testing::Random random(4);
  const std::vector<float> points = random.Gaussians(512 * kDim);
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);
  EXPECT_TRUE(SeedCentroids(points.data(), 512, kDim, 32, 7).ok());
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
}

TEST(SeedCentroidsTest, NothingIsPrinted) {
  testing::Random random(5);
  const std::vector<float> points = random.Gaussians(2048 * kDim);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(SeedCentroids(points.data(), 2048, kDim, 2048, 7).ok());
  EXPECT_TRUE(SeedCentroids(points.data(), 2048, kDim, 2000, 7).ok());
  EXPECT_TRUE(SeedCentroids(points.data(), 2048, kDim, 1, 7).ok());
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(SeedCentroidsTest, ImpossibleArgumentsAreNamed) {
  std::vector<float> points(8 * kDim, 1.0f);
  for (const int64_t num_centroids : {-1, 0, 9}) {
    const auto seeds = SeedCentroids(points.data(), 8, kDim, num_centroids, 7);
    EXPECT_EQ(seeds.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(seeds.status().ToString().find("num_centroids: expected 1 to num_points = 8"),
              std::string::npos)
        << seeds.status();
  }
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    points[5] = bad;
    EXPECT_EQ(SeedCentroids(points.data(), 8, kDim, 4, 7).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

}  // namespace
}  // namespace wavekv
