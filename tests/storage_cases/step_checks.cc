#include "tests/storage_cases/step_checks.h"

#include <cmath>
#include <map>
#include <string>

#include "absl/strings/str_join.h"
#include "fmt/format.h"

namespace wavekv::testing {
namespace {

std::string CodeName(const absl::Status& status) { return absl::StatusCodeToString(status.code()); }

// Counts to the last digit, measurements to six.
std::string Format(double number) {
  return number == std::floor(number) ? fmt::format("{:.0f}", number)
                                      : fmt::format("{:.6g}", number);
}

// "OK"; "NOT_FOUND: no such sequence"; "OK 17 times, ABORTED 3 times".
std::string Summary(const std::vector<absl::Status>& statuses) {
  if (statuses.size() == 1) {
    const absl::Status& status = statuses[0];
    return status.ok() ? "OK" : CodeName(status) + ": " + std::string(status.message());
  }
  std::map<std::string, int> counts;
  for (const absl::Status& status : statuses) ++counts[CodeName(status)];
  return absl::StrJoin(counts, ", ", [](std::string* out, const auto& count) {
    *out += fmt::format("{} {}", count.first,
                        count.second == 1 ? "once" : fmt::format("{} times", count.second));
  });
}

StepCheck CheckMessages(const std::string& fragment, const std::vector<absl::Status>& statuses) {
  StepCheck check{"message", "... " + fragment + " ...", "no error", true};
  for (const absl::Status& status : statuses) {
    if (status.ok() || !check.passed) continue;
    check.got = std::string(status.message());
    check.passed = check.got.find(fragment) != std::string::npos;
  }
  return check;
}

}  // namespace

bool IsExpected(const v1::Step& step, const absl::Status& status) {
  if (step.expect_status().empty()) return status.ok();
  for (const std::string& code : step.expect_status()) {
    if (code == CodeName(status)) return true;
  }
  return false;
}

std::vector<StepCheck> CheckStatuses(const v1::Step& step,
                                     const std::vector<absl::Status>& statuses) {
  std::vector<StepCheck> checks(1);
  checks[0] = {"status",
               step.expect_status().empty() ? "OK" : absl::StrJoin(step.expect_status(), " or "),
               Summary(statuses), true};
  for (const absl::Status& status : statuses) {
    if (IsExpected(step, status)) continue;
    checks[0].passed = false;
    if (statuses.size() > 1) checks[0].got += "; " + Summary({status});
    break;
  }
  if (!step.expect_message().empty()) {
    checks.push_back(CheckMessages(step.expect_message(), statuses));
  }
  return checks;
}

bool Expects(const v1::Step& step, std::initializer_list<const char*> metrics) {
  for (const v1::Expectation& expectation : step.expect()) {
    for (const char* metric : metrics) {
      if (expectation.metric() == metric) return true;
    }
  }
  return false;
}

StepCheck CheckMetric(const v1::Expectation& expectation, const StepNumbers& numbers) {
  const double got = FindMetric(expectation.metric())->value(numbers);
  StepCheck check{expectation.metric(), "", Format(got), false};
  switch (expectation.bound_case()) {
    case v1::Expectation::kAtLeast:
      check.expected = "at least " + Format(expectation.at_least());
      check.passed = got >= expectation.at_least();
      break;
    case v1::Expectation::kAtMost:
      check.expected = "at most " + Format(expectation.at_most());
      check.passed = got <= expectation.at_most();
      break;
    default:
      check.expected = Format(expectation.equal_to());
      check.passed = got == expectation.equal_to();
  }
  return check;
}

}  // namespace wavekv::testing
