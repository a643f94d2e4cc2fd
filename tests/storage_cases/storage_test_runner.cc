#include "tests/storage_cases/storage_test_runner.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/case_world.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/step_checks.h"
#include "tests/storage_cases/storage_test_file.h"
#include "wavekv/engine.h"

namespace wavekv::testing {
namespace {

// What taking a step, maybe repeatedly, has given.
struct StepOutcome {
  std::vector<absl::Status> statuses;
  std::vector<QueryAnswer> answers;
  StepNumbers numbers;
};

std::string CallOf(v1::Step step) {
  step.set_tenant(TenantOf(step));
  step.set_sequence(SequenceOf(step));
  if (step.has_parallel()) step.mutable_parallel()->clear_steps();
  step.clear_expect();
  step.clear_expect_status();
  step.clear_expect_message();
  return step.ShortDebugString();
}

StepResult ResultOf(const v1::Step& step, const StepOutcome& outcome) {
  StepResult result;
  result.call = CallOf(step);
  result.checks = CheckStatuses(step, outcome.statuses);
  for (const v1::Expectation& expectation : step.expect()) {
    result.checks.push_back(CheckMetric(expectation, outcome.numbers));
  }
  return result;
}

StepResult TakeAlone(CaseWorld& world, const v1::Step& step) {
  StepOutcome outcome;
  absl::Status names = world.ResolveTenant(step);
  if (names.ok()) names = world.ResolveSequence(step);
  if (!names.ok()) {
    outcome.statuses.push_back(std::move(names));
  } else {
    const int64_t repeat = std::max<int64_t>(1, step.repeat());
    for (int64_t i = 0; i < repeat; ++i) {
      world.StartHistory();
      outcome.statuses.push_back(world.Do(step, false, outcome.numbers, outcome.answers));
      world.Compare(outcome.answers, outcome.numbers);
      outcome.answers.clear();
      if (!IsExpected(step, outcome.statuses.back())) break;
    }
  }
  world.Collect(step, outcome.numbers);
  return ResultOf(step, outcome);
}

StepResult TakeGroup(CaseWorld& world, const v1::Step& step) {
  const v1::Parallel& group = step.parallel();
  const std::set<std::string> born = SequencesBornIn(group);
  StepOutcome whole;
  whole.statuses.emplace_back();
  for (const v1::Step& inner : group.steps()) {
    absl::Status& names = whole.statuses[0];
    if (names.ok()) names = world.ResolveTenant(inner);
    if (names.ok() && !born.contains(SequenceOf(inner))) names = world.ResolveSequence(inner);
  }
  if (!whole.statuses[0].ok()) return ResultOf(step, whole);

  world.StartHistory();
  std::vector<StepOutcome> outcomes(group.steps_size());
  RunStrands(group, [&](int s) {
    StepOutcome& outcome = outcomes[s];
    outcome.statuses.push_back(world.Do(group.steps(s), true, outcome.numbers, outcome.answers));
  });
  world.Collect(step, whole.numbers);
  StepResult result = ResultOf(step, whole);
  for (int s = 0; s < group.steps_size(); ++s) {
    if (AnswersAreComparable(group, s)) world.Compare(outcomes[s].answers, outcomes[s].numbers);
    result.steps.push_back(ResultOf(group.steps(s), outcomes[s]));
  }
  return result;
}

// The first step that failed, itself or within a group, as "2.1: call" and its failed checks.
std::string FailureOf(const StepResult& step, const std::string& number) {
  for (size_t i = 0; i < step.steps.size(); ++i) {
    if (step.steps[i].passed()) continue;
    return FailureOf(step.steps[i], fmt::format("{}.{}", number, i + 1));
  }
  std::string text = fmt::format("step {}: {}", number, step.call);
  for (const StepCheck& check : step.checks) {
    if (check.passed) continue;
    text += fmt::format("\n  {}: expected {}, got {}", check.name, check.expected, check.got);
  }
  return text;
}

}  // namespace

bool StepResult::passed() const {
  return std::all_of(checks.begin(), checks.end(), [](const StepCheck& c) { return c.passed; }) &&
         std::all_of(steps.begin(), steps.end(), [](const StepResult& s) { return s.passed(); });
}

bool CaseResult::passed() const {
  return std::all_of(steps.begin(), steps.end(), [](const StepResult& s) { return s.passed(); });
}

std::string CaseResult::Failure() const {
  if (passed()) return "";
  return FailureOf(steps.back(), std::to_string(steps.size()));
}

absl::StatusOr<CaseResult> RunStorageTest(const v1::StorageTestCase& test_case) {
  WAVEKV_ASSIGN_OR_RETURN(const EngineOptions options, OptionsOf(test_case));
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Open(options));
  CaseWorld world(std::move(engine));
  CaseResult result;
  for (const v1::Step& step : test_case.steps()) {
    result.steps.push_back(step.has_parallel() ? TakeGroup(world, step) : TakeAlone(world, step));
    if (!result.steps.back().passed()) break;
  }
  return result;
}

bool LacksDevice(const v1::StorageTestCase& test_case, const absl::Status& status) {
  if (test_case.given().device() != v1::CUDA) return false;
  // The same codes are also those of what a GPU cannot do.
  return (absl::IsUnavailable(status) || absl::IsUnimplemented(status)) &&
         absl::StartsWith(status.message(), "CUDA: ");
}

}  // namespace wavekv::testing
