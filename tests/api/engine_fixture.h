// What tests of an engine against naive double-precision attention have in common.
#ifndef WAVEKV_TESTS_API_ENGINE_FIXTURE_H_
#define WAVEKV_TESTS_API_ENGINE_FIXTURE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/api/on_device.h"
#include "tests/testing/model_sequence.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// One sequence in an engine, and its model.
class EngineHarness : public OnDevice {
 protected:
  static EngineOptions SmallOptions() {
    EngineOptions options;
    options.model.num_layers = 2;
    options.model.num_q_heads = 4;
    options.model.num_kv_heads = 2;
    options.model.head_dim_k = 64;
    options.model.head_dim_v = 64;
    options.model.kv_dtype = DType::kFloat32;
    options.index.segment_tokens = 512;
    options.index.update_tokens = 128;
    options.arena_bytes = int64_t{64} << 20;
    options.worker_threads = 2;
    return options;
  }

  void Open(EngineOptions options) {
    options.device = device();
    auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    model_ = engine_->options().model;
    auto tenant = engine_->OpenTenant("tenant");
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    tenant_ = *tenant;
    auto sequence = tenant_.CreateSequence();
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    sequence_ = *sequence;
    expected_ = std::make_unique<ModelSequence>(model_);
  }

  std::vector<float> RandomKeys(int64_t rows) {
    return random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_k);
  }
  std::vector<float> RandomValues(int64_t rows) {
    return random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_v);
  }
  std::vector<float> RandomQueries(int64_t rows) {
    return random_.Gaussians(rows * model_.num_q_heads * model_.head_dim_k);
  }

  void Append(int layer, const std::vector<float>& keys, const std::vector<float>& values) {
    const auto rows = static_cast<int32_t>(keys.size() / (model_.num_kv_heads * model_.head_dim_k));
    const int32_t cu_seqlens[] = {0, rows};
    const absl::Status status =
        engine_->Append({{&sequence_, 1}, cu_seqlens}, layer,
                        TensorView::Dense(keys.data(), DType::kFloat32, rows, model_.num_kv_heads,
                                          model_.head_dim_k),
                        TensorView::Dense(values.data(), DType::kFloat32, rows, model_.num_kv_heads,
                                          model_.head_dim_v));
    ASSERT_TRUE(status.ok()) << status;
    expected_->Append(layer, keys, values);
  }

  void AppendRandom(int64_t rows) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      Append(layer, RandomKeys(rows), RandomValues(rows));
    }
  }

  struct Answer {
    std::vector<float> output;
    std::vector<float> lse;
    std::vector<float> errors;  // estimated
    AttendStats stats;
  };

  Answer Attend(int layer, const std::vector<float>& queries, const AttendOptions& options) {
    const auto rows =
        static_cast<int32_t>(queries.size() / (model_.num_q_heads * model_.head_dim_k));
    const int32_t cu_seqlens[] = {0, rows};
    const float poison = std::numeric_limits<float>::quiet_NaN();
    Answer answer;
    answer.output.assign(rows * model_.num_q_heads * model_.head_dim_v, poison);
    answer.lse.assign(rows * model_.num_q_heads, poison);
    answer.errors.assign(rows * model_.num_q_heads, poison);
    auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
    EXPECT_TRUE(plan.ok()) << plan.status();
    auto stats =
        engine_->Attend(*plan, layer,
                        TensorView::Dense(queries.data(), DType::kFloat32, rows, model_.num_q_heads,
                                          model_.head_dim_k),
                        MutableTensorView::Dense(answer.output.data(), DType::kFloat32, rows,
                                                 model_.num_q_heads, model_.head_dim_v),
                        PerHeadView::Dense(answer.lse.data(), rows, model_.num_q_heads),
                        PerHeadView::Dense(answer.errors.data(), rows, model_.num_q_heads));
    EXPECT_TRUE(stats.ok()) << stats.status();
    if (stats.ok()) answer.stats = *stats;
    return answer;
  }

  // fp32 accumulation of up to a few thousand terms of order 1.
  void ExpectExact(int layer, int64_t rows, const AttendOptions& options, double tolerance = 2e-5) {
    const std::vector<float> queries = RandomQueries(rows);
    const Answer got = Attend(layer, queries, options);
    const NaiveAttentionState want = expected_->Attend(layer, queries, rows, options.causal);
    for (size_t i = 0; i < want.lse.size(); ++i) {
      const double base = options.lse_base == LseBase::k2 ? std::log(2.0) : 1.0;
      if (std::isinf(want.lse[i])) {
        EXPECT_EQ(got.lse[i], want.lse[i]) << "lse of query " << i;
      } else {
        EXPECT_NEAR(got.lse[i] * base, want.lse[i], tolerance * (1 + std::abs(want.lse[i])))
            << "lse of query " << i;
      }
    }
    for (size_t i = 0; i < want.output.size(); ++i) {
      ASSERT_NEAR(got.output[i], want.output[i], tolerance) << "output element " << i;
    }
  }

  void WaitForBuilds() {
    const absl::Status status = engine_->WaitForBuilds(sequence_);
    ASSERT_TRUE(status.ok()) << status;
  }

  Random random_{20240711};
  std::unique_ptr<Engine> engine_;
  ModelSpec model_;
  Tenant tenant_;
  Sequence sequence_;
  std::unique_ptr<ModelSequence> expected_;
};

// On each of TestDevices().
class EngineFixture : public EngineHarness, public ::testing::WithParamInterface<TestDevice> {
 protected:
  TestDevice test_device() const override { return GetParam(); }
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_ENGINE_FIXTURE_H_
