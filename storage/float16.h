// Scalar conversions between fp32 and the two 16-bit formats; the definition the SIMD paths match.
#ifndef WAVEKV_STORAGE_FLOAT16_H_
#define WAVEKV_STORAGE_FLOAT16_H_

#include <bit>
#include <cstdint>
#include <cstring>

#include "wavekv/types.h"

namespace wavekv {

// bf16 is the upper half of an fp32; rounds to nearest, ties to even. NaN stays NaN.
inline uint16_t Float32ToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float BFloat16ToFloat32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// IEEE binary16, nearest-even; magnitudes that round above 65504 become infinite.
inline uint16_t Float32ToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 lets the fp32 adder round at the binary16 subnormal's last bit.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

// Comparisons are the sign bits of differences: of a loop without a branch the compiler makes
// vectors.
inline float Float16ToFloat32(uint16_t bits) {
  constexpr uint32_t kBias = 112u << 23;  // what the exponents of the two formats differ by
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  // A subnormal is the mantissa of 2^-14 + itself: never one of fp32, which threads may flush.
  const uint32_t subnormal = (magnitude - (1u << 23)) >> 31;
  const float number = std::bit_cast<float>(magnitude + kBias + (subnormal << 23)) -
                       std::bit_cast<float>(subnormal * (113u << 23));
  const uint32_t not_finite = ((31u << 23) - 1 - magnitude) >> 31;
  const uint32_t value = std::bit_cast<uint32_t>(number) + not_finite * kBias;
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x8000u) << 16 | value);
}

// Element `index` of an array of `dtype`.
inline float LoadElement(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kFloat16 ? Float16ToFloat32(bits) : BFloat16ToFloat32(bits);
}

inline void StoreElement(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        dtype == DType::kFloat16 ? Float32ToFloat16(value) : Float32ToBFloat16(value);
  }
}

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_FLOAT16_H_
