// Steps between BeginStep and EndStep: captured once, and launched while sequences grow.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/engine_fixture.h"
#include "tests/api/step_tensors.h"
#include "wavekv/engine.h"

namespace wavekv::testing {
namespace {

class StepTest : public EngineFixture {
 protected:
  bool is_quick_on_emulator() const override { return true; }

  static EngineOptions Options() {
    EngineOptions options = SmallOptions();
    options.model.kv_dtype = DType::kBFloat16;
    options.index.segment_tokens = 512;
    options.index.update_tokens = 64;
    options.arena_bytes = int64_t{32} << 20;
    return options;
  }

  Plan MakePlan(const AttendOptions& options, int32_t rows = 1) {
    const int32_t cu_seqlens[] = {0, rows};
    auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *plan : Plan();
  }

  // Every layer of a step, queued on the tensors' stream.
  void QueueStep(const Plan& plan, StepTensors& tensors) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      absl::Status status = engine_->AppendStep(plan, layer, tensors.keys(layer),
                                                tensors.values(layer), tensors.stream());
      ASSERT_TRUE(status.ok()) << status;
      status = engine_
                   ->Attend(plan, layer, tensors.queries(layer), tensors.output(layer),
                            tensors.lse(layer), {}, tensors.stream())
                   .status();
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  // New numbers in the tensors, and in the model.
  std::vector<std::vector<float>> Draw(StepTensors& tensors, int32_t rows) {
    std::vector<std::vector<float>> queries;
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      const std::vector<float> keys = RandomKeys(rows), values = RandomValues(rows);
      queries.push_back(RandomQueries(rows));
      tensors.Set(layer, keys, values, queries.back());
      expected_->Append(layer, keys, values);
    }
    return queries;
  }

  double RelativeError(int layer, int32_t rows, const std::vector<float>& queries,
                       const std::vector<float>& output) {
    const NaiveAttentionState want = expected_->Attend(layer, queries, rows, true);
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < output.size(); ++i) {
      difference += (output[i] - want.output[i]) * (output[i] - want.output[i]);
      norm += want.output[i] * want.output[i];
    }
    return std::sqrt(difference / norm);
  }
};

TEST_P(StepTest, ACapturedStepStaysRightWhileTheSequenceGrows) {
  Open(Options());
  AppendRandom(300);
  AttendOptions options = AttendOptions::Exact();
  options.reserve_tokens = 600;
  const Plan plan = MakePlan(options);
  StepTensors tensors(OfTest(), model_, 1);
  for (int step = 0; step < 100; ++step) {
    const auto queries = Draw(tensors, 1);
    absl::Status status = engine_->BeginStep(plan, tensors.stream());
    ASSERT_TRUE(status.ok()) << status;
    // Captured at the first step, launched at every one.
    tensors.CaptureOrRun(step == 0, [&] { QueueStep(plan, tensors); });
    if (step % 50 != 49) continue;
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      EXPECT_LT(RelativeError(layer, 1, queries[layer], tensors.ReadOutput(layer)), 0.01) << step;
    }
  }
  const absl::Status status = engine_->EndStep(plan, tensors.stream());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(sequence_.length(), 400);
  // Of every layer, as Append counts.
  EXPECT_EQ(engine_->stats().appended_tokens_total, 400 * model_.num_layers);
  WaitForBuilds();
  auto metadata = engine_->Describe(sequence_);
  ASSERT_TRUE(metadata.ok());
  EXPECT_THAT(*metadata, ::testing::HasSubstr("SEALED"));
}

TEST_P(StepTest, StepsAnswerAsCallsDo) {
  Open(Options());
  AppendRandom(700);
  AppendRandom(1);
  WaitForBuilds();
  AttendOptions options;
  options.retrieval = Budget::Ratio(0.1);
  options.reserve_tokens = 800;
  const Plan plan = MakePlan(options, 3);
  StepTensors tensors(OfTest(), model_, 3);
  const auto queries = Draw(tensors, 3);
  ASSERT_TRUE(engine_->BeginStep(plan, tensors.stream()).ok());
  QueueStep(plan, tensors);
  ASSERT_TRUE(engine_->EndStep(plan, tensors.stream()).ok());
  options.reserve_tokens = 0;
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    const std::vector<float> got = tensors.ReadOutput(layer);
    const Answer want = Attend(layer, queries[layer], options);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want.output[i], 1e-4) << i;
  }
  const auto stats = engine_->ReadStats(plan);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_GT(stats->tokens_estimated, 0);
}

