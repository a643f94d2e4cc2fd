#ifndef WAVEKV_COMPUTE_CONVERT_ROWS_H_
#define WAVEKV_COMPUTE_CONVERT_ROWS_H_

#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// Copies rows between element types: the door through which all of a caller's numbers come in and
// go out.
//
// Shapes: source [num_rows, row_elements], row r at source + r * source_stride elements; target
// alike. Rounding: to nearest, ties to even. `scale` multiplies in fp32 before rounding. Result:
// *all_finite is false when a source element, or the element it becomes in the target type, is NaN
// or infinite; the target is written all the same. nullptr: not wanted.
struct ConvertRowsTask {
  const void* source = nullptr;
  DType source_dtype = DType::kFloat32;
  int64_t source_stride = 0;
  void* target = nullptr;
  DType target_dtype = DType::kFloat32;
  int64_t target_stride = 0;
  int64_t num_rows = 0;
  int64_t row_elements = 0;
  float scale = 1.0f;
  bool* all_finite = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_CONVERT_ROWS_H_
