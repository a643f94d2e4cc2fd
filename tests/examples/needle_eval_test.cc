// A short form of the demo.
#include "examples/tinylm/needle_eval.h"

#include <cmath>

#include "examples/tinylm/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"

namespace tinylm {
namespace {

using testing::DataDirectory;
using testing::DataFile;
using ::testing::HasSubstr;

constexpr int64_t kContext = 8192;

class NeedleEvalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    executor_ = wavekv::MakeThreadPool(2);
    auto model = Model::Load(DataDirectory(), executor_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto set = ReadEvalSet(DataFile("eval_L8192.safetensors"), model_->config().vocab_size);
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *std::move(set);
    auto engine = OpenEngine(model_->config(), kContext, executor_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::shared_ptr<wavekv::Executor> executor_;
  std::unique_ptr<Model> model_;
  EvalSet set_;
  std::unique_ptr<wavekv::Engine> engine_;
};

// The first questions of the file, whatever they are.
TEST_F(NeedleEvalTest, DefaultZonesAnswerAsDenseAttentionDoes) {
  NeedleEvalOptions options;
  options.tasks = {"niah", "vt"};
  options.questions_per_task = 40;
  const auto results = RunNeedleEval(set_, options, model_.get(), engine_.get());
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 2u);
  NeedleResult all;
  for (const NeedleResult& result : *results) all.Add(result);

  ASSERT_EQ(all.questions.size(), 80u);
  EXPECT_GE(all.agreement(), 0.95);
  EXPECT_GE(all.dense_accuracy(), 0.85);
  EXPECT_GT(all.errors.count, 0);
  EXPECT_TRUE(std::isfinite(all.errors.worst));
  EXPECT_LT(all.errors.mean(), 0.25);
  // It found them without reading everything.
  EXPECT_LT(all.totals.exact_tokens_share(), 0.2);
  EXPECT_LT(all.totals.bytes_share(), 0.3);
  EXPECT_EQ(engine_->stats().sequences, 0);
  EXPECT_THAT(ResultLine(kContext, all), HasSubstr("demo context=8192 prompts=80 dense_acc="));
  EXPECT_THAT(ResultTable(kContext, options.tasks, *results), HasSubstr("all"));
}

TEST_F(NeedleEvalTest, NamesTheTaskThatIsUnknown) {
  NeedleEvalOptions options;
  options.tasks = {"riddle"};
  options.questions_per_task = 1;
  EXPECT_THAT(RunNeedleEval(set_, options, model_.get(), engine_.get()).status().ToString(),
              HasSubstr("expected one of mv, niah, num, quote, vt, got riddle"));
}

}  // namespace
}  // namespace tinylm
