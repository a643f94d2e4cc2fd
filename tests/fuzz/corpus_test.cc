// Every file of the corpus runs through the fuzzer's entry function, without libFuzzer.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fuzz/fuzz_trace_file.h"

namespace wavekv::testing {
namespace {

std::vector<std::string> CorpusFiles() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("tests/fuzz/corpus")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class CorpusTest : public ::testing::TestWithParam<std::string> {};

TEST_P(CorpusTest, IsAcceptedOrRefusedAsItsNameSays) {
  std::ifstream file("tests/fuzz/corpus/" + GetParam(), std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const absl::Status status =
      FuzzTraceFile(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  EXPECT_EQ(status.ok(), GetParam().rfind("valid_", 0) == 0) << status;
}

INSTANTIATE_TEST_SUITE_P(Files, CorpusTest, ::testing::ValuesIn(CorpusFiles()),
                         [](const auto& test) {
                           return test.param.substr(0, test.param.find('.'));
                         });

}  // namespace
}  // namespace wavekv::testing
