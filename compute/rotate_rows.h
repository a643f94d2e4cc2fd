#ifndef WAVEKV_COMPUTE_ROTATE_ROWS_H_
#define WAVEKV_COMPUTE_ROTATE_ROWS_H_

#include <cstdint>

namespace wavekv {

// Rotates rows as rotation.h says, into the coordinates of stored means and codes.
//
// Shapes: source and target [num_rows, dim] fp32; they may be the same.
struct RotateRowsTask {
  const float* source = nullptr;
  float* target = nullptr;
  int64_t num_rows = 0;
  int dim = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ROTATE_ROWS_H_