TEST_P(StepTest, ASequenceThatOutgrowsThePlanIsRefusedAndUnchanged) {
  Open(Options());
  AppendRandom(100);
  AttendOptions options;
  options.reserve_tokens = 101;
  const Plan plan = MakePlan(options);
  StepTensors tensors(OfTest(), model_, 1);
  Draw(tensors, 1);
  ASSERT_TRUE(engine_->BeginStep(plan, tensors.stream()).ok());
  QueueStep(plan, tensors);
  ASSERT_TRUE(engine_->EndStep(plan, tensors.stream()).ok());
  if (on_cpu()) return;  // reserves nothing
  EXPECT_TRUE(absl::IsFailedPrecondition(engine_->BeginStep(plan, tensors.stream())));
  EXPECT_EQ(sequence_.length(), 101);
  ExpectExact(0, 1, AttendOptions::Exact(), 0.02);
}

TEST_P(StepTest, CallsOutOfOrderAreRefused) {
  Open(Options());
  AppendRandom(100);
  StepTensors tensors(OfTest(), model_, 1);
  const Plan without = MakePlan({});
  EXPECT_TRUE(absl::IsFailedPrecondition(engine_->BeginStep(without, tensors.stream())));
  AttendOptions options;
  options.reserve_tokens = 200;
  const Plan plan = MakePlan(options);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      engine_->AppendStep(plan, 0, tensors.keys(0), tensors.values(0), tensors.stream())));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      engine_->Attend(plan, 0, tensors.queries(0), tensors.output(0), {}, {}, tensors.stream())
          .status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(engine_->EndStep(plan, tensors.stream())));
  EXPECT_EQ(sequence_.length(), 100);
}

TEST_P(StepTest, CallsThatCannotBeCapturedSaySo) {
  if (on_cpu()) GTEST_SKIP() << "nothing is captured";
  Open(Options());
  AppendRandom(100);
  StepTensors tensors(OfTest(), model_, 1);
  Draw(tensors, 1);
  const Plan plan = MakePlan({});
  AttendOptions options;
  options.reserve_tokens = 200;
  const Plan of_steps = MakePlan(options);
  tensors.CaptureOrRun(true, [&] {
    EXPECT_TRUE(absl::IsFailedPrecondition(
        engine_->Attend(plan, 0, tensors.queries(0), tensors.output(0), {}, {}, tensors.stream())
            .status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(engine_->BeginStep(of_steps, tensors.stream())));
    const int32_t cu_seqlens[] = {0, 1};
    EXPECT_TRUE(absl::IsFailedPrecondition(engine_->Append(
        {{&sequence_, 1}, cu_seqlens}, 0, tensors.keys(0), tensors.values(0), tensors.stream())));
  });
  EXPECT_EQ(sequence_.length(), 100);
}

TEST_P(StepTest, NumbersThatAreNotFiniteAreTakenAsZerosAndReportedOnce) {
  if (on_cpu()) GTEST_SKIP() << "refused at once";
  Open(Options());
  AppendRandom(100);
  AttendOptions options;
  options.reserve_tokens = 200;
  const Plan plan = MakePlan(options);
  StepTensors tensors(OfTest(), model_, 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const bool in_keys : {true, false}) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      std::vector<float> keys = RandomKeys(1), queries = RandomQueries(1);
      const std::vector<float> values = RandomValues(1);
      std::vector<float> bad_keys = keys, bad_queries = queries;
      if (in_keys) {
        keys[3] = 0.0f;
        bad_keys[3] = nan;
      } else {
        bad_queries[3] = nan;
      }
      tensors.Set(layer, bad_keys, values, bad_queries);
      expected_->Append(layer, keys, values);
    }
    ASSERT_TRUE(engine_->BeginStep(plan, tensors.stream()).ok());
    QueueStep(plan, tensors);
    ASSERT_TRUE(engine_->EndStep(plan, tensors.stream()).ok());
    for (const float x : tensors.ReadOutput(0)) EXPECT_TRUE(std::isfinite(x));
    const absl::Status status = engine_->ReadStats(plan).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                ::testing::HasSubstr(in_keys ? "keys or values" : "queries"));
    EXPECT_TRUE(engine_->ReadStats(plan).ok());
  }
  ExpectExact(0, 1, AttendOptions::Exact(), 0.02);
}

INSTANTIATE_TEST_SUITE_P(Devices, StepTest, AllTestDevices(), DeviceName);

}  // namespace
}  // namespace wavekv::testing
