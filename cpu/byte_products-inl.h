// Inner products of queries in integers with rows of small integers by the instruction that
// multiplies and adds four pairs of bytes, which Highway does not use. Compiled once per
// instruction set; only AVX-512 has it.
#if defined(WAVEKV_CPU_BYTE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_BYTE_PRODUCTS_INL_H_
#undef WAVEKV_CPU_BYTE_PRODUCTS_INL_H_
#else
#define WAVEKV_CPU_BYTE_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"
#include "storage/cluster_index.h"

// Whether this instruction set may have AVX512_VNNI; the machine is asked at run time
// (UsesIntegerProducts()).
#undef WAVEKV_INTEGER_PRODUCTS
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define WAVEKV_INTEGER_PRODUCTS 1

// HWY_BEFORE_NAMESPACE with one more.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Four queries in integers of 15 bits, as 128 times a signed byte plus one of 7 bits, in the order
// in which rows are unpacked: an int4 row to a vector of its first half and one of its second half
// in turn.
struct ByteQueries {
  static constexpr int kQueries = 4;
  static constexpr int kLanes = 64;
  static constexpr int kVectorsMax = (kHeadDimMax / 2 + kLanes - 1) / kLanes * 2;

  // elements [dim], of which those of query q become those of this one.
  void Load(int q, const int16_t* elements, int dim, bool is_int4) {
    const int parts = is_int4 ? 2 : 1, part = dim / parts;
    num_vectors = (part + kLanes - 1) / kLanes * parts;
    for (int v = 0; v < num_vectors; ++v) {
      const int first = v / parts * kLanes;
      for (int i = 0; i < kLanes; ++i) {
        const bool is_element = first + i < part;
        const int element = is_element ? elements[v % parts * part + first + i] : 0;
        high[v][q][i] = static_cast<int8_t>(element >> 7);
        low[v][q][i] = static_cast<int8_t>(element & 127);
      }
    }
  }

  int num_vectors = 0;
  alignas(64) int8_t high[kVectorsMax][kQueries][kLanes];
  alignas(64) int8_t low[kVectorsMax][kQueries][kLanes];
};

// Products of one row with four queries: lane q of each of four blocks has a part of that of query
// q. Signed bytes are taken with 128 added.
template <bool kInt4>
HWY_INLINE __m512i MultiplyRow(const ByteQueries& queries, const std::byte* row) {
  const hn::ScalableTag<int32_t> d;
  const __m512i low_bits = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  __m512i high[4], low[4];
  HWY_UNROLL(4)
  for (int q = 0; q < 4; ++q) high[q] = low[q] = _mm512_setzero_si512();
  const auto add = [&](int v, __m512i bytes) __attribute__((always_inline)) {
    HWY_UNROLL(4)
    for (int q = 0; q < 4; ++q) {
      high[q] = _mm512_dpbusd_epi32(high[q], bytes, _mm512_load_si512(queries.high[v][q]));
      low[q] = _mm512_dpbusd_epi32(low[q], bytes, _mm512_load_si512(queries.low[v][q]));
    }
  };
  for (int v = 0; v < queries.num_vectors; v += kInt4 ? 2 : 1) {
    const __m512i bytes = _mm512_loadu_si512(row + v / (kInt4 ? 2 : 1) * ByteQueries::kLanes);
    if constexpr (kInt4) {
      add(v, _mm512_and_si512(bytes, low_bits));
      add(v + 1, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_bits));
    } else {
      add(v, _mm512_xor_si512(bytes, sign));
    }
  }
  hn::Vec<decltype(d)> sums[4];
  HWY_UNROLL(4)
  for (int q = 0; q < 4; ++q) {
    sums[q].raw = _mm512_add_epi32(_mm512_slli_epi32(high[q], 7), low[q]);
  }
  return BlockSumsOfFour(d, sums).raw;
}

// products [count, 4] with the rows from `first` on, without what `offsets` [4] say is added to
// the integers of a query, times `steps` [4] and the scale of the row. Room for a multiple of four
// rows; reads up to a vector behind the last row, and behind its scale.
template <bool kInt4>
void MultiplyBytes(const ByteQueries& queries, const float* steps, const int32_t* offsets,
                   const StatisticsRows& rows, int64_t first, int count, float* products) {
  const __m512 all_steps = _mm512_broadcast_f32x4(_mm_loadu_ps(steps));
  const __m512i all_offsets =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
  const __m512i each_four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  for (int i = 0; i < count; i += 4) {
    __m512i blocks[4];
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      blocks[r] = MultiplyRow<kInt4>(queries, rows.row(first + std::min(i + r, count - 1)));
    }
    // Blocks of two rows are added up in part, then those of all four.
    const __m512i rows01 = _mm512_add_epi32(_mm512_shuffle_i32x4(blocks[0], blocks[1], 0x88),
                                            _mm512_shuffle_i32x4(blocks[0], blocks[1], 0xdd));
    const __m512i rows23 = _mm512_add_epi32(_mm512_shuffle_i32x4(blocks[2], blocks[3], 0x88),
                                            _mm512_shuffle_i32x4(blocks[2], blocks[3], 0xdd));
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(rows01, rows23, 0x88),
                                          _mm512_shuffle_i32x4(rows01, rows23, 0xdd));
    const __m512 scales = _mm512_permutexvar_ps(
        each_four, _mm512_castps128_ps512(_mm_loadu_ps(rows.scales + first + i)));
    const __m512 numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, all_offsets));
    _mm512_storeu_ps(products + 4 * i, _mm512_mul_ps(_mm512_mul_ps(numbers, all_steps), scales));
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET

#endif  // per-target include guard
