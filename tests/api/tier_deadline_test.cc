// miss_deadline: rows that come too late or damaged are answered from their clusters' statistics.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/tiered_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::AddSequence;
using ::wavekv::testing::AppendRandom;
using ::wavekv::testing::Ask;
using ::wavekv::testing::Fill;
using ::wavekv::testing::FilledEngine;
using ::wavekv::testing::OpenEngine;
using ::wavekv::testing::Random;
using ::wavekv::testing::RelativeDistance;
using ::wavekv::testing::ResidentOptions;
using ::wavekv::testing::TierAnswer;
using ::wavekv::testing::TieredOptions;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

constexpr int64_t kTokens = 2000;
constexpr int64_t kCacheBytes = 4 << 20;
constexpr int64_t kAlways = int64_t{1} << 40;
// Reads come long after the deadline, which is what makes the tests repeatable.
constexpr std::chrono::milliseconds kDelay{400};
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 1;
#else
constexpr int kRounds = 3;
#endif
constexpr absl::Duration kDeadline = absl::Milliseconds(10);

void DelayReads(Engine& engine) {
  EngineTestPeer::Faults(engine).Plant(Site::kComplete, Fault::kDelay, 0, kAlways, kDelay);
}

void ExpectAudit(const Engine& engine) {
  const absl::Status audit = EngineTestPeer::Audit(engine);
  EXPECT_TRUE(audit.ok()) << audit;
}

// A retrieval zone that reads much, and the same question with none.
struct Way {
  AttendOptions reads;
  AttendOptions reads_nothing;
};

std::vector<Way> Ways() {
  std::vector<Way> ways;
  for (const Zones zones : {Zones::kSketch, Zones::kClusters, Zones::kPaper}) {
    Way way;
    way.reads.zones = zones;
    if (zones == Zones::kPaper) way.reads.mass = MassEstimate::kLowerBound;
    way.reads.retrieval = Budget::Ratio(0.3);
    way.reads.sketch = Budget::Ratio(0.5);
    way.reads.estimation = Budget::All();
    way.reads_nothing = way.reads;
    way.reads_nothing.retrieval = Budget::Tokens(0);
    ways.push_back(way);
  }
  return ways;
}

// Up to the rounding of partial states: what is read besides is cut into pieces by all that was to
// be read.
void ExpectNear(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 1e-6 * (0.1 + std::fabs(want[i]))) << i;
  }
}

class TierDeadlineTest : public ::testing::TestWithParam<int> {
 protected:
  TierDeadlineTest()
      : way_(Ways()[GetParam()]),
        resident_(Fill(ResidentOptions(), kTokens)),
        tiered_(Fill(TieredOptions(kCacheBytes), kTokens)) {}

  TierAnswer Resident(const AttendOptions& options) {
    return *Ask(*resident_.engine, resident_.sequence, options);
  }

  const Way way_;
  const FilledEngine resident_;
  const FilledEngine tiered_;
};

TEST_P(TierDeadlineTest, RowsThatComeTooLateAreAnsweredAsIfTheyHadNotBeenChosen) {
  Engine& engine = *tiered_.engine;
  const TierAnswer full = Resident(way_.reads);
  const TierAnswer nothing = Resident(way_.reads_nothing);
  DelayReads(engine);
  AttendOptions options = way_.reads;
  options.miss_deadline = kDeadline;
  const auto late = Ask(engine, tiered_.sequence, options);
  ASSERT_TRUE(late.ok()) << late.status();
  // It did not wait for them, or they would have been read.
  EXPECT_EQ(late->stats.tokens_retrieved, 0);
  EXPECT_EQ(late->stats.tokens_degraded, full.stats.tokens_retrieved);
  EXPECT_EQ(late->stats.tokens_exact + late->stats.tokens_estimated, late->stats.tokens_visible);
  ExpectNear(late->numbers, nothing.numbers);
  EXPECT_NE(late->numbers, full.numbers);
  EXPECT_GT(late->stats.error_estimate_mean, 0.0);

  EngineTestPeer::Faults(engine).Clear();
  EngineTestPeer::WaitUntilAdmitted(engine);
  const auto again = Ask(engine, tiered_.sequence, options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->stats.tokens_degraded, 0);
  EXPECT_EQ(again->numbers, full.numbers);
  ExpectAudit(engine);
}

