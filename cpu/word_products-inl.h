// Inner products of rows of 16-bit integers with columns of them. Compiled once per instruction
// set.
#if defined(WAVEKV_CPU_WORD_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_WORD_PRODUCTS_INL_H_
#undef WAVEKV_CPU_WORD_PRODUCTS_INL_H_
#else
#define WAVEKV_CPU_WORD_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "cpu/byte_products-inl.h"
#include "cpu/gemm-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Two neighbouring elements form a word, which one instruction multiplies with another word and
// adds up.
using Words = hn::ScalableTag<int32_t>;
inline constexpr int kWordLanes = hn::MaxLanes(Words());
inline constexpr int kWordColumns = kBlockVectors * kWordLanes;

// sums[r][column] = the product of row r of kBlockRows and that column of b, [num_words, kVectors
// vectors].
template <int kVectors>
HWY_INLINE void MultiplyWords(const int16_t* const* rows, const int32_t* b, int num_words,
                              int32_t (*sums)[kWordColumns]) {
  const Words d;
  const hn::Repartition<int16_t, Words> d16;
  using V = hn::Vec<Words>;
  V acc[kBlockRows][kVectors], more[kBlockRows][kVectors];
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = more[r][v] = hn::Zero(d);
  }
  for (int k = 0; k < num_words; ++k, b += kVectors * kWordLanes) {
    hn::Vec<decltype(d16)> b_row[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) b_row[v] = hn::BitCast(d16, hn::Load(d, b + v * kWordLanes));
    HWY_UNROLL(6)
    for (int r = 0; r < kBlockRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, rows[r] + 2 * k, sizeof(pair));
      const auto word = hn::BitCast(d16, hn::Set(d, pair));
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = hn::ReorderWidenMulAccumulate(d, word, b_row[v], acc[r][v], more[r][v]);
      }
    }
  }
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(hn::RearrangeToOddPlusEven(acc[r][v], more[r][v]), d, sums[r] + v * kWordLanes);
    }
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if WAVEKV_INTEGER_PRODUCTS
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
namespace wavekv::cpu::HWY_NAMESPACE {

// The same by an instruction of AVX512_VNNI that multiplies words and adds their products to a sum.
// Highway, which does not know of it here, takes two.
template <int kVectors>
void MultiplyWordsVnni(const int16_t* const* rows, const int32_t* b, int num_words,
                       int32_t (*sums)[kWordColumns]) {
  __m512i acc[kBlockRows][kVectors];
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_setzero_si512();
  }
  for (int k = 0; k < num_words; ++k, b += kVectors * kWordLanes) {
    __m512i b_row[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) b_row[v] = _mm512_load_si512(b + v * kWordLanes);
    HWY_UNROLL(6)
    for (int r = 0; r < kBlockRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, rows[r] + 2 * k, sizeof(pair));
      const __m512i word = _mm512_set1_epi32(pair);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = _mm512_dpwssd_epi32(acc[r][v], word, b_row[v]);
      }
    }
  }
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) _mm512_store_si512(sums[r] + v * kWordLanes, acc[r][v]);
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // WAVEKV_INTEGER_PRODUCTS

#endif  // per-target include guard
