#include "examples/tinylm/tokenizer.h"

#include "examples/tinylm/eval_set.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"

namespace tinylm {
namespace {

using testing::DataFile;
using ::testing::HasSubstr;

constexpr int kVocabSize = 4096;

class TokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(DataFile("tokenizer.model"), kVocabSize);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_.emplace(*std::move(tokenizer));
  }

  std::string RoundTrip(const std::string& text) {
    const auto tokens = tokenizer_->Encode(text);
    EXPECT_TRUE(tokens.ok()) << tokens.status();
    const auto decoded = tokenizer_->Decode(*tokens);
    EXPECT_TRUE(decoded.ok()) << decoded.status();
    return *decoded;
  }

  std::optional<Tokenizer> tokenizer_;
};

TEST_F(TokenizerTest, TextSurvivesTheRoundTrip) {
  for (const std::string text :
       {"The secret code for objects safe is", "two\nlines\n\n  and an indent", "digits 90125",
        "na\xc3\xafve \xf0\x9f\x98\x80 \xe6\x97\xa5\xe6\x9c\xac"}) {
    EXPECT_EQ(RoundTrip(text), text);
  }
}

TEST_F(TokenizerTest, EncodesTheEvaluationsQuestionsAsTheModelWasTrained) {
  const auto eval = ReadEvalSet(DataFile("eval_L8192.safetensors"), kVocabSize);
  ASSERT_TRUE(eval.ok()) << eval.status();
  for (int i = 0; i < 20; ++i) {
    const auto text = tokenizer_->Decode(eval->questions[i].prompt);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_THAT(*text, HasSubstr("The secret code for"));
    EXPECT_EQ(*tokenizer_->Encode(*text), eval->questions[i].prompt) << *text;
  }
}

TEST_F(TokenizerTest, EmptyTextHasNoTokens) { EXPECT_TRUE(tokenizer_->Encode("")->empty()); }

TEST_F(TokenizerTest, BytesThatAreNotUtf8AreNoError) {
  EXPECT_TRUE(tokenizer_->Encode("a\xff\xfe z").ok());
}

TEST_F(TokenizerTest, RefusesIdsOutsideTheVocabulary) {
  EXPECT_THAT(tokenizer_->Decode({5, kVocabSize}).status().ToString(),
              HasSubstr("from 0 to 4095, got 4096"));
  EXPECT_FALSE(tokenizer_->Decode({-1}).ok());
}

TEST_F(TokenizerTest, AStreamTellsTheWholeTextInPieces) {
  const std::string text = "Overthwart humor:\n  \xf0\x9f\x98\x80 and 42";
  const auto tokens = tokenizer_->Encode(text);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  TokenStream stream(&*tokenizer_);
  std::string told;
  for (const int32_t token : *tokens) {
    const auto next = stream.Next(token);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_THAT(*next, ::testing::Not(HasSubstr("\xef\xbf\xbd")));
    told += *next;
  }
  EXPECT_EQ(told, text);
}

TEST_F(TokenizerTest, NamesTheFileThatCannotBeLoaded) {
  EXPECT_THAT(Tokenizer::Load("/nonexistent/tokenizer", kVocabSize).status().ToString(),
              HasSubstr("/nonexistent/tokenizer"));
  EXPECT_FALSE(Tokenizer::Load(DataFile("config.json"), kVocabSize).ok());
  EXPECT_THAT(Tokenizer::Load(DataFile("tokenizer.model"), 5).status().ToString(),
              HasSubstr("expected the model's 5 pieces, got 4096"));
}

}  // namespace
}  // namespace tinylm
