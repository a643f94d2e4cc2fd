#include "tools/trace/trace_summary.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(RanksTest, EqualValuesShareTheMeanOfTheirPlaces) {
  EXPECT_THAT(Ranks({}), IsEmpty());
  EXPECT_THAT(Ranks({5}), ElementsAre(0));
  EXPECT_THAT(Ranks({3, 1, 2}), ElementsAre(2, 0, 1));
  EXPECT_THAT(Ranks({2, 1, 2, 2, 0}), ElementsAre(3, 1, 3, 3, 0));
  EXPECT_THAT(Ranks({0.0, -0.0}), ElementsAre(0.5, 0.5));
}

TEST(RanksTest, NansAreEqualAndBehindAllNumbers) {
  EXPECT_THAT(Ranks({kNan, 1, kInfinity, kNan, -1}), ElementsAre(3.5, 1, 2, 3.5, 0));
  EXPECT_THAT(Ranks({kNan, kNan, kNan}), ElementsAre(1, 1, 1));
}

TEST(RankCorrelationTest, IsZeroWhereEitherAreAllEqual) {
  EXPECT_EQ(RankCorrelation({}, {}), 0.0);
  EXPECT_EQ(RankCorrelation({1, 2}, {3, 3}), 0.0);
  EXPECT_EQ(RankCorrelation({kNan, kNan}, {1, 2}), 0.0);
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, kNan}, {10, 20, 30}), 1.0);
}

TEST(PercentileTest, IsTheSmallestSampleThatSoManyDoNotExceed) {
  EXPECT_EQ(Percentile({7}, 0.0), 7.0);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 0.5), 2.0);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 0.51), 3.0);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 1.0), 4.0);
}

TEST(SummarizeTest, PercentilesAreSamples) {
  TraceSamples samples;
  samples.recalls.resize(1);
  for (int i = 1; i <= 200; ++i) {
    samples.rel_errors.push_back((i * 77) % 200 + 1);  // 1..200, shuffled
    samples.error_estimates.push_back(i <= 50 ? 1000.0 : samples.rel_errors.back() / 1.5);
    samples.masses.push_back(0.5);
  }
  samples.num_rows = 100;
  samples.tokens_visible = 1000;
  samples.tokens_exact = 100;
  samples.bytes_dense = 2000;
  samples.bytes_read = 500;
  TraceSamples twice = samples;
  twice.Append(samples);
  for (const TraceSamples& some : {samples, twice}) {
    const TraceSummary summary = Summarize(some);
    EXPECT_DOUBLE_EQ(summary.rel_err_mean, 100.5);
    EXPECT_EQ(summary.rel_err_p95, 190.0);
    EXPECT_EQ(summary.rel_err_p99, 198.0);
    EXPECT_EQ(summary.rel_err_max, 200.0);
    EXPECT_EQ(summary.error_estimate_within_2, 0.75);
    EXPECT_LT(summary.error_estimate_correlation, 0.75);
    EXPECT_EQ(summary.mass, 0.5);
    EXPECT_EQ(summary.recalls[0], 1.0);  // no sample has an indexed token
    EXPECT_DOUBLE_EQ(summary.exact_tokens_ratio, 0.1);
    EXPECT_DOUBLE_EQ(summary.bytes_ratio, 0.25);
    EXPECT_DOUBLE_EQ(summary.tokens_exact, 1.0);
  }
  EXPECT_EQ(Summarize({}).num_samples, 0);
}

TEST(SummarizeTest, TheCorrelationIsThatOfRanks) {
  TraceSamples samples;
  samples.num_rows = 1;
  samples.rel_errors = {0.1, 0.2, 0.3, 0.4};
  samples.masses = {1, 1, 1, 1};
  const auto correlation = [&](std::vector<double> estimates) {
    samples.error_estimates = std::move(estimates);
    return Summarize(samples).error_estimate_correlation;
  };
  EXPECT_DOUBLE_EQ(correlation({1, 2, 30, 400}), 1.0);
  EXPECT_DOUBLE_EQ(correlation({4, 3, 2, 1}), -1.0);
  EXPECT_DOUBLE_EQ(correlation({7, 7, 7, 7}), 0.0);
  EXPECT_NEAR(correlation({1, 1, 2, 2}), 0.894427, 1e-6);
}

TEST(SummarizeTest, SamplesThatAreNoNumbersShow) {
  TraceSamples samples;
  samples.num_rows = 1;
  samples.rel_errors = {0.1, kNan, 0.2, 0.3};
  samples.error_estimates = {0.1, 0.1, kNan, 0.3};
  samples.masses = {1, 1, 1, 1};
  const TraceSummary summary = Summarize(samples);
  EXPECT_TRUE(std::isnan(summary.rel_err_mean));
  EXPECT_TRUE(std::isnan(summary.rel_err_max));
  EXPECT_EQ(summary.error_estimate_within_2, 0.5);
}

}  // namespace
}  // namespace wavekv
