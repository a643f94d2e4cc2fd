// A fixed pseudo-random rotation, under which the directions of any data look random.
#ifndef WAVEKV_COMPUTE_ROTATION_H_
#define WAVEKV_COMPUTE_ROTATION_H_

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// x -> H S x: signs S, then the Walsh-Hadamard transform H of unit length. Where dim is no power of
// two, the transform covers the first 2^m >= dim / 2 elements, and a second round the last 2^m.
//
// Small integers and signs that stand for a row's elements lose least when no element is far larger
// than the others: after the rotation none is, whatever the model. Products are kept: x.y = Rx.Ry.
// The rotation of a dim is always the same, so stored rows outlive the process. Threads: constant.
// T is float or double. REQUIRES: 1 <= dim <= kHeadDimMax.
class Rotation {
 public:
  explicit Rotation(int dim) : dim_(dim), length_(static_cast<int>(std::bit_floor(unsigned(dim)))) {
    uint64_t state = 0x9e3779b97f4a7c15;
    for (int i = 0; i < dim; ++i) first_[i] = NextSign(state);
    for (int i = 0; i < dim; ++i) second_[i] = NextSign(state);
  }

  int dim() const { return dim_; }

  template <typename T>
  void Apply(T* row) const {
    Flip(first_, row);
    Transform(row);
    if (length_ == dim_) return;
    Flip(second_, row);
    Transform(row + dim_ - length_);
  }

  template <typename T>
  void ApplyInverse(T* row) const {
    if (length_ != dim_) {
      Transform(row + dim_ - length_);
      Flip(second_, row);
    }
    Transform(row);
    Flip(first_, row);
  }

 private:
  using Signs = std::array<float, kHeadDimMax>;

  // Of a linear congruential generator, which is all that signs need.
  static float NextSign(uint64_t& state) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return state >> 63 != 0 ? -1.0f : 1.0f;
  }

  template <typename T>
  void Flip(const Signs& signs, T* row) const {
    for (int i = 0; i < dim_; ++i) row[i] *= signs[i];
  }

  template <typename T>
  void Transform(T* row) const {
    for (int half = 1; half < length_; half *= 2) {
      for (int block = 0; block < length_; block += 2 * half) {
        for (int i = block; i < block + half; ++i) {
          const T a = row[i], b = row[i + half];
          row[i] = a + b;
          row[i + half] = a - b;
        }
      }
    }
    const T scale = T{1} / std::sqrt(static_cast<T>(length_));
    for (int i = 0; i < length_; ++i) row[i] *= scale;
  }

  int dim_;
  int length_;  // of the transform: the greatest power of two in dim
  Signs first_;
  Signs second_;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ROTATION_H_
