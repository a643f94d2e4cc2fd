// Runs storage tests against a real engine.
#ifndef WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_RUNNER_H_
#define WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_RUNNER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/storage_test.pb.h"

namespace wavekv::testing {

// One thing that a step expects.
struct StepCheck {
  std::string name;  // "status", "message", or a metric
  std::string expected;
  std::string got;
  bool passed = false;
};

struct StepResult {
  std::string call;  // the step as text, without its expectations
  std::vector<StepCheck> checks;
  std::vector<StepResult> steps;  // of a group, in file order

  bool passed() const;
};

// Of a case: its steps up to the first that did not do as expected.
struct CaseResult {
  std::vector<StepResult> steps;

  bool passed() const;
  // The last step's call and its failed checks, for a message; empty when all passed.
  std::string Failure() const;
};

// Opens the case's engine and takes its steps one by one. Not OK when the engine does not open.
// REQUIRES: the case comes from LoadStorageTests.
absl::StatusOr<CaseResult> RunStorageTest(const v1::StorageTestCase& test_case);

// Whether a case did not run, with this status, because it asks for a device that is not here: it
// has neither passed nor failed.
bool LacksDevice(const v1::StorageTestCase& test_case, const absl::Status& status);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_RUNNER_H_
