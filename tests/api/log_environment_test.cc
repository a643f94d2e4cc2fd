// WAVEKV_LOG is read once in a process, so each value has a process of its own: this program again.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "wavekv/log.h"

namespace wavekv {
namespace {

std::string program;

// What the program says, and its level, with the variable set so.
std::string LevelWith(const std::string& environment) {
  const std::string command = environment + " '" + program + "' --print-level 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "cannot run " + command;
  std::string output;
  char buffer[256];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  pclose(pipe);
  return output;
}

TEST(LogEnvironmentTest, NamesTheFirstLevel) {
  EXPECT_EQ(LevelWith("env -u WAVEKV_LOG"), "warning\n");
  EXPECT_EQ(LevelWith("WAVEKV_LOG="), "warning\n");
  for (const char* level : {"off", "error", "warning", "info", "debug"}) {
    EXPECT_EQ(LevelWith(std::string("WAVEKV_LOG=") + level), std::string(level) + "\n");
  }
}

TEST(LogEnvironmentTest, AnotherValueIsWarnedAboutOnce) {
  EXPECT_THAT(
      LevelWith("WAVEKV_LOG=loud"),
      ::testing::MatchesRegex("W .* wavekv: WAVEKV_LOG must be off, error, warning, info or "
                              "debug, got \"loud\"\nwarning\n"));
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--print-level") {
    std::printf("%s\n", wavekv::LogLevelName(wavekv::GetLogLevel()));
    std::printf("%s", wavekv::GetLogLevel() == wavekv::GetLogLevel() ? "" : "changed");
    return 0;
  }
  wavekv::program = argv[0];
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
