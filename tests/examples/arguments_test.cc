#include "examples/tinylm/arguments.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tinylm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<Arguments> Parse(std::vector<const char*> words) {
  words.insert(words.begin(), "wavekv-tinylm");
  const auto count = static_cast<int>(words.size());
  words.push_back(nullptr);
  return ParseArguments(count, words.data());
}

std::string Error(const std::vector<const char*>& words) {
  return std::string(Parse(words).status().message());
}

TEST(ArgumentsTest, TheDefaultsOfTheDemoAreTheEngines) {
  const auto arguments = Parse({"demo"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->command, Command::kDemo);
  EXPECT_EQ(arguments->context, 32768);
  EXPECT_EQ(arguments->prompts, 20);
  EXPECT_THAT(arguments->tasks, ElementsAre("niah", "vt"));
  EXPECT_EQ(arguments->wave.zones, wavekv::AttendOptions().zones);
  EXPECT_DOUBLE_EQ(arguments->wave.retrieval.ratio(), wavekv::AttendOptions().retrieval.ratio());
}

TEST(ArgumentsTest, OptionsMayComeInAnyOrder) {
  for (const auto& words : {std::vector<const char*>{"demo", "--quick", "--retrieval=0.5"},
                            std::vector<const char*>{"--retrieval", "0.5", "--quick", "demo"}}) {
    const auto arguments = Parse(words);
    ASSERT_TRUE(arguments.ok()) << arguments.status();
    EXPECT_EQ(arguments->command, Command::kDemo);
    EXPECT_EQ(arguments->context, 8192);
    EXPECT_DOUBLE_EQ(arguments->wave.retrieval.ratio(), 0.5);
  }
}

TEST(ArgumentsTest, ThePromptsOptionsAreRead) {
  const auto arguments = Parse({"--prompt", "-", "--max-tokens", "7", "--dense", "--dump-trace",
                                "t", "--model", "m", "--threads", "3", "--estimation", "1"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->command, Command::kPrompt);
  EXPECT_EQ(arguments->prompt_file, "-");
  EXPECT_EQ(arguments->max_tokens, 7);
  EXPECT_TRUE(arguments->dense);
  EXPECT_EQ(arguments->trace_file, "t");
  EXPECT_EQ(arguments->model_directory, "m");
  EXPECT_EQ(arguments->threads, 3);
  EXPECT_DOUBLE_EQ(arguments->wave.estimation.ratio(), 1.0);
}

TEST(ArgumentsTest, ATraceAloneIsOfADocument) {
  const auto arguments = Parse({"--dump-trace", "t", "--context", "16384", "--document", "2"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->command, Command::kTrace);
  EXPECT_EQ(arguments->context, 16384);
  EXPECT_EQ(arguments->document, 2);
}

TEST(ArgumentsTest, AGpuIsUsedWhenItIsAskedFor) {
  EXPECT_EQ(Parse({"demo"})->device, wavekv::Device::kCpu);
  EXPECT_EQ(Parse({"demo", "--device", "cpu", "--tiers", "/tmp"})->device, wavekv::Device::kCpu);
  EXPECT_EQ(Parse({"demo", "--device=cuda"})->device, wavekv::Device::kCuda);
  EXPECT_EQ(Parse({"--prompt", "-", "--device", "cuda"})->device, wavekv::Device::kCuda);
  EXPECT_EQ(Error({"demo", "--device", "tpu"}), "--device: expected cpu or cuda, got 'tpu'");
  EXPECT_THAT(Error({"demo", "--device", "cuda", "--tiers", "/tmp"}),
              HasSubstr("leave out --tiers or --device cuda"));
}

TEST(ArgumentsTest, HelpIsGivenWhateverElseIsAskedFor) {
  EXPECT_EQ(Parse({})->command, Command::kHelp);
  EXPECT_EQ(Parse({"-h"})->command, Command::kHelp);
  EXPECT_EQ(Parse({"demo", "--help"})->command, Command::kHelp);
  EXPECT_THAT(HelpText(), HasSubstr("--dump-trace"));
}

TEST(ArgumentsTest, NamesTheOptionThatIsWrong) {
  EXPECT_EQ(Error({"demo", "--context", "1000"}),
            "--context: expected one of 8192, 16384, 32768, got '1000'");
  EXPECT_EQ(Error({"demo", "--prompts", "0"}),
            "--prompts: expected an integer from 1 to 1000, got '0'");
  EXPECT_EQ(Error({"demo", "--retrieval", "1.5"}),
            "--retrieval: expected a share from 0 to 1, got '1.5'");
  EXPECT_THAT(Error({"demo", "--estimation", "nan"}), HasSubstr("got 'nan'"));
  EXPECT_THAT(Error({"demo", "--threads", "two"}), HasSubstr("--threads: expected an integer"));
  EXPECT_EQ(Error({"demo", "--prompts"}), "--prompts: expected a value");
  EXPECT_EQ(Error({"demo", "--colour"}), "cannot understand the option --colour");
  EXPECT_EQ(Error({"demo", "--dense=1"}), "cannot understand the option --dense=1");
  EXPECT_EQ(Error({"demo", "-x"}), "cannot understand the option -x");
}

TEST(ArgumentsTest, NamesTheCommandThatIsWrong) {
  EXPECT_THAT(Error({"dance"}), HasSubstr("got 'dance'"));
  EXPECT_THAT(Error({"demo", "demo"}), HasSubstr("got 'demo demo'"));
  EXPECT_THAT(Error({"--dense"}), HasSubstr("expected 'demo', --prompt FILE"));
  EXPECT_THAT(Error({"demo", "--prompt", "x"}), HasSubstr("demo takes neither --prompt"));
}

}  // namespace
}  // namespace tinylm
