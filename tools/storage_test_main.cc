// wavekv-storage-test: runs files of storage tests and prints what each step expected and got.
#include <cstdio>
#include <string>
#include <vector>

#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/storage_test_runner.h"

namespace wavekv {
namespace {

constexpr char kUsage[] =
    "usage: wavekv-storage-test [--list] [--filter TEXT] FILE...\n"
    "  --list         print the names and descriptions of the cases, run nothing\n"
    "  --filter TEXT  only the cases whose name contains TEXT\n"
    "Cases with device: CUDA are skipped, visibly, where there is no GPU.\n"
    "Ends with 0 when no case failed, 1 when one did, 2 when a file cannot be used or no case\n"
    "matches. docs/storage_tests.md shows how to write a file.\n";

struct Arguments {
  bool list = false;
  std::string filter;
  std::vector<std::string> files;
};

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list") {
      arguments.list = true;
    } else if (argument == "--filter" && i + 1 < argc) {
      arguments.filter = argv[++i];
    } else if (argument.rfind("--filter=", 0) == 0) {
      arguments.filter = argument.substr(argument.find('=') + 1);
    } else if (argument.rfind('-', 0) == 0) {
      return false;
    } else {
      arguments.files.push_back(argument);
    }
  }
  return !arguments.files.empty();
}

void Print(const testing::StepResult& step, const std::string& number) {
  std::printf("  %s. %s\n", number.c_str(), step.call.c_str());
  for (const testing::StepCheck& check : step.checks) {
    std::printf("     %-6s %s: expected %s, got %s\n", check.passed ? "ok" : "FAILED",
                check.name.c_str(), check.expected.c_str(), check.got.c_str());
  }
  for (size_t i = 0; i < step.steps.size(); ++i) {
    Print(step.steps[i], number + "." + std::to_string(i + 1));
  }
}

enum class Outcome { kPassed, kFailed, kSkipped };

Outcome RunCase(const v1::StorageTestCase& test_case) {
  std::printf("%s\n  %s\n", test_case.name().c_str(), test_case.description().c_str());
  const auto result = testing::RunStorageTest(test_case);
  if (testing::LacksDevice(test_case, result.status())) {
    std::printf("  SKIPPED: %s\n\n", std::string(result.status().message()).c_str());
    return Outcome::kSkipped;
  }
  if (!result.ok()) {
    std::printf("  FAILED: %s\n\n", result.status().ToString().c_str());
    return Outcome::kFailed;
  }
  for (size_t i = 0; i < result->steps.size(); ++i) Print(result->steps[i], std::to_string(i + 1));
  const size_t not_run = test_case.steps_size() - result->steps.size();
  if (not_run > 0) std::printf("  (%zu more steps not run)\n", not_run);
  std::printf("  %s\n\n", result->passed() ? "PASSED" : "FAILED");
  return result->passed() ? Outcome::kPassed : Outcome::kFailed;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, arguments)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  std::vector<v1::StorageTestCase> cases;
  for (const std::string& path : arguments.files) {
    const auto suite = testing::LoadStorageTests(path);
    if (!suite.ok()) {
      std::fprintf(stderr, "%s\n", std::string(suite.status().message()).c_str());
      return 2;
    }
    for (const v1::StorageTestCase& test_case : suite->cases()) {
      if (test_case.name().find(arguments.filter) != std::string::npos) cases.push_back(test_case);
    }
  }
  if (cases.empty()) {
    std::fprintf(stderr, "no case has \"%s\" in its name\n", arguments.filter.c_str());
    return 2;
  }
  int passed = 0, failed = 0, skipped = 0;
  for (const v1::StorageTestCase& test_case : cases) {
    if (arguments.list) {
      std::printf("%s\n  %s\n", test_case.name().c_str(), test_case.description().c_str());
      continue;
    }
    const Outcome outcome = RunCase(test_case);
    ++(outcome == Outcome::kPassed ? passed : outcome == Outcome::kFailed ? failed : skipped);
  }
  if (!arguments.list) {
    std::printf("%d passed, %d failed", passed, failed);
    if (skipped > 0) std::printf(", %d skipped", skipped);
    std::printf("\n");
  }
  return failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) { return wavekv::Main(argc, argv); }
