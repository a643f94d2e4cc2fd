#ifndef WAVEKV_COMPUTE_CONVERT_ROWS_H_
#define WAVEKV_COMPUTE_CONVERT_ROWS_H_

#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// Copies rows between element types: the door through which all of a caller's numbers come in and
// go out.
//
// Shapes: source [num_rows, num_heads, row_elements], head h of row r at source + r * source_stride
// + h * source_head_stride elements; target alike. A GPU takes one head a task. Rounding: to
// nearest, ties to even. `scale` multiplies in fp32 before rounding. Result: *all_finite is false
// when a source element, or the element it becomes in the target type, is NaN or infinite; the
// target is written all the same. nullptr: not wanted.
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
  int num_heads = 1;
  int64_t source_head_stride = 0;
  int64_t target_head_stride = 0;
  // The target is part of more than caches hold: what is copied bit for bit may go past them.
  bool past_caches = false;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_CONVERT_ROWS_H_
