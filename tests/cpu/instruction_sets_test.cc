#include "wavekv/instruction_sets.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

TEST(InstructionSetsTest, EachOneOfTheMachineCanBeChosen) {
  const std::vector<std::string> names = InstructionSets();
  ASSERT_FALSE(names.empty());
  for (const std::string& name : names) EXPECT_TRUE(SetInstructionSet(name).ok()) << name;
  EXPECT_TRUE(SetInstructionSet("").ok());
}

TEST(InstructionSetsTest, OnlyThoseWithProductsOfSmallNumbersUseThem) {
  const std::vector<std::string> names = InstructionSets();
  for (const std::string& name : names) {
    ASSERT_TRUE(SetInstructionSet(name).ok());
    const bool bf16 = name.find("_bf16") != std::string::npos;
    EXPECT_EQ(cpu::UsesBf16Products(), bf16) << name;
    EXPECT_EQ(cpu::UsesIntegerProducts(), bf16 || name.find("_vnni") != std::string::npos) << name;
  }
  ASSERT_TRUE(SetInstructionSet("").ok());
  EXPECT_EQ(cpu::UsesBf16Products(), names.back().find("_bf16") != std::string::npos);
}

TEST(InstructionSetsTest, AnErrorNamesThoseOfTheMachine) {
  const absl::Status status = SetInstructionSet("avx1024");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& name : InstructionSets()) {
    EXPECT_TRUE(absl::StrContains(status.message(), name)) << status.ToString();
  }
  EXPECT_TRUE(absl::StrContains(status.message(), "\"avx1024\"")) << status.ToString();
}

}  // namespace
}  // namespace wavekv
