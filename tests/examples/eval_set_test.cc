#include "examples/tinylm/eval_set.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

using testing::DataFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFile;

TEST(EvalSetTest, ReadsTheShippedFiles) {
  for (const int length : {8192, 16384, 32768}) {
    const auto set =
        ReadEvalSet(DataFile("eval_L" + std::to_string(length) + ".safetensors"), 4096);
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->documents.size(), 10u);
    EXPECT_EQ(set->documents[0].size(), static_cast<size_t>(length));
    EXPECT_EQ(set->questions.size(), 1000u);
    EXPECT_EQ(set->questions[0].task, "niah");
    EXPECT_EQ(set->questions[0].document, 0);
  }
}

// Two documents of three tokens and one question, each tensor replaceable.
struct Tensors {
  std::vector<int32_t> contexts = {1, 2, 3, 4, 5, 6};
  std::vector<int32_t> question_document = {1};
  std::vector<int32_t> question_task = {0};
  std::vector<int32_t> prefix_offsets = {0, 2};
  std::vector<int32_t> prefix = {7, 8};
  std::vector<int32_t> answer_offsets = {0, 1};
  std::vector<int32_t> answer = {9};

  absl::StatusOr<EvalSet> Read() const {
    const auto size = [](const std::vector<int32_t>& values) {
      return safetensors::Shape{static_cast<int64_t>(values.size())};
    };
    safetensors::Writer writer;
    writer.SetMetadata("tasks", "niah,vt");
    EXPECT_TRUE(writer.AddInt32s("contexts", {2, 3}, contexts).ok());
    EXPECT_TRUE(writer.AddInt32s("q_ctx", size(question_document), question_document).ok());
    EXPECT_TRUE(writer.AddInt32s("q_task", size(question_task), question_task).ok());
    EXPECT_TRUE(writer.AddInt32s("prefix_off", size(prefix_offsets), prefix_offsets).ok());
    EXPECT_TRUE(writer.AddInt32s("prefix_tok", size(prefix), prefix).ok());
    EXPECT_TRUE(writer.AddInt32s("answer_off", size(answer_offsets), answer_offsets).ok());
    EXPECT_TRUE(writer.AddInt32s("answer_tok", size(answer), answer).ok());
    const std::string path = TemporaryFile("safetensors");
    EXPECT_TRUE(writer.Write(path).ok());
    return ReadEvalSet(path, 10);
  }
};

TEST(EvalSetTest, SplitsRaggedTensorsIntoQuestions) {
  const auto set = Tensors().Read();
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_THAT(set->documents, ElementsAre(ElementsAre(1, 2, 3), ElementsAre(4, 5, 6)));
  ASSERT_EQ(set->questions.size(), 1u);
  EXPECT_EQ(set->questions[0].document, 1);
  EXPECT_EQ(set->questions[0].task, "niah");
  EXPECT_THAT(set->questions[0].prompt, ElementsAre(7, 8));
  EXPECT_THAT(set->questions[0].answer, ElementsAre(9));
}

TEST(EvalSetTest, NamesTheTensorWhoseIndicesAreOutOfRange) {
  EXPECT_THAT((Tensors{.contexts = {1, 2, 3, 4, 5, 10}}.Read().status().ToString()),
              HasSubstr("'contexts': expected values from 0 to 9, got 10"));
  EXPECT_THAT((Tensors{.question_document = {2}}.Read().status().ToString()),
              HasSubstr("'q_ctx': expected values from 0 to 1, got 2"));
  EXPECT_THAT((Tensors{.question_task = {-1}}.Read().status().ToString()), HasSubstr("'q_task'"));
  EXPECT_THAT((Tensors{.question_task = {0, 0}}.Read().status().ToString()),
              HasSubstr("'q_task': expected shape [1], got [2]"));
  EXPECT_THAT((Tensors{.prefix_offsets = {0, 3}}.Read().status().ToString()),
              HasSubstr("'prefix_off'"));
  EXPECT_THAT((Tensors{.prefix_offsets = {-1, 2}}.Read().status().ToString()),
              HasSubstr("'prefix_off'"));
  EXPECT_THAT((Tensors{.answer_offsets = {1, 1}}.Read().status().ToString()),
              HasSubstr("'answer_off'"));
  EXPECT_THAT((Tensors{.answer_offsets = {0}}.Read().status().ToString()),
              HasSubstr("'answer_off': expected shape [2], got [1]"));
}

}  // namespace
}  // namespace tinylm
