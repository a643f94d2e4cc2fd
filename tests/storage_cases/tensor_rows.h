// The rows that a storage test's TensorSource stands for.
#ifndef WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_
#define WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_

#include <cstdint>
#include <vector>

#include "proto/storage_test.pb.h"

namespace wavekv::testing {

// Rows [first_row, first_row + num_rows) of a layer: [num_rows, num_heads, head_dim]. Each number
// depends on the source, layer, row, head and dimension alone, not on how rows are cut into calls.
std::vector<float> TensorRows(const v1::TensorSource& source, int layer, int64_t first_row,
                              int64_t num_rows, int num_heads, int head_dim);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_TENSOR_ROWS_H_
