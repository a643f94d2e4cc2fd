#include "bench/growth.h"

#include <cmath>

#include "gtest/gtest.h"

namespace wavekv::bench {
namespace {

TEST(GrowthTest, FindsTheExponentOfAPowerLaw) {
  for (const double exponent : {0.0, 0.6, 1.0, 1.3}) {
    TimesByTokens times;
    for (const int64_t tokens : {32768, 131072, 1048576}) {
      times[tokens] = 3e-4 * std::pow(static_cast<double>(tokens), exponent);
    }
    EXPECT_NEAR(*GrowthExponent(times), exponent, 1e-12);
  }
}

TEST(GrowthTest, WeighsAllContextsAlikeWhereNoPowerLawFits) {
  // The slope of least squares through (0, 0), (1, 2), (2, 1) is 1 / 2.
  EXPECT_NEAR(*GrowthExponent({{1, 1.0}, {2, 4.0}, {4, 2.0}}), 0.5, 1e-12);
}

TEST(GrowthTest, NeedsTwoContexts) {
  EXPECT_FALSE(GrowthExponent({}).has_value());
  EXPECT_FALSE(GrowthExponent({{32768, 2.0}}).has_value());
}

TEST(CrossoverTest, IsTheSmallestContextFromWhichOnZonesAreFaster) {
  const TimesByTokens dense = {{1, 1.0}, {2, 2.0}, {4, 4.0}, {8, 8.0}};
  EXPECT_EQ(Crossover(dense, {{1, 1.5}, {2, 2.5}, {4, 3.0}, {8, 3.5}}), 4);
  EXPECT_EQ(Crossover(dense, {{1, 1.0}, {2, 1.5}, {4, 3.0}, {8, 3.5}}), 2);
  // A context where zones happen to be faster does not count before one where they are not.
  EXPECT_EQ(Crossover(dense, {{1, 0.5}, {2, 1.5}, {4, 4.5}, {8, 3.5}}), 8);
}

TEST(CrossoverTest, NeedsAContextOnEachSide) {
  const TimesByTokens dense = {{1, 1.0}, {2, 2.0}};
  EXPECT_FALSE(Crossover(dense, {{1, 0.5}, {2, 0.5}}).has_value());
  EXPECT_FALSE(Crossover(dense, {{1, 1.5}, {2, 2.5}}).has_value());
  EXPECT_FALSE(Crossover(dense, {{1, 0.5}, {2, 2.5}}).has_value());
  EXPECT_FALSE(Crossover({}, {}).has_value());
}

TEST(CrossoverTest, LeavesOutContextsOfWhichOneTimeIsMissing) {
  EXPECT_EQ(Crossover({{1, 1.0}, {2, 2.0}, {4, 4.0}}, {{1, 2.0}, {4, 1.0}}), 4);
}

}  // namespace
}  // namespace wavekv::bench
