// compute/rotation.h's rotation of fp32 rows: the same sums and differences, in vectors. Compiled
// once per instruction set.
#if defined(WAVEKV_CPU_ROTATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ROTATION_INL_H_
#undef WAVEKV_CPU_ROTATION_INL_H_
#else
#define WAVEKV_CPU_ROTATION_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "compute/rotation.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The vectors of a rotation: its length is a multiple of 8.
using RotationTag = hn::CappedTag<float, 8>;
using RotationVec = hn::Vec<RotationTag>;

// The sign bit in the lanes whose number has `bit`.
HWY_INLINE RotationVec SignsOfLanes(int32_t bit) {
  const RotationTag d;
  const hn::RebindToSigned<RotationTag> di;
  const auto has_bit = hn::TestBit(hn::Iota(di, 0), hn::Set(di, bit));
  return hn::IfThenElseZero(hn::RebindMask(d, has_bit), hn::Set(d, -0.0f));
}

// Sums and differences of elements that lie side by side, two apart, and so on within a vector.
HWY_INLINE RotationVec TransformVector(RotationVec x, RotationVec odd, RotationVec second,
                                       [[maybe_unused]] RotationVec upper) {
  x = hn::Add(hn::Shuffle2301(x), hn::Xor(x, odd));
  x = hn::Add(hn::Shuffle1032(x), hn::Xor(x, second));
  if constexpr (hn::MaxLanes(RotationTag()) == 8) {
    x = hn::Add(hn::ConcatLowerUpper(RotationTag(), x, x), hn::Xor(x, upper));
  }
  return x;
}

// Two rounds of sums and differences, of elements `half` and 2 half apart, times `factor`.
HWY_INLINE void TransformTwoRounds(float* row, int length, int half, RotationVec factor) {
  const RotationTag d;
  const int n = static_cast<int>(hn::Lanes(d));
  for (int block = 0; block < length; block += 4 * half) {
    for (int i = block; i < block + half; i += n) {
      float* const at = row + i;
      const auto x0 = hn::LoadU(d, at), x1 = hn::LoadU(d, at + half);
      const auto x2 = hn::LoadU(d, at + 2 * half), x3 = hn::LoadU(d, at + 3 * half);
      const auto low_sum = hn::Add(x0, x1), low_difference = hn::Sub(x0, x1);
      const auto high_sum = hn::Add(x2, x3), high_difference = hn::Sub(x2, x3);
      hn::StoreU(hn::Mul(hn::Add(low_sum, high_sum), factor), d, at);
      hn::StoreU(hn::Mul(hn::Add(low_difference, high_difference), factor), d, at + half);
      hn::StoreU(hn::Mul(hn::Sub(low_sum, high_sum), factor), d, at + 2 * half);
      hn::StoreU(hn::Mul(hn::Sub(low_difference, high_difference), factor), d, at + 3 * half);
    }
  }
}

// Writes the Walsh-Hadamard transform of unit length of load(j), vectors that begin at element j.
// REQUIRES: length is a power of two, at least 8.
template <typename Load>
HWY_INLINE void Transform(int length, const Load& load, float* row) {
  const RotationTag d;
  const int n = static_cast<int>(hn::Lanes(d));
  const auto odd = SignsOfLanes(1), second = SignsOfLanes(2), upper = SignsOfLanes(4);
  for (int i = 0; i < length; i += n) {
    hn::StoreU(TransformVector(load(i), odd, second, upper), d, row + i);
  }
  // A factor of 1 changes nothing: the last round has that of the whole.
  const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(length)));
  int half = n;
  for (; half < length / 2; half *= 4) {
    TransformTwoRounds(row, length, half, 4 * half == length ? scale : hn::Set(d, 1.0f));
  }
  if (half < length) {
    for (int i = 0; i < half; i += n) {
      const auto x0 = hn::LoadU(d, row + i), x1 = hn::LoadU(d, row + i + half);
      hn::StoreU(hn::Mul(hn::Add(x0, x1), scale), d, row + i);
      hn::StoreU(hn::Mul(hn::Sub(x0, x1), scale), d, row + i + half);
    }
  } else if (half == n) {
    hn::StoreU(hn::Mul(hn::LoadU(d, row), scale), d, row);  // one vector is all
  }
}

// Writes the rotated row of elements load(j), vectors that begin at element j.
template <typename Load>
HWY_INLINE void Rotate(const Rotation& rotation, const Load& load, float* row) {
  const RotationTag d;
  const int n = static_cast<int>(hn::Lanes(d));
  const int dim = rotation.dim(), length = rotation.length();
  const auto load_signed = [&](int j) HWY_ATTR {
    return hn::Mul(load(j), hn::LoadU(d, rotation.first_signs() + j));
  };
  Transform(length, load_signed, row);
  if (length == dim) return;
  for (int j = length; j < dim; j += n) hn::StoreU(load_signed(j), d, row + j);
  const float* const signs = rotation.second_signs();
  for (int j = 0; j < dim - length; j += n) {
    hn::StoreU(hn::Mul(hn::LoadU(d, row + j), hn::LoadU(d, signs + j)), d, row + j);
  }
  float* const last = row + dim - length;
  const auto load_last = [last, signs = signs + dim - length](int j) HWY_ATTR {
    const RotationTag tag;
    return hn::Mul(hn::LoadU(tag, last + j), hn::LoadU(tag, signs + j));
  };
  Transform(length, load_last, last);
}

// Undoes it, in place.
HWY_INLINE void RotateBack(const Rotation& rotation, float* row) {
  const int dim = rotation.dim(), length = rotation.length();
  const auto transform = [length](float* from) HWY_ATTR {
    Transform(
        length, [from](int j) HWY_ATTR { return hn::LoadU(RotationTag(), from + j); }, from);
  };
  const auto flip = [dim, row](const float* signs) HWY_ATTR {
    const RotationTag d;
    for (int j = 0; j < dim; j += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Mul(hn::LoadU(d, row + j), hn::LoadU(d, signs + j)), d, row + j);
    }
  };
  if (length != dim) {
    transform(row + dim - length);
    flip(rotation.second_signs());
  }
  transform(row);
  flip(rotation.first_signs());
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
