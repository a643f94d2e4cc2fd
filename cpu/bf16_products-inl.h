// Inner products of bf16 queries with bf16 rows by the instruction made for them, which Highway
// does not use. Compiled once per instruction set; only AVX-512 has it.
#if defined(WAVEKV_CPU_BF16_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_BF16_PRODUCTS_INL_H_
#undef WAVEKV_CPU_BF16_PRODUCTS_INL_H_
#else
#define WAVEKV_CPU_BF16_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

// Whether this instruction set may have it; the machine is asked at run time (UsesBf16Products()).
#undef WAVEKV_BF16_PRODUCTS
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define WAVEKV_BF16_PRODUCTS 1

// HWY_BEFORE_NAMESPACE with one more.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Queries of bf16, [count, dim].
struct Bf16Queries {
  int count = 0;
  float scale = 1.0f;  // of their logits
  const uint16_t* data = nullptr;
};

// Writes the bf16 numbers that `queries` [count, dim] are `scale` times of, rounded to fp32, to
// `to` as Bf16Queries has them; false where there are none.
inline bool ToBf16Queries(const float* queries, int count, int dim, float scale, uint16_t* to) {
  const hn::CappedTag<float, 8> d;  // divides every dim
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<uint16_t, decltype(d)> du16;
  const auto factor = hn::Set(d, scale), inverse = hn::Set(d, 1.0f / scale);
  for (int q = 0; q < count; ++q, queries += dim, to += dim) {
    for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
      const auto query = hn::LoadU(d, queries + i);
      // Off by a few roundings in fp32, far less than half of bf16's unit.
      const auto near = hn::BitCast(du, hn::Mul(query, inverse));
      const auto high = hn::ShiftRight<16>(hn::Add(near, hn::Set(du, 0x8000)));
      const auto again = hn::Mul(hn::BitCast(d, hn::ShiftLeft<16>(high)), factor);
      if (!hn::AllTrue(d, hn::Eq(again, query))) return false;
      hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, high)), du16, to + i);
    }
  }
  return true;
}

// Rows whose pairs of neighbouring elements stand together: of kRows rows the first pairs, then the
// second ones, and so on. A vector of them meets one pair of a query, so that products add up to
// logits without sums over lanes.
struct PairsOfRows {
  static constexpr int kRows = 32;
  static constexpr int64_t Size(int dim) { return int64_t{kRows} * dim / 2; }
};

