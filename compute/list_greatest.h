#ifndef WAVEKV_COMPUTE_LIST_GREATEST_H_
#define WAVEKV_COMPUTE_LIST_GREATEST_H_

#include <cstdint>

namespace wavekv {

// The places of the greatest values of each row, in ascending order; of values that are equal,
// those that come first.
//
// Shapes: values [num_rows, num_values] and lists [num_rows, num_listed], dense; 1 <= num_listed <=
// num_values. Magnitudes are at most 2^29. Errors: none.
struct ListGreatestTask {
  const int32_t* values = nullptr;
  int64_t num_rows = 0;
  int64_t num_values = 0;
  int64_t num_listed = 0;
  uint32_t* lists = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_LIST_GREATEST_H_
