// Holds what a step gave against what it expects.
#ifndef WAVEKV_TESTS_STORAGE_CASES_STEP_CHECKS_H_
#define WAVEKV_TESTS_STORAGE_CASES_STEP_CHECKS_H_

#include <initializer_list>
#include <vector>

#include "absl/status/status.h"
#include "proto/storage_test.pb.h"
#include "tests/storage_cases/metrics.h"
#include "tests/storage_cases/storage_test_runner.h"

namespace wavekv::testing {

// Whether the step may give this status; the message is not looked at.
bool IsExpected(const v1::Step& step, const absl::Status& status);

// The check of the statuses of all repetitions, and one of their messages if the step expects any.
// REQUIRES: a status.
std::vector<StepCheck> CheckStatuses(const v1::Step& step,
                                     const std::vector<absl::Status>& statuses);

// Whether the step expects something of one of these metrics.
bool Expects(const v1::Step& step, std::initializer_list<const char*> metrics);

StepCheck CheckMetric(const v1::Expectation& expectation, const StepNumbers& numbers);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_STEP_CHECKS_H_
