// What makes a step of a storage test meaningless, found before anything runs.
#ifndef WAVEKV_TESTS_STORAGE_CASES_STEP_RULES_H_
#define WAVEKV_TESTS_STORAGE_CASES_STEP_RULES_H_

#include "absl/status/status.h"
#include "proto/storage_test.pb.h"
#include "wavekv/model_spec.h"

namespace wavekv::testing {

// INVALID_ARGUMENT or NOT_FOUND naming the field of the step, what was expected and what came. The
// steps of a group are not looked at: they are checked with in_group, one by one. Paths of files
// are taken as they are.
absl::Status CheckStep(const v1::Step& step, const ModelSpec& model, bool in_group);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_STEP_RULES_H_
