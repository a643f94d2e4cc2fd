// Every case of the files named on the command line as a test of its own: FileName.CaseName. With
// --gpu before them every case that a GPU can take runs on one instead: on the emulated one
// (Emulated/FileName.CaseName) and on the first real one (Cuda/FileName.CaseName), where there is
// one. With --gpu=all the emulated one takes the large cases too, in minutes.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <string>
#include <utility>

#include "api/engine_test_peer.h"
#include "cuda/emulator/emulated_gpu.h"
#include "gtest/gtest.h"
#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/storage_test_runner.h"

namespace wavekv::testing {
namespace {

// Tokens that a case appends and rows that it asks. Clustering costs the emulator milliseconds a
// token, and all of its cases are to be done within a minute.
int64_t SizeOf(const v1::Step& step) {
  int64_t size = 0;
  if (step.has_append()) size = step.append().tokens();
  if (step.has_query()) size = std::max<int64_t>(1, step.query().rows());
  if (step.has_retrieve()) size = std::max<int64_t>(1, step.retrieve().rows());
  for (const v1::Step& inner : step.parallel().steps()) size += SizeOf(inner);
  return size * std::max<int64_t>(1, step.repeat());
}

int64_t SizeOf(const v1::StorageTestCase& test_case) {
  int64_t size = 0;
  for (const v1::Step& step : test_case.steps()) size += SizeOf(step);
  return size;
}

constexpr int64_t kEmulatedSizeMax = 1000;

// What a case runs on.
enum class Target {
  kAsGiven,
  kEmulatedGpu,
  kEmulatedGpuAnySize,
  kGpu,
};

class StorageCase : public ::testing::Test {
 public:
  StorageCase(v1::StorageTestCase test_case, Target target)
      : case_(std::move(test_case)), target_(target) {}

  void SetUp() override {
    if (target_ == Target::kEmulatedGpu && SizeOf(case_) > kEmulatedSizeMax) {
      GTEST_SKIP() << SizeOf(case_) << " tokens and rows take the emulator too long";
    }
    if (target_ == Target::kEmulatedGpu || target_ == Target::kEmulatedGpuAnySize) {
      EngineTestPeer::UseGpu(MakeEmulatedGpu());
    }
  }
  void TearDown() override { EngineTestPeer::UseGpu(nullptr); }

  void TestBody() override {
    const auto result = RunStorageTest(case_);
    if (LacksDevice(case_, result.status())) GTEST_SKIP() << result.status();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << case_.description() << "\n" << result->Failure();
  }

 private:
  const v1::StorageTestCase case_;
  const Target target_;
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

void RegisterCase(const std::string& suite, const v1::StorageTestCase& test_case, Target target) {
  ::testing::RegisterTest(
      suite.c_str(), test_case.name().c_str(), nullptr, nullptr, __FILE__, __LINE__,
      [test_case, target]() -> ::testing::Test* { return new StorageCase(test_case, target); });
}

void RegisterFile(const std::string& path, const std::string& gpu) {
  const std::string suite_name = SuiteName(path);
  const auto suite = LoadStorageTests(path);
  if (!suite.ok()) {
    ::testing::RegisterTest(
        suite_name.c_str(), "CanBeRead", nullptr, nullptr, __FILE__, __LINE__,
        [status = suite.status()]() -> ::testing::Test* { return new UnreadableFile(status); });
    return;
  }
  for (v1::StorageTestCase test_case : suite->cases()) {
    if (gpu.empty()) {
      RegisterCase(suite_name, test_case, Target::kAsGiven);
    } else if (!test_case.given().has_tiers()) {  // a GPU has none
      test_case.mutable_given()->set_device(v1::CUDA);
      RegisterCase("Emulated/" + suite_name, test_case,
                   gpu == "--gpu=all" ? Target::kEmulatedGpuAnySize : Target::kEmulatedGpu);
      RegisterCase("Cuda/" + suite_name, test_case, Target::kGpu);
    }
  }
}

}  // namespace
}  // namespace wavekv::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string gpu = argc > 1 ? argv[1] : "";
  if (gpu != "--gpu" && gpu != "--gpu=all") gpu.clear();
  const int first_file = gpu.empty() ? 1 : 2;
  if (argc <= first_file) {
    std::fprintf(stderr, "usage: %s [--gpu[=all]] FILE...\n", argv[0]);
    return 2;
  }
  for (int i = first_file; i < argc; ++i) wavekv::testing::RegisterFile(argv[i], gpu);
  return RUN_ALL_TESTS();
}
