// What is read and what is estimated: zones, target errors, opened super-clusters.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/engine_fixture.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::NaiveAttentionState;

class EngineZonesTest : public testing::EngineFixture {};

TEST_P(EngineZonesTest, EveryTokenIsCountedOnce) {
  // With zero queries all masses are token counts: lse = ln(length), output = the mean of the
  // values when each segment is answered by its own means.
  EngineOptions engine_options = SmallOptions();
  engine_options.index.statistics = StatisticsFormat::kFloat32;  // means as they are
  Open(engine_options);
  AppendRandom(2000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> zeros(model_.num_q_heads * model_.head_dim_k, 0.0f);
  const NaiveAttentionState want = expected_->Attend(0, zeros, 1);
  // On a GPU fewer: the emulator takes its time.
  const std::vector<double> shares =
      on_cpu() ? std::vector<double>{0.0, 0.1, 0.5, 1.0} : std::vector<double>{0.5};
  const std::vector<int64_t> retrievals =
      on_cpu() ? std::vector<int64_t>{0, 1, 100, 1000} : std::vector<int64_t>{100};
  for (double share : shares) {
    for (int64_t retrieval : retrievals) {
      for (const Zones zones : {Zones::kClusters, Zones::kSketch}) {
        AttendOptions options;
        options.zones = zones;
        options.retrieval = Budget::Tokens(retrieval);
        options.estimation = Budget::Ratio(share);
        options.sketch = Budget::Ratio(share);
        SCOPED_TRACE(::testing::Message()
                     << "zones " << static_cast<int>(zones) << ", estimation or sketch " << share
                     << ", retrieval " << retrieval);
        for (const double open : {1.0, 0.4, 0.0}) {
          for (const double target_error : {0.0, 0.3}) {
            SCOPED_TRACE(::testing::Message() << "open " << open << " target " << target_error);
            options.open = Budget::Ratio(open);
            options.target_error = target_error;
            const Answer got = Attend(0, zeros, options);
            for (float lse : got.lse) EXPECT_NEAR(lse, std::log(2001.0), 1e-5);
            for (size_t i = 0; i < want.output.size(); ++i) {
              ASSERT_NEAR(got.output[i], want.output[i], 1e-5) << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(EngineZonesTest, EstimatedMassNeverExceedsTheTrueMass) {
  EngineOptions engine_options = SmallOptions();
  engine_options.index.statistics = StatisticsFormat::kFloat32;  // centroids as they are
  Open(engine_options);
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  for (float scale : {0.01f, 1.0f, 4.0f, 30.0f}) {
    std::vector<float> queries = RandomQueries(1);
    for (float& q : queries) q *= scale;
    AttendOptions options = AttendOptions::Clusters();
    options.mass = MassEstimate::kLowerBound;
    for (double retrieval : {0.0, 0.018, 0.3}) {
      options.retrieval = Budget::Ratio(retrieval);
      const Answer got = Attend(1, queries, options);
      const NaiveAttentionState want = expected_->Attend(1, queries, 1);
      for (size_t i = 0; i < want.lse.size(); ++i) {
        EXPECT_LE(got.lse[i], want.lse[i] + 2e-5 * (1 + std::abs(want.lse[i]))) << scale;
      }
    }
  }
}

TEST_P(EngineZonesTest, SecondOrderMassesAreNearerToTheTruthThanTheBound) {
  if (test_device() == testing::TestDevice::kEmulatedGpu) GTEST_SKIP() << "others suffice";
  Open(SmallOptions());
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const NaiveAttentionState want = expected_->Attend(0, queries, 1);
  AttendOptions options;
  const Answer second_order = Attend(0, queries, options);
  options.mass = MassEstimate::kLowerBound;
  const Answer bound = Attend(0, queries, options);
  for (size_t i = 0; i < want.lse.size(); ++i) {
    EXPECT_LT(std::abs(second_order.lse[i] - want.lse[i]), 0.5 * (want.lse[i] - bound.lse[i]));
  }
}

TEST_P(EngineZonesTest, ErrorFallsAsTheBudgetGrows) {
  if (test_device() == testing::TestDevice::kEmulatedGpu) GTEST_SKIP() << "others suffice";
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const NaiveAttentionState want = expected_->Attend(0, queries, 1);
  const auto error = [&](double ratio) {
    AttendOptions options;
    options.retrieval = Budget::Ratio(ratio);
    options.estimation = Budget::All();
    const Answer got = Attend(0, queries, options);
    double difference = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < want.output.size(); ++i) {
      difference += std::pow(got.output[i] - want.output[i], 2);
      norm += std::pow(want.output[i], 2);
    }
    return std::sqrt(difference / norm);
  };
  const double little = error(0.02);
  const double half = error(0.5);
  EXPECT_LT(half, 0.7 * little);
  EXPECT_LT(error(0.999), 0.1 * little);
}

TEST_P(EngineZonesTest, ErrorEstimatesComePerHeadAndAreZeroWhereAllIsRead) {
  Open(SmallOptions());
  AppendRandom(1200);
  // Of three rows the first two see segments that are not sealed yet.
  const std::vector<float> queries = RandomQueries(3);
  const Answer exact = Attend(0, queries, AttendOptions::Exact());
  EXPECT_THAT(exact.errors, ::testing::Each(0.0f));
  AppendRandom(1);
  WaitForBuilds();
  const Answer got = Attend(0, queries, {});
  double sum = 0.0;
  for (const float error : got.errors) {
    EXPECT_GT(error, 0.0f);
    sum += error;
  }
  EXPECT_NEAR(got.stats.error_estimate_mean, sum / static_cast<double>(got.errors.size()), 1e-6);
  EXPECT_FLOAT_EQ(static_cast<float>(got.stats.error_estimate_max),
                  *std::max_element(got.errors.begin(), got.errors.end()));
}

TEST_P(EngineZonesTest, ALargerTargetErrorReadsLess) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.retrieval = Budget::Ratio(0.5);
  options.sketch = Budget::All();
  const AttendStats most = Attend(0, queries, options).stats;
  int64_t tokens = most.tokens_exact, sketched = most.tokens_sketched;
  for (const double target : {1e-6, 0.05, 0.2, 0.5, 20.0}) {
    options.target_error = target;
    const Answer got = Attend(0, queries, options);
    // But for clusters that are read whole, as most of them was chosen.
    EXPECT_LE(got.stats.tokens_exact, 1.02 * static_cast<double>(tokens)) << target;
    EXPECT_LE(got.stats.tokens_sketched, sketched) << target;
    tokens = got.stats.tokens_exact;
    sketched = got.stats.tokens_sketched;
    if (target == 1e-6) {
      EXPECT_EQ(tokens, most.tokens_exact) << "the budgets are the most";
      EXPECT_EQ(sketched, most.tokens_sketched);
    }
  }
  EXPECT_LT(tokens, most.tokens_exact / 2);
  EXPECT_EQ(sketched, 0);
}

TEST_P(EngineZonesTest, WithATargetAllIsTheMostThatIsRead) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  AttendOptions options;
  options.retrieval = options.sketch = Budget::All();
  options.target_error = 0.5;
  const AttendStats stats = Attend(0, RandomQueries(1), options).stats;
  EXPECT_GT(stats.tokens_estimated, 0);
  options.target_error = 0.0;
  EXPECT_EQ(Attend(0, RandomQueries(1), options).stats.tokens_estimated, 0);
}

TEST_P(EngineZonesTest, TheEstimationZoneIsChosenAmongOpenedClusters) {
  // Values grow with the position: an answer from the oldest clusters alone would be too small.
  Open(SmallOptions());
  constexpr int kTokens = 4000;
  const int64_t row = int64_t{model_.num_kv_heads} * model_.head_dim_v;
  std::vector<float> values;
  for (int64_t t = 0; t < kTokens; ++t) values.insert(values.end(), row, t / float{kTokens});
  const std::vector<float> keys =
      random_.Gaussians(int64_t{kTokens} * model_.num_kv_heads * model_.head_dim_k);
  const int32_t cu_seqlens[] = {0, kTokens};
  ASSERT_TRUE(engine_
                  ->Append({{&sequence_, 1}, cu_seqlens}, 0,
                           TensorView::Dense(keys.data(), DType::kFloat32, kTokens,
                                             model_.num_kv_heads, model_.head_dim_k),
                           TensorView::Dense(values.data(), DType::kFloat32, kTokens,
                                             model_.num_kv_heads, model_.head_dim_v))
                  .ok());
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const auto mean_output = [&](const AttendOptions& options) {
    const Answer got = Attend(0, queries, options);
    return std::accumulate(got.output.begin(), got.output.end(), 0.0) /
           static_cast<double>(got.output.size());
  };
  AttendOptions options = AttendOptions::Paper();
  options.estimation = Budget::Ratio(0.4);
  const double flat = mean_output(options);
  const int64_t scored = Attend(0, queries, options).stats.bytes_read;
  options.open = Budget::Ratio(0.0);
  EXPECT_NEAR(mean_output(options), flat, 0.03);
  EXPECT_LT(Attend(0, queries, options).stats.bytes_read, scored);
}

TEST_P(EngineZonesTest, OpeningFewerSuperClustersReadsFewerBytes) {
  if (test_device() == testing::TestDevice::kEmulatedGpu) GTEST_SKIP() << "others suffice";
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.sketch = Budget::Ratio(0.05);
  // Nothing but statistics, of which the same rows are read.
  options.retrieval = Budget::Tokens(1);
  int64_t bytes = Attend(0, queries, options).stats.bytes_read;
  for (const double open : {0.5, 0.0}) {
    options.open = Budget::Ratio(open);
    const AttendStats stats = Attend(0, queries, options).stats;
    EXPECT_LT(stats.bytes_read, bytes) << open;
    // What is sketched is opened first.
    EXPECT_GE(stats.tokens_sketched, static_cast<int64_t>(0.04 * stats.tokens_visible));
    bytes = stats.bytes_read;
  }
}

TEST_P(EngineZonesTest, RowsThatSeeFewSealedTokensAreExact) {
  Open(SmallOptions());
  AppendRandom(1200);
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  WaitForBuilds();
  AttendOptions options;
  if (!on_cpu()) {
    options.exact_below_tokens = 1;
    const int32_t cu_seqlens[] = {0, 1};
    EXPECT_EQ(engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options).status().code(),
              absl::StatusCode::kUnimplemented);
    return;
  }
  // Rows that see up to 501, 502, .. 1200 tokens; sealed are [4, 516) and [516, 1028).
  constexpr int64_t kRows = 700;
  const std::vector<float> queries = RandomQueries(kRows);
  const NaiveAttentionState want = expected_->Attend(0, queries, kRows);
  const auto first_that_sees = [](int64_t tokens) { return tokens - 501; };
  for (const auto& [exact_below, first_zones] : {std::pair{int64_t{0}, first_that_sees(516)},
                                                 {1, first_that_sees(516)},
                                                 {512, first_that_sees(516)},
                                                 {513, first_that_sees(1028)},
                                                 {1024, first_that_sees(1028)},
                                                 {1025, kRows}}) {
    SCOPED_TRACE(::testing::Message() << "exact below " << exact_below);
    options.exact_below_tokens = exact_below;
    const Answer got = Attend(0, queries, options);
    const auto row_outputs = static_cast<int64_t>(got.output.size()) / kRows;
    for (int64_t i = 0; i < first_zones * row_outputs; ++i) {
      ASSERT_NEAR(got.output[i], want.output[i], 2e-5) << "row " << i / row_outputs;
    }
    // An exact row has no estimated error.
    for (size_t i = 0; i < got.errors.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / model_.num_q_heads;
      ASSERT_EQ(got.errors[i] > 0.0f, row >= first_zones) << "row " << row;
    }
    int64_t tokens = 0;
    for (int64_t row = 0; row < first_zones; ++row) tokens += 501 + row;
    EXPECT_GE(got.stats.tokens_exact, tokens * model_.num_kv_heads);
    EXPECT_EQ(got.stats.tokens_estimated == 0, first_zones == kRows);
  }
}

TEST_P(EngineZonesTest, WithTwoSmallSegmentsZonesBeginUnlessOptionsSaySo) {
  if (!on_cpu()) GTEST_SKIP() << "a GPU ranks always";
  Open(SmallOptions());
  AppendRandom(250);
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const auto answers_by_zones = [&](const AttendOptions& options) {
    return Attend(0, queries, options).stats.tokens_estimated > 0;
  };
  // One of 128 tokens is sealed.
  EXPECT_FALSE(answers_by_zones({}));
  AttendOptions never;
  never.exact_below_tokens = 0;
  EXPECT_TRUE(answers_by_zones(never));
  // Rows that come too late can only be done without where zones answer.
  AttendOptions in_time;
  in_time.miss_deadline = absl::Seconds(600);
  EXPECT_TRUE(answers_by_zones(in_time));
  EXPECT_EQ(AttendOptions::Paper().exact_below_tokens, 0);
  // And another.
  AppendRandom(128);
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  WaitForBuilds();
  EXPECT_TRUE(answers_by_zones({}));
}

TEST_P(EngineZonesTest, RetrieveNamesWhatAttendReads) {
  Open(SmallOptions());
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.retrieval = Budget::Tokens(200);
  const int32_t cu_seqlens[] = {0, 1};
  auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
  ASSERT_TRUE(plan.ok());
  auto retrieved = engine_->Retrieve(
      *plan, 0,
      TensorView::Dense(queries.data(), DType::kFloat32, 1, model_.num_q_heads, model_.head_dim_k));
  ASSERT_TRUE(retrieved.ok()) << retrieved.status();
  ASSERT_EQ(retrieved->size(), static_cast<size_t>(model_.num_kv_heads));
  size_t tokens = 0;
  for (const RetrievedTokens& head : *retrieved) {
    tokens += head.positions.size();
    EXPECT_GE(head.positions.size(), 200u);
    for (size_t i = 1; i < head.clusters.size(); ++i) {
      EXPECT_GE(head.clusters[i - 1].probability, head.clusters[i].probability);
    }
    ASSERT_EQ(head.places.size(), head.positions.size());
    size_t token = 0;
    for (const RankedCluster& cluster : head.clusters) {
      int64_t place = -1;
      for (int64_t i = 0; i < cluster.num_read; ++i, ++token) {
        EXPECT_GT(head.places[token], place);
        place = head.places[token];
      }
      EXPECT_LT(place, cluster.num_tokens);
    }
    EXPECT_EQ(token, head.positions.size());
    for (int64_t position : head.positions) {
      EXPECT_GE(position, 4);
      EXPECT_LT(position, 3001 - 64);
    }
  }
  EXPECT_EQ(Attend(0, queries, options).stats.tokens_retrieved, static_cast<int64_t>(tokens));
}

WAVEKV_ON_EACH_DEVICE(EngineZonesTest);

}  // namespace
}  // namespace wavekv