TEST_P(TierDeadlineTest, SomeLateRowsLeaveAnAnswerBetweenAllAndNone) {
  Engine& engine = *tiered_.engine;
  const TierAnswer full = Resident(way_.reads);
  const TierAnswer exact = Resident(AttendOptions::Exact());
  const double distance_of_none =
      RelativeDistance(Resident(way_.reads_nothing).numbers, exact.numbers);
  // The first reads come in time.
  EngineTestPeer::Faults(engine).Plant(Site::kComplete, Fault::kDelay, 40, kAlways, kDelay);
  AttendOptions options = way_.reads;
  options.miss_deadline = kDeadline;
  const auto late = Ask(engine, tiered_.sequence, options);
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_GT(late->stats.tokens_degraded, 0);
  EXPECT_LE(late->stats.tokens_retrieved + late->stats.tokens_degraded,
            full.stats.tokens_retrieved);
  EXPECT_NE(late->numbers, full.numbers);
  EXPECT_LT(RelativeDistance(late->numbers, exact.numbers), 1.5 * distance_of_none);
  EngineTestPeer::Faults(engine).Clear();
  ExpectAudit(engine);
}

TEST_P(TierDeadlineTest, DamagedRowsAreDegradedWithADeadlineAndFailTheCallWithout) {
  Engine& engine = *tiered_.engine;
  const TierAnswer nothing = Resident(way_.reads_nothing);
  EngineTestPeer::Faults(engine).Plant(Site::kComplete, Fault::kCorrupt, 0, kAlways);
  AttendOptions options = way_.reads;
  EXPECT_EQ(Ask(engine, tiered_.sequence, options).status().code(), absl::StatusCode::kDataLoss);
  options.miss_deadline = absl::Seconds(600);
  const auto degraded = Ask(engine, tiered_.sequence, options);
  ASSERT_TRUE(degraded.ok()) << degraded.status();
  EXPECT_GT(degraded->stats.tokens_degraded, 0);
  ExpectNear(degraded->numbers, nothing.numbers);
  // What is to be attended exactly cannot be.
  AttendOptions exact = AttendOptions::Exact();
  exact.miss_deadline = absl::Seconds(600);
  EXPECT_EQ(Ask(engine, tiered_.sequence, exact).status().code(), absl::StatusCode::kDataLoss);

  // The damage was on the way: nothing of it is kept.
  EngineTestPeer::Faults(engine).Clear();
  const auto whole = Ask(engine, tiered_.sequence, way_.reads);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->numbers, Resident(way_.reads).numbers);
  ExpectAudit(engine);
}

