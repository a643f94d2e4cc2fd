#include "index/bisect_cluster.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "tests/index/naive_backend.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

constexpr int kDim = 8;

TEST(BisectClusterTest, TwoSeparateGroupsAreToldApart) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  // Token i belongs to the group i % 3 == 0, which lies elsewhere.
  std::vector<float> points = random.Gaussians(90 * kDim, 0.1f);
  for (int i = 0; i < 90; i += 3) points[i * kDim] += 2.0f;
  std::vector<uint32_t> members(90);
  std::iota(members.begin(), members.end(), 0);
  NaiveBackend backend;
  const auto cut = BisectCluster(points.data(), kDim, absl::MakeSpan(members), backend);
  ASSERT_TRUE(cut.ok()) << cut.status();
  ASSERT_TRUE(*cut == 30 || *cut == 60) << *cut;
  for (int64_t i = 0; i < 90; ++i) EXPECT_EQ(members[i] % 3 == 0, (i < *cut) == (*cut == 30)) << i;
}

TEST(BisectClusterTest, EachHalfAscendsAndTogetherTheyHoldEveryMember) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> points = random.Gaussians(200 * kDim);
  for (const int64_t num_members : {2, 3, 9, 100}) {
    std::vector<uint32_t> members(num_members);
    for (int64_t i = 0; i < num_members; ++i) members[i] = static_cast<uint32_t>(2 * i);
    std::vector<uint32_t> all = members;
    NaiveBackend backend;
    const auto cut = BisectCluster(points.data(), kDim, absl::MakeSpan(members), backend);
    ASSERT_TRUE(cut.ok());
    EXPECT_GE(*cut, 1);
    EXPECT_LT(*cut, num_members);
    EXPECT_TRUE(std::is_sorted(members.begin(), members.begin() + *cut));
    EXPECT_TRUE(std::is_sorted(members.begin() + *cut, members.end()));
    std::sort(members.begin(), members.end());
    EXPECT_EQ(members, all);
  }
}

TEST(BisectClusterTest, EqualPointsAreHalvedByOrder) {
  const std::vector<float> points(100 * kDim, 0.1f);
  std::vector<uint32_t> members(100);
  std::iota(members.begin(), members.end(), 0);
  const std::vector<uint32_t> before = members;
  NaiveBackend backend;
  EXPECT_EQ(*BisectCluster(points.data(), kDim, absl::MakeSpan(members), backend), 50);
  EXPECT_EQ(members, before);
}

TEST(BisectClusterTest, OneOutlierTakesAnEighthWithIt) {
  std::vector<float> points(80 * kDim, 0.0f);
  for (int i = 0; i < 80; ++i) points[i * kDim] = 0.001f * static_cast<float>(i);
  points[40 * kDim] = 1000.0f;
  std::vector<uint32_t> members(80);
  std::iota(members.begin(), members.end(), 0);
  NaiveBackend backend;
  const int64_t cut = *BisectCluster(points.data(), kDim, absl::MakeSpan(members), backend);
  EXPECT_EQ(std::min<int64_t>(cut, 80 - cut), 10);
}

}  // namespace
}  // namespace wavekv
