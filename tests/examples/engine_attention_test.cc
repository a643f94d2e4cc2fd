#include "examples/tinylm/engine_attention.h"

#include <algorithm>
#include <cmath>

#include "api/engine_test_peer.h"
#include "cuda/emulator/emulated_gpu.h"
#include "examples/tinylm/error_meter.h"
#include "examples/tinylm/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

using testing::DataDirectory;
using testing::DataFile;
using wavekv::AttendOptions;

constexpr int64_t kNumTokens = 512;

class EngineAttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto executor = std::shared_ptr<wavekv::Executor>(wavekv::MakeThreadPool(2));
    auto model = Model::Load(DataDirectory(), executor);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    const auto vectors = safetensors::File::Read(DataFile("testvec.safetensors"));
    ASSERT_TRUE(vectors.ok()) << vectors.status();
    tokens_ = *vectors->Int32s("tokens", {kNumTokens});
    expected_ = *vectors->Floats("logits", {kNumTokens, vocab_size()});
    auto engine = OpenEngine(model_->config(), kNumTokens, executor);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto tenant = engine_->OpenTenant("test");
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    tenant_.emplace(*tenant);
  }

  int64_t vocab_size() const { return model_->config().vocab_size; }

  // Logits of tokens [begin, end).
  std::vector<float> Logits(int64_t begin, int64_t end, TokenHistory* history,
                            Attention* attention) {
    std::vector<float> logits;
    const absl::Status status =
        model_->Forward(absl::MakeConstSpan(tokens_).subspan(begin, end - begin), end - begin,
                        history, attention, &logits);
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }

  double RelativeError(const std::vector<float>& got, int64_t first_row) const {
    double difference = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double want = expected_[first_row * vocab_size() + i];
      difference += (got[i] - want) * (got[i] - want);
      norm += want * want;
    }
    return std::sqrt(difference / norm);
  }

  std::unique_ptr<Model> model_;
  std::vector<int32_t> tokens_;
  std::vector<float> expected_;
  std::unique_ptr<wavekv::Engine> engine_;
  std::optional<wavekv::Tenant> tenant_;
};

// Keys and values are stored as fp16: 11 bits.
constexpr double kStorageError = 2e-3;

TEST_F(EngineAttentionTest, ExactAttentionGivesTheTestVectorsLogits) {
  EngineAttention attention(engine_.get(), *tenant_->CreateSequence(), AttendOptions::Exact());
  TokenHistory history;
  EXPECT_LT(RelativeError(Logits(0, 384, &history, &attention), 0), kStorageError);
  EXPECT_LT(RelativeError(Logits(384, kNumTokens, &history, &attention), 384), kStorageError);
  EXPECT_EQ(attention.totals().exact_tokens_share(), 1.0);
  EXPECT_EQ(attention.totals().bytes_share(), 1.0);
}

TEST_F(EngineAttentionTest, AForkGoesOnWithACopyOfTheHistory) {
  EngineAttention parent(engine_.get(), *tenant_->CreateSequence(), AttendOptions::Exact());
  TokenHistory history;
  Logits(0, 300, &history, &parent);
  for (int i = 0; i < 2; ++i) {
    EngineAttention fork(engine_.get(), *tenant_->Fork(parent.sequence()), AttendOptions::Exact());
    TokenHistory copy = history;
    EXPECT_LT(RelativeError(Logits(300, 340, &copy, &fork), 300), kStorageError);
    EXPECT_EQ(fork.sequence().length(), 340);
  }
  EXPECT_EQ(parent.sequence().length(), 300);
}

TEST_F(EngineAttentionTest, AnErrorMeterFindsNoErrorInExactAttention) {
  ErrorMeter meter(engine_.get(), *tenant_->CreateSequence(), AttendOptions::Exact());
  TokenHistory history;
  Logits(0, 100, &history, &meter);
  EXPECT_EQ(meter.errors().count, 100 * model_->config().n_layers * model_->config().n_heads);
  EXPECT_EQ(meter.errors().mean(), 0.0);
  EXPECT_EQ(meter.errors().worst, 0.0);
}

TEST_F(EngineAttentionTest, AGpuGivesTheTestVectorsLogits) {
  constexpr int64_t kTokens = 40;  // the emulator is slow
  wavekv::EngineTestPeer::UseGpu(wavekv::MakeEmulatedGpu());
  auto engine =
      OpenEngine(model_->config(), kTokens, engine_->options().executor, {}, wavekv::Device::kCuda);
  wavekv::EngineTestPeer::UseGpu(nullptr);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EngineAttention attention(engine->get(), *(*engine)->OpenTenant("test")->CreateSequence(),
                            AttendOptions::Exact());
  TokenHistory history;
  EXPECT_LT(RelativeError(Logits(0, kTokens - 1, &history, &attention), 0), kStorageError);
  EXPECT_LT(RelativeError(Logits(kTokens - 1, kTokens, &history, &attention), kTokens - 1),
            kStorageError);
}

TEST_F(EngineAttentionTest, AMissingGpuIsSaid) {
  const auto engine = OpenEngine(model_->config(), kNumTokens, engine_->options().executor, {},
                                 wavekv::Device::kCuda);
  if (engine.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_THAT(std::string(engine.status().message()), ::testing::StartsWith("CUDA: "));
}

TEST_F(EngineAttentionTest, TheEnginesErrorsReachTheCaller) {
  const auto sequence = tenant_->CreateSequence();
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  ASSERT_TRUE(tenant_->Remove(*sequence).ok());
  EngineAttention attention(engine_.get(), *sequence, AttendOptions::Exact());
  TokenHistory history;
  std::vector<float> logits;
  EXPECT_EQ(model_->Forward({1}, 1, &history, &attention, &logits).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(history.num_tokens, 0);
}

}  // namespace
}  // namespace tinylm
