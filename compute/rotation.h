// A fixed pseudo-random rotation, under which the directions of any data look random.
#ifndef WAVEKV_COMPUTE_ROTATION_H_
#define WAVEKV_COMPUTE_ROTATION_H_

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "wavekv/types.h"

namespace wavekv {

// x -> H S x: signs S, then the Walsh-Hadamard transform H of unit length. Where dim is no power of
// two, the transform covers the first 2^m >= dim / 2 elements, and a second round the last 2^m.
//
// Small integers and signs that stand for a row's elements lose least when no element is far larger
// than the others: after the rotation none is, whatever the model. Products are kept: x.y = Rx.Ry.
// The rotation of a dim is always the same, so stored rows outlive the process; so are the numbers
// that come out, whatever the machine's vectors. Threads: constant.
// T is float or double. REQUIRES: 1 <= dim <= kHeadDimMax.
class Rotation {
 public:
  explicit Rotation(int dim) : dim_(dim), length_(static_cast<int>(std::bit_floor(unsigned(dim)))) {
    uint64_t state = 0x9e3779b97f4a7c15;
    for (int i = 0; i < dim; ++i) first_[i] = NextSign(state);
    for (int i = 0; i < dim; ++i) second_[i] = NextSign(state);
  }

  int dim() const { return dim_; }
  // For kernels that do the same in wider vectors: the power of two that a round transforms, and
  // the signs before each round [dim].
  int length() const { return length_; }
  const float* first_signs() const { return first_.data(); }
  const float* second_signs() const { return second_.data(); }

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
  using Float4 = float __attribute__((vector_size(16)));

  static Float4 Load(const float* from) {
    Float4 x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  static void Store(Float4 x, float* to) { std::memcpy(to, &x, sizeof(x)); }

  // Of a linear congruential generator, which is all that signs need.
  static float NextSign(uint64_t& state) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return state >> 63 != 0 ? -1.0f : 1.0f;
  }

  void Flip(const Signs& signs, float* row) const {
    int i = 0;
    for (; i + 4 <= dim_; i += 4) Store(Load(row + i) * Load(&signs[i]), row + i);
    for (; i < dim_; ++i) row[i] *= signs[i];
  }

  template <typename T>
  void Flip(const Signs& signs, T* row) const {
    for (int i = 0; i < dim_; ++i) row[i] *= signs[i];
  }

  // The same sums and differences as below, four at a time and two rounds of them between a load
  // and a store: several times as quick, on any machine the same.
  void Transform(float* row) const {
    if (length_ < 4) return Transform<float>(row);
    for (int i = 0; i < length_; i += 4) {
      const Float4 x = Load(row + i);
      const Float4 y = __builtin_shufflevector(x, x, 1, 0, 3, 2) + x * Float4{1, -1, 1, -1};
      Store(__builtin_shufflevector(y, y, 2, 3, 0, 1) + y * Float4{1, 1, -1, -1}, row + i);
    }
    int half = 4;
    for (; half < length_ / 2; half *= 4) {
      for (int block = 0; block < length_; block += 4 * half) {
        for (int i = block; i < block + half; i += 4) {
          float* const at[] = {row + i, row + i + half, row + i + 2 * half, row + i + 3 * half};
          const Float4 x0 = Load(at[0]), x1 = Load(at[1]), x2 = Load(at[2]), x3 = Load(at[3]);
          const Float4 low_sum = x0 + x1, low_difference = x0 - x1;
          const Float4 high_sum = x2 + x3, high_difference = x2 - x3;
          Store(low_sum + high_sum, at[0]);
          Store(low_difference + high_difference, at[1]);
          Store(low_sum - high_sum, at[2]);
          Store(low_difference - high_difference, at[3]);
        }
      }
    }
    if (half < length_) {
      for (int i = 0; i < half; i += 4) {
        const Float4 x0 = Load(row + i), x1 = Load(row + i + half);
        Store(x0 + x1, row + i);
        Store(x0 - x1, row + i + half);
      }
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(length_));
    for (int i = 0; i < length_; i += 4) Store(Load(row + i) * scale, row + i);
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
