// Arithmetic on short rows, of which the compiler makes vectors. Sums are always of the same
// partial sums, so that results do not depend on the machine.
#ifndef WAVEKV_INDEX_ROW_MATH_H_
#define WAVEKV_INDEX_ROW_MATH_H_

#include "wavekv/types.h"

namespace wavekv {

// REQUIRES: dim is a multiple of kHeadDimStep.
inline float DotRows(const float* a, const float* b, int dim) {
  float partial[kHeadDimStep] = {};
  for (int j = 0; j < dim; j += kHeadDimStep) {
    for (int lane = 0; lane < kHeadDimStep; ++lane) partial[lane] += a[j + lane] * b[j + lane];
  }
  float sum = 0.0f;
  for (const float part : partial) sum += part;
  return sum;
}

}  // namespace wavekv

#endif  // WAVEKV_INDEX_ROW_MATH_H_