// Four pairs of 16 rows: to[i * PairsOfRows::kRows + r] = pair i of rows[r].
HWY_INLINE void TransposeFourPairs(const std::byte* const* rows, int64_t at_bytes, uint32_t* to) {
  // Lanes of a block are the pairs of a row; rows 0, 4, 8, 12, then 1, 5, 9, 13, and so on.
  __m512i four[4];
  HWY_UNROLL(4)
  for (int r = 0; r < 4; ++r) {
    const auto pairs = [&](int row) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at_bytes));
    };
    four[r] = _mm512_castsi128_si512(pairs(r));
    four[r] = _mm512_inserti32x4(four[r], pairs(r + 4), 1);
    four[r] = _mm512_inserti32x4(four[r], pairs(r + 8), 2);
    four[r] = _mm512_inserti32x4(four[r], pairs(r + 12), 3);
  }
  const __m512i low01 = _mm512_unpacklo_epi32(four[0], four[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(four[0], four[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(four[2], four[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(four[2], four[3]);
  _mm512_storeu_si512(to, _mm512_unpacklo_epi64(low01, low23));
  _mm512_storeu_si512(to + PairsOfRows::kRows, _mm512_unpackhi_epi64(low01, low23));
  _mm512_storeu_si512(to + 2 * PairsOfRows::kRows, _mm512_unpacklo_epi64(high01, high23));
  _mm512_storeu_si512(to + 3 * PairsOfRows::kRows, _mm512_unpackhi_epi64(high01, high23));
}

// Asks for rows evenly over the steps of the work that goes on meanwhile: requests for many at once
// would wait for each other, and the work with them.
class PacedPrefetch {
 public:
  // Nothing if `rows` is nullptr.
  HWY_INLINE PacedPrefetch(const std::byte* const* rows, int num_rows, int64_t row_bytes,
                           int num_steps)
      : rows_(rows),
        num_rows_(rows == nullptr ? 0 : num_rows),
        row_bytes_(row_bytes),
        num_steps_(num_steps) {}

  HWY_INLINE void Step() {
    for (due_ += num_rows_; due_ >= num_steps_; due_ -= num_steps_) {
      PrefetchBytes(*rows_++, row_bytes_);
    }
  }

 private:
  const std::byte* const* rows_;
  const int num_rows_;
  const int64_t row_bytes_;
  const int num_steps_;
  int due_ = 0;
};

// Logits of PairsOfRows::kRows rows. The instruction adds two products to an fp32 number and rounds
// after each, to nearest, ties to even; subnormal numbers count as 0.
template <int kQueries>
HWY_INLINE void DotPairs(const uint32_t* rows, int num_pairs, const uint16_t* queries, float scale,
                         PacedPrefetch& ahead, PerQuery logits) {
  const hn::FixedTag<float, 16> d;
  using V = hn::Vec<decltype(d)>;
  __m512 sums[kQueries][2];
  HWY_UNROLL(8)
  for (int q = 0; q < kQueries; ++q) sums[q][0] = sums[q][1] = _mm512_setzero_ps();
  for (int i = 0; i < num_pairs; ++i, rows += PairsOfRows::kRows) {
    ahead.Step();
    const auto row0 = (__m512bh)_mm512_loadu_si512(rows);
    const auto row1 = (__m512bh)_mm512_loadu_si512(rows + 16);
    HWY_UNROLL(8)
    for (int q = 0; q < kQueries; ++q) {
      int pair;
      std::memcpy(&pair, queries + 2 * (q * num_pairs + i), sizeof pair);
      const auto query = (__m512bh)_mm512_set1_epi32(pair);
      sums[q][0] = _mm512_dpbf16_ps(sums[q][0], query, row0);
      sums[q][1] = _mm512_dpbf16_ps(sums[q][1], query, row1);
    }
  }
  HWY_UNROLL(8)
  for (int q = 0; q < kQueries; ++q) {
    float* to = logits.From(q, 0).data;
    hn::StoreU(ClampLogit(d, hn::Mul(V{sums[q][0]}, hn::Set(d, scale))), d, to);
    hn::StoreU(ClampLogit(d, hn::Mul(V{sums[q][1]}, hn::Set(d, scale))), d, to + 16);
  }
}

// The same for 1 to 8 queries.
inline void DotPairsOf(int num_queries, const uint32_t* rows, int num_pairs,
                       const uint16_t* queries, float scale, PacedPrefetch& ahead,
                       PerQuery logits) {
  switch (num_queries) {
    case 8:
      return DotPairs<8>(rows, num_pairs, queries, scale, ahead, logits);
    case 7:
      return DotPairs<7>(rows, num_pairs, queries, scale, ahead, logits);
    case 6:
      return DotPairs<6>(rows, num_pairs, queries, scale, ahead, logits);
    case 5:
      return DotPairs<5>(rows, num_pairs, queries, scale, ahead, logits);
    case 4:
      return DotPairs<4>(rows, num_pairs, queries, scale, ahead, logits);
    case 3:
      return DotPairs<3>(rows, num_pairs, queries, scale, ahead, logits);
    case 2:
      return DotPairs<2>(rows, num_pairs, queries, scale, ahead, logits);
    default:
      return DotPairs<1>(rows, num_pairs, queries, scale, ahead, logits);
  }
}

HWY_INLINE void TransposeRows(const std::byte* const* rows, int dim, uint32_t* pairs) {
  for (int r = 0; r < PairsOfRows::kRows; r += 16) {
    for (int i = 0; i < dim / 2; i += 4) {
      TransposeFourPairs(rows + r, i * int64_t{4}, pairs + i * PairsOfRows::kRows + r);
    }
  }
}

// logits = scale * queries . rows. What lies at `rows`, `rows.ahead` and `logits` is padded to a
// multiple of PairsOfRows::kRows rows; `pairs` is room for PairsOfRows::Size().
inline void DotBf16Rows(const Rows& rows, const Bf16Queries& queries, uint32_t* pairs,
                        PerQuery logits) {
  const int num_pairs = rows.dim / 2;
  const int num_steps = (queries.count + 7) / 8 * num_pairs;
  for (int first = 0; first < rows.count; first += PairsOfRows::kRows) {
    TransposeRows(rows.begin + first, rows.dim, pairs);
    // Not while these rows come closer themselves.
    PacedPrefetch ahead(rows.ahead == nullptr ? nullptr : rows.ahead + first, PairsOfRows::kRows,
                        rows.dim * int64_t{2}, num_steps);
    for (int q = 0; q < queries.count; q += 8) {
      DotPairsOf(std::min(8, queries.count - q), pairs, num_pairs, queries.data + q * rows.dim,
                 queries.scale, ahead, logits.From(q, first));
    }
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // AVX-512

#endif  // per-target include guard
