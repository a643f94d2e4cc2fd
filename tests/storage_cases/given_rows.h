// Rows that a storage test gives literally or takes from a file.
#ifndef WAVEKV_TESTS_STORAGE_CASES_GIVEN_ROWS_H_
#define WAVEKV_TESTS_STORAGE_CASES_GIVEN_ROWS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "proto/storage_test.pb.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {

// The rows, or what is wrong with them: INVALID_ARGUMENT, NOT_FOUND.
absl::StatusOr<std::vector<float>> LiteralRows(const v1::TensorSource::Literal& literal,
                                               const WantedRows& wanted);
absl::StatusOr<std::vector<float>> FileRows(const v1::TensorSource::File& source,
                                            const WantedRows& wanted);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_GIVEN_ROWS_H_
