// Every case of the files named on the command line as a test of its own: FileName.CaseName.
#include <cctype>
#include <cstdio>
#include <string>

#include "gtest/gtest.h"
#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/storage_test_runner.h"

namespace wavekv::testing {
namespace {

class StorageCase : public ::testing::Test {
 public:
  explicit StorageCase(v1::StorageTestCase test_case) : case_(std::move(test_case)) {}

  void TestBody() override {
    const auto result = RunStorageTest(case_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << case_.description() << "\n" << result->Failure();
  }

 private:
  const v1::StorageTestCase case_;
};

// A file that cannot be read is a failing test, so that the suite's count shows it.
class UnreadableFile : public ::testing::Test {
 public:
  explicit UnreadableFile(absl::Status status) : status_(std::move(status)) {}
  void TestBody() override { FAIL() << status_.message(); }

 private:
  const absl::Status status_;
};

// tests/testdata/fork_and_truncate.textproto -> ForkAndTruncate
std::string SuiteName(const std::string& path) {
  std::string name = path.substr(path.rfind('/') + 1);
  name = name.substr(0, name.find('.'));
  std::string camel;
  bool upper = true;
  for (const char c : name) {
    if (c == '_') {
      upper = true;
      continue;
    }
    camel += upper ? static_cast<char>(std::toupper(c)) : c;
    upper = false;
  }
  return camel;
}

void RegisterFile(const std::string& path) {
  const std::string suite_name = SuiteName(path);
  const auto suite = LoadStorageTests(path);
  if (!suite.ok()) {
    ::testing::RegisterTest(
        suite_name.c_str(), "CanBeRead", nullptr, nullptr, __FILE__, __LINE__,
        [status = suite.status()]() -> ::testing::Test* { return new UnreadableFile(status); });
    return;
  }
  for (const v1::StorageTestCase& test_case : suite->cases()) {
    ::testing::RegisterTest(
        suite_name.c_str(), test_case.name().c_str(), nullptr, nullptr, __FILE__, __LINE__,
        [test_case]() -> ::testing::Test* { return new StorageCase(test_case); });
  }
}

}  // namespace
}  // namespace wavekv::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FILE...\n", argv[0]);
    return 2;
  }
  for (int i = 1; i < argc; ++i) wavekv::testing::RegisterFile(argv[i]);
  return RUN_ALL_TESTS();
}
