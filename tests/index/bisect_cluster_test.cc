#include "index/bisect_cluster.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

constexpr int kDim = 8;

// Of the distances of these points to their mean.
double SumOfSquares(const std::vector<float>& points, absl::Span<const uint32_t> members) {
  double sum = 0.0;
  for (int j = 0; j < kDim; ++j) {
    double first = 0.0, second = 0.0;
    for (const uint32_t i : members) {
      first += points[i * kDim + j];
      second += static_cast<double>(points[i * kDim + j]) * points[i * kDim + j];
    }
    sum += second - first * first / static_cast<double>(members.size());
  }
  return sum;
}

TEST(BisectClusterTest, TwoSeparateGroupsAreToldApart) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  // Token i belongs to the group i % 3 == 0, which lies elsewhere.
  std::vector<float> points = random.Gaussians(90 * kDim, 0.1f);
  for (int i = 0; i < 90; i += 3) points[i * kDim] += 2.0f;
  std::vector<uint32_t> members(90);
  std::iota(members.begin(), members.end(), 0);
  const int64_t cut = BisectCluster(points.data(), kDim, absl::MakeSpan(members)).cut;
  ASSERT_TRUE(cut == 30 || cut == 60) << cut;
  for (int64_t i = 0; i < 90; ++i) EXPECT_EQ(members[i] % 3 == 0, (i < cut) == (cut == 30)) << i;
}

TEST(BisectClusterTest, EachHalfAscendsAndTogetherTheyHoldEveryMember) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> points = random.Gaussians(200 * kDim);
  for (const int64_t num_members : {2, 3, 9, 100}) {
    std::vector<uint32_t> members(num_members);
    for (int64_t i = 0; i < num_members; ++i) members[i] = static_cast<uint32_t>(2 * i);
    std::vector<uint32_t> all = members;
    const Bisection bisection = BisectCluster(points.data(), kDim, absl::MakeSpan(members));
    const int64_t cut = bisection.cut;
    ASSERT_GE(cut, 1);
    ASSERT_LT(cut, num_members);
    EXPECT_TRUE(std::is_sorted(members.begin(), members.begin() + cut));
    EXPECT_TRUE(std::is_sorted(members.begin() + cut, members.end()));
    const absl::Span<const uint32_t> halves = members;
    const double gain = SumOfSquares(points, all) - SumOfSquares(points, halves.subspan(0, cut)) -
                        SumOfSquares(points, halves.subspan(cut));
    EXPECT_NEAR(bisection.gain, gain, 1e-4 * SumOfSquares(points, all));
    std::sort(members.begin(), members.end());
    EXPECT_EQ(members, all);
  }
}

TEST(BisectClusterTest, EqualPointsAreHalvedByOrder) {
  const std::vector<float> points(100 * kDim, 0.1f);
  std::vector<uint32_t> members(100);
  std::iota(members.begin(), members.end(), 0);
  const std::vector<uint32_t> before = members;
  const Bisection bisection = BisectCluster(points.data(), kDim, absl::MakeSpan(members));
  EXPECT_EQ(bisection.cut, 50);
  EXPECT_EQ(bisection.gain, 0.0f);
  EXPECT_EQ(members, before);
}

TEST(BisectClusterTest, OneOutlierTakesAnEighthWithIt) {
  std::vector<float> points(80 * kDim, 0.0f);
  for (int i = 0; i < 80; ++i) points[i * kDim] = 0.001f * static_cast<float>(i);
  points[40 * kDim] = 1000.0f;
  std::vector<uint32_t> members(80);
  std::iota(members.begin(), members.end(), 0);
  const int64_t cut = BisectCluster(points.data(), kDim, absl::MakeSpan(members)).cut;
  EXPECT_EQ(std::min<int64_t>(cut, 80 - cut), 10);
}

}  // namespace
}  // namespace wavekv
