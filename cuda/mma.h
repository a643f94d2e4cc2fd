// Tensor cores: products of small matrices of 16-bit numbers, which a warp holds in pieces.
//
// With g = lane / 4 and t = lane % 4, the pieces (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A [16, 16]  a[0]: row g, columns 2t and 2t + 1; a[1]: row g + 8; a[2]: row g, columns 2t + 8
//               and 2t + 9; a[3]: row g + 8, the same columns
//   B [16, 8]   b[0]: rows 2t and 2t + 1 of column g; b[1]: rows 2t + 8 and 2t + 9
//   C [16, 8]   c[0], c[1]: row g, columns 2t and 2t + 1; c[2], c[3]: row g + 8
// Two numbers of a word: the first in its low half. Sums are in fp32, in an order of the
// hardware's.
#ifndef WAVEKV_CUDA_MMA_H_
#define WAVEKV_CUDA_MMA_H_

#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

struct FragmentA {
  uint32_t words[4];
};
struct FragmentB {
  uint32_t words[2];
};
struct FragmentC {
  float values[4];
};

#ifdef WAVEKV_EMULATED_GPU

template <DType kType>
float HalfOfWord(uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  return kType == DType::kFloat16 ? HalfToFloat(bits) : BFloatToFloat(bits);
}

// c += a b. kType: kFloat16 or kBFloat16.
template <DType kType>
void MultiplyAdd(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  struct Both {
    FragmentA a;
    FragmentB b;
  };
  const Both mine = {a, b};
  const std::byte* slots = emulator::ExchangeInWarp("MultiplyAdd", &mine, sizeof(mine));
  const int g = LaneIndex() / 4, t = LaneIndex() % 4;
  for (int i = 0; i < 4; ++i) {
    const bool lower = i >= 2;  // row g + 8
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const auto row_of_a = LaneValue<Both>(slots, g * 4 + k % 8 / 2);
      const auto column_of_b = LaneValue<Both>(slots, column * 4 + k % 8 / 2);
      c.values[i] += HalfOfWord<kType>(row_of_a.a.words[lower + 2 * (k / 8)], k % 2) *
                     HalfOfWord<kType>(column_of_b.b.words[k / 8], k % 2);
    }
  }
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane i gives where the 16 bytes of row
// i % 8 of matrix i / 8 lie (16-byte aligned); words[m] gets row g, columns 2t and 2t + 1 of matrix
// m or, kTransposed, rows 2t and 2t + 1 of column g.
template <bool kTransposed>
void LoadMatrices(const void* row, uint32_t (&words)[4]) {
  const std::byte* slots = emulator::ExchangeInWarp("LoadMatrices", &row, sizeof(row));
  const int g = LaneIndex() / 4, t = LaneIndex() % 4;
  for (int m = 0; m < 4; ++m) {
    uint16_t halves[2];
    for (int i = 0; i < 2; ++i) {
      const int r = kTransposed ? 2 * t + i : g, c = kTransposed ? g : 2 * t + i;
      halves[i] = static_cast<const uint16_t*>(LaneValue<const void*>(slots, m * 8 + r))[c];
    }
    words[m] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  }
  SyncWarp();  // as shared memory was read by now
}

// An 8 x 8 matrix of 16-bit numbers, row g and columns 2t and 2t + 1 in each lane, transposed.
inline uint32_t TransposeMatrix(uint32_t word) {
  const std::byte* slots = emulator::ExchangeInWarp("TransposeMatrix", &word, sizeof(word));
  const int g = LaneIndex() / 4, t = LaneIndex() % 4;
  uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {
    const auto from = LaneValue<uint32_t>(slots, (2 * t + i) * 4 + g / 2);
    result |= (from >> (16 * (g % 2)) & 0xffffu) << (16 * i);
  }
  return result;
}

// Two fp32 numbers, rounded, in one word.
template <DType kType>
uint32_t PackPair(float low, float high) {
  return kType == DType::kFloat16
             ? FloatToHalf(low) | static_cast<uint32_t>(FloatToHalf(high)) << 16
             : FloatToBFloat(low) | static_cast<uint32_t>(FloatToBFloat(high)) << 16;
}

#else

template <DType kType>
WAVEKV_DEVICE void MultiplyAdd(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  static_assert(kType == DType::kFloat16 || kType == DType::kBFloat16);
  if constexpr (kType == DType::kFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
          "r"(b.words[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
          "r"(b.words[1]));
  }
}

template <bool kTransposed>
WAVEKV_DEVICE void LoadMatrices(const void* row, uint32_t (&words)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

WAVEKV_DEVICE uint32_t TransposeMatrix(uint32_t word) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
  return result;
}

template <DType kType>
WAVEKV_DEVICE uint32_t PackPair(float low, float high) {
  uint32_t word;
  if constexpr (kType == DType::kFloat16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

#endif

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_MMA_H_
