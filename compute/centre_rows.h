#ifndef WAVEKV_COMPUTE_CENTRE_ROWS_H_
#define WAVEKV_COMPUTE_CENTRE_ROWS_H_

#include <cstdint>

namespace wavekv {

// Two passes over the rows that are to be clustered, a few of them at a time.
//
// Results are the same on every machine: sums over a row's elements are those of 8 interleaved
// partial sums, over rows one by one, and no product is fused with an addition. Shapes: rows
// [num_rows, dim], dense, dim a multiple of kHeadDimStep. Errors: none.

// Adds the rows to sums [dim], and raises *largest to their largest magnitude. NaN shows in the
// sums alone.
struct SumRowsTask {
  const float* rows = nullptr;
  int64_t num_rows = 0;
  int dim = 0;
  double* sums = nullptr;
  float* largest = nullptr;
};

// Each row becomes row * scale - mean [dim]; squared_lengths [num_rows] are theirs, rounded
// [num_rows, dim] their elements as integers, to nearest, in units of which 4096 are the row's
// largest magnitude; a row below 1e-30 is zero. REQUIRES: finite results.
struct CentreRowsTask {
  float* rows = nullptr;
  int64_t num_rows = 0;
  int dim = 0;
  float scale = 1.0f;
  const float* mean = nullptr;
  float* squared_lengths = nullptr;
  int16_t* rounded = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_CENTRE_ROWS_H_
