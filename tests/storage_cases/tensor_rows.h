// The rows that a storage test's TensorSource stands for.
#ifndef WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_
#define WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/storage_test.pb.h"

namespace wavekv::testing {

// Whose rows are wanted: [num_rows, num_heads, head_dim] of a layer.
struct WantedRows {
  int layer = 0;
  int64_t first_row = 0;  // position, or number of the query
  int64_t num_rows = 0;
  int num_heads = 0;
  int head_dim = 0;
  int gqa_group_size = 1;  // consecutive heads that ask the same kv head; 1 for keys and values
};

// Each number of a generated source depends on the source, layer, row, head and dimension alone,
// not on how rows are cut into calls. Given rows are those of the call. Errors as CheckGivenRows.
absl::StatusOr<std::vector<float>> TensorRows(const v1::TensorSource& source,
                                              const WantedRows& wanted);

// INVALID_ARGUMENT or NOT_FOUND unless the rows of a literal or a file are as many and as wide as
// wanted; the message names what is wrong below the source, such as "file.tensor". OK for generated
// rows.
absl::Status CheckGivenRows(const v1::TensorSource& source, const WantedRows& wanted);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_