TEST_P(TierDeadlineTest, ARowThatSeesPartOfASegmentNeedsItsRows) {
  Engine& engine = *tiered_.engine;
  // Row 0 sees all but the last 99 tokens: most segments by zones, the last one up to its middle.
  const int32_t cu_seqlens[] = {0, 100};
  AttendOptions options = way_.reads_nothing;
  const auto full = Ask(*resident_.engine, {&resident_.sequence, 1}, cu_seqlens, options);
  ASSERT_TRUE(full.ok()) << full.status();
  options.miss_deadline = kDeadline;
  DelayReads(engine);
  EXPECT_EQ(Ask(engine, {&tiered_.sequence, 1}, cu_seqlens, options).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EngineTestPeer::Faults(engine).Clear();
  EngineTestPeer::WaitUntilAdmitted(engine);
  EngineTestPeer::EmptyCache(engine);
  EngineTestPeer::Faults(engine).Plant(Site::kComplete, Fault::kCorrupt, 0, kAlways);
  options.miss_deadline = absl::Seconds(600);
  EXPECT_EQ(Ask(engine, {&tiered_.sequence, 1}, cu_seqlens, options).status().code(),
            absl::StatusCode::kDataLoss);
  EngineTestPeer::Faults(engine).Clear();
  const auto whole = Ask(engine, {&tiered_.sequence, 1}, cu_seqlens, options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->numbers, full->numbers);
  ExpectAudit(engine);
}

TEST(TierReleaseTest, NothingIsEvictedWhileReadsOfEndedCallsStillHoldBytes) {
  TenantQuota quota;
  quota.on_limit = TenantQuota::OnLimit::kEvictOwn;
  const FilledEngine filled = Fill(TieredOptions(kCacheBytes), kTokens, quota);
  Engine& engine = *filled.engine;
  const Sequence other = AddSequence(engine, filled.tenant, 200, /*seed=*/2);
  DelayReads(engine);
  AttendOptions options;
  options.miss_deadline = kDeadline;
  ASSERT_TRUE(Ask(engine, filled.sequence, options).ok());
  ASSERT_TRUE(filled.tenant.Remove(filled.sequence).ok());
  // Full but for what those reads hold.
  quota.host_bytes = filled.tenant.stats()->host_bytes_used;
  ASSERT_TRUE(filled.tenant.SetQuota(quota).ok());
  const Sequence next = *filled.tenant.CreateSequence();
  EXPECT_TRUE(AppendRandom(engine, next, 100, /*seed=*/3).ok());
  EXPECT_TRUE(other.valid());
  EXPECT_EQ(filled.tenant.stats()->evicted_sequences_total, 0);
}

INSTANTIATE_TEST_SUITE_P(Zones, TierDeadlineTest, ::testing::Values(0, 1, 2));

TEST(TierDeadlinesTest, ExactAttentionThatIsNotThereInTimeExceedsTheDeadline) {
  const FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
  DelayReads(*tiered.engine);
  AttendOptions options = AttendOptions::Exact();
  options.miss_deadline = kDeadline;
  EXPECT_EQ(Ask(*tiered.engine, tiered.sequence, options).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  // Also where there is no time at all.
  options.miss_deadline = absl::ZeroDuration();
  EXPECT_EQ(Ask(*tiered.engine, tiered.sequence, options).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  ExpectAudit(*tiered.engine);
}

TEST(TierDeadlinesTest, WhatLiesInTheCacheNeedsNoDevice) {
  const FilledEngine resident = Fill(ResidentOptions(), kTokens);
  const FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
  const auto full = Ask(*tiered.engine, tiered.sequence, AttendOptions::Exact());
  ASSERT_TRUE(full.ok()) << full.status();
  EngineTestPeer::WaitUntilAdmitted(*tiered.engine);
  EngineTestPeer::Faults(*tiered.engine).Plant(Site::kSubmit, Fault::kIoError, 0, kAlways);
  EngineTestPeer::Faults(*tiered.engine).Plant(Site::kRun, Fault::kIoError, 0, kAlways);
  AttendOptions options = AttendOptions::Exact();
  options.miss_deadline = absl::ZeroDuration();
  const auto cached = Ask(*tiered.engine, tiered.sequence, options);
  ASSERT_TRUE(cached.ok()) << cached.status();
  EXPECT_EQ(cached->numbers,
            Ask(*resident.engine, resident.sequence, AttendOptions::Exact())->numbers);
}

TEST(TierDeadlinesTest, RowsOfAFailedCallMayGoWhileTheyAreBeingRead) {
  const FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
  Engine& engine = *tiered.engine;
  for (int i = 0; i < 3; ++i) {
    const Sequence sequence = testing::AddSequence(engine, tiered.tenant, kTokens, 5);
    DelayReads(engine);
    AttendOptions options = i == 0 ? AttendOptions::Exact() : Ways()[i - 1].reads;
    options.miss_deadline = absl::Milliseconds(1);
    EXPECT_EQ(Ask(engine, sequence, options).ok(), i > 0);
    ASSERT_TRUE(tiered.tenant.Remove(sequence).ok());
    EngineTestPeer::Faults(engine).Clear();
    const Sequence next = testing::AddSequence(engine, tiered.tenant, kTokens, 6);
    ASSERT_TRUE(tiered.tenant.Remove(next).ok());
  }
  ExpectAudit(engine);
}

TEST(TierDeadlinesTest, LateReadsOfEarlierCallsHoldUpNoCallWithADeadline) {
  const FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
  DelayReads(*tiered.engine);
  for (const Way& way : Ways()) {
    AttendOptions options = way.reads;
    options.miss_deadline = kDeadline;
    for (int i = 0; i < 4; ++i) {
      const auto late = Ask(*tiered.engine, tiered.sequence, options);
      ASSERT_TRUE(late.ok()) << late.status();
      // Had it waited for those of the first call, their rows would be in the cache.
      EXPECT_EQ(late->stats.tokens_retrieved, 0);
      EXPECT_GT(late->stats.tokens_degraded, 0);
    }
    options = AttendOptions::Exact();
    options.miss_deadline = kDeadline;
    EXPECT_EQ(Ask(*tiered.engine, tiered.sequence, options).status().code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  EngineTestPeer::Faults(*tiered.engine).Clear();
  EXPECT_TRUE(Ask(*tiered.engine, tiered.sequence, AttendOptions::Exact()).ok());
  ExpectAudit(*tiered.engine);
}

TEST(TierDeadlinesTest, ADeadlineBeyondTheClockIsNeverOver) {
  const FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
  for (const absl::Duration wait : {absl::Hours(24 * 365 * 300), absl::Seconds(1e18)}) {
    EngineTestPeer::EmptyCache(*tiered.engine);
    AttendOptions options = AttendOptions::Exact();
    options.miss_deadline = wait;
    const auto answer = Ask(*tiered.engine, tiered.sequence, options);
    EXPECT_TRUE(answer.ok()) << answer.status();
  }
}

TEST(TierDeadlinesTest, AnEngineMayCloseWhileLateReadsAreComing) {
  for (const bool keep_plan : {false, true}) {
    FilledEngine tiered = Fill(TieredOptions(kCacheBytes), kTokens);
    DelayReads(*tiered.engine);
    AttendOptions options = Ways()[0].reads;
    options.miss_deadline = absl::Milliseconds(1);
    const int32_t cu_seqlens[] = {0, 1};
    auto plan = tiered.engine->MakePlan({{&tiered.sequence, 1}, cu_seqlens}, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (int layer = 0; layer < 2; ++layer) EXPECT_TRUE(Ask(*tiered.engine, *plan, layer).ok());
    if (!keep_plan) plan = Plan();
    tiered.engine.reset();
    EXPECT_FALSE(tiered.sequence.valid());
  }
}

TEST(TierDeadlinesTest, LateRowsOfOnePartOfAStepDoNotComeAsOthersInTheNext) {
  // Clusters of one token, so many that one call estimates them in several parts.
  EngineOptions options = TieredOptions(kCacheBytes);
  options.model = {.num_layers = 1,
                   .num_q_heads = 16,
                   .num_kv_heads = 1,
                   .head_dim_k = 16,
                   .head_dim_v = 8,
                   .kv_dtype = DType::kFloat32};
  options.index.tokens_per_cluster = 1;
  options.index.cluster_tokens_max = 1;
  options.index.statistics = StatisticsFormat::kFloat32;
  options.tiers.block_tokens = 5;
  const auto engine = OpenEngine(options);
  const Tenant tenant = *engine->OpenTenant("alice");
  const Sequence sequence = *tenant.CreateSequence();
  // Keys of no weight: every answer is the mean of all values, however it is come by.
  constexpr int64_t kNumTokens = 2000;
  const auto keys = Random(1).Gaussians(kNumTokens * 16, 1e-4f);
  const auto values = Random(2).Gaussians(kNumTokens * 8);
  const int32_t all[] = {0, static_cast<int32_t>(kNumTokens)};
  ASSERT_TRUE(engine
                  ->Append({{&sequence, 1}, all}, 0,
                           TensorView::Dense(keys.data(), DType::kFloat32, kNumTokens, 1, 16),
                           TensorView::Dense(values.data(), DType::kFloat32, kNumTokens, 1, 8))
                  .ok());
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  ASSERT_TRUE(engine->WaitForBuilds(sequence).ok());
  std::vector<double> mean(8);
  for (int64_t i = 0; i < kNumTokens * 8; ++i) mean[i % 8] += values[i] / double{kNumTokens};

  for (const Zones zones : {Zones::kSketch, Zones::kClusters}) {
    for (int round = 0; round < kRounds; ++round) {
      EngineTestPeer::EmptyCache(*engine);
      AttendOptions way;
      way.zones = zones;
      way.causal = false;
      way.retrieval = Budget::Ratio(0.3);
      way.sketch = Budget::Ratio(0.3);
      way.estimation = Budget::All();
      // Long over when the first part asks for rows, so that they come while the next one does.
      way.miss_deadline = absl::Microseconds(1);
      constexpr int32_t kRows = 300;  // 3 parts
      const int32_t rows[] = {0, kRows};
      const auto answer = Ask(*engine, {&sequence, 1}, rows, way);
      ASSERT_TRUE(answer.ok()) << answer.status();
      double furthest = 0.0;
      for (int64_t i = 0; i < int64_t{kRows} * 16 * 8; ++i) {
        furthest = std::max(furthest, std::abs(answer->numbers[i] - mean[i % 8]));
      }
      EXPECT_LT(furthest, 2e-3) << "round " << round;
    }
  }
  ExpectAudit(*engine);
}

}  // namespace
}  // namespace wavekv
