// Files of storage tests: read, and checked before anything runs.
#ifndef WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_FILE_H_
#define WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/storage_test.pb.h"
#include "wavekv/options.h"

namespace wavekv::testing {

// NOT_FOUND when the file cannot be read. INVALID_ARGUMENT as "file:line: case, step: what is
// wrong" for text that does not parse and for cases that could not mean anything: no name or
// description, no operation, an unknown metric or status, an engine that does not validate, a
// tensor that a file of rows does not have. Paths of such files are meant from the folder of the
// file on.
absl::StatusOr<v1::StorageTestSuite> LoadStorageTests(const std::string& path);

// The same for text; `file` is what messages call it.
absl::StatusOr<v1::StorageTestSuite> ParseStorageTests(const std::string& file,
                                                       const std::string& text);

// The engine of a case: what it gives, over a small engine with two layers, four query heads, two
// kv heads, head_dim 32, bf16, segments of 256 and 128 tokens, 16 MiB and one thread.
absl::StatusOr<EngineOptions> OptionsOf(const v1::StorageTestCase& test_case);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_STORAGE_TEST_FILE_H_
