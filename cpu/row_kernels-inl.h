// Rows of fp32, fp16 or bf16 against fp32 vectors, promoted in registers. Compiled once per
// instruction set.
#if defined(WAVEKV_CPU_ROW_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ROW_KERNELS_INL_H_
#undef WAVEKV_CPU_ROW_KERNELS_INL_H_
#else
#define WAVEKV_CPU_ROW_KERNELS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/prefetch.h"
#include "hwy/highway.h"
#include "wavekv/types.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// How many fp32 vectors may accumulate at once and leave registers for operands.
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr int kAccumulators = 16;  // of 32 registers
#else
inline constexpr int kAccumulators = 8;  // of 16
#endif

// Calls kernel(tag) with the widest fp32 vectors of which two divide `dim` (a multiple of 8).
template <class Kernel>
HWY_INLINE void WithVectorsFor(int dim, const Kernel& kernel) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> up_to_eight;
  const hn::CappedTag<float, 4> four;
  if (dim % (2 * static_cast<int>(hn::Lanes(full))) == 0) {
    kernel(full);
  } else if (dim % (2 * static_cast<int>(hn::Lanes(up_to_eight))) == 0) {
    kernel(up_to_eight);
  } else {
    kernel(four);
  }
}

// fp16 to fp32, infinities and NaN included.
template <class D>
HWY_INLINE hn::Vec<D> LoadFloat16(D d, const std::byte* from) {
#if HWY_TARGET == HWY_SSE4
  // No instruction for it: move the exponent, then let a multiplication correct its bias, which
  // also normalises subnormals.
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> du16;
  const auto bits = hn::PromoteTo(du, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7fff)));
  const auto number = hn::BitCast(du, hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f)));
  const auto not_finite = hn::Ge(hn::BitCast(d, magnitude), hn::Set(d, 0x1p-96f));
  const auto exponent = hn::IfThenElseZero(hn::RebindMask(du, not_finite), hn::Set(du, 0x7f800000));
  return hn::BitCast(d, hn::Or(sign, hn::Or(number, exponent)));
#else
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
}

// One vector of elements in their own order.
template <DType kType, class D>
HWY_INLINE hn::Vec<D> LoadInOrder(D d, const std::byte* from) {
  if constexpr (kType == DType::kFloat32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(from));
  } else if constexpr (kType == DType::kFloat16) {
    return LoadFloat16(d, from);
  } else {
    const hn::RebindToUnsigned<D> du;
    const hn::Rebind<uint16_t, D> du16;
    const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
  }
}

// 2N consecutive elements as two vectors. For bf16 these are the even and the odd ones: each takes
// a single operation on a register of both, half of what promoting in order takes. Vectors that
// meet such pairs are kept in the same order ("paired"), see StorePaired and LoadPaired.
template <DType kType, class D>
HWY_INLINE void LoadPair(D d, const std::byte* from, hn::Vec<D>& first, hn::Vec<D>& second) {
  if constexpr (kType == DType::kBFloat16) {
    const hn::RebindToUnsigned<D> du;
    const hn::Repartition<uint16_t, D> du16;
    const auto both = hn::BitCast(du, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from)));
    first = hn::BitCast(d, hn::ShiftLeft<16>(both));
    second = hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u)));
  } else {
    first = LoadInOrder<kType>(d, from);
    second = LoadInOrder<kType>(d, from + hn::Lanes(d) * DTypeBytes(kType));
  }
}

// fp32 [dim] to paired order, and back. In place is allowed.
template <DType kType, class D>
HWY_INLINE void StorePaired(D d, const float* from, int dim, float* to) {
  const int n = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < dim; i += 2 * n) {
    hn::Vec<D> first = hn::LoadU(d, from + i), second = hn::LoadU(d, from + i + n);
    if constexpr (kType == DType::kBFloat16) hn::LoadInterleaved2(d, from + i, first, second);
    hn::StoreU(first, d, to + i);
    hn::StoreU(second, d, to + i + n);
  }
}
template <DType kType, class D>
HWY_INLINE void LoadPaired(D d, const float* from, int dim, float* to) {
  const int n = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < dim; i += 2 * n) {
    const hn::Vec<D> first = hn::LoadU(d, from + i), second = hn::LoadU(d, from + i + n);
    if constexpr (kType == DType::kBFloat16) {
      hn::StoreInterleaved2(first, second, d, to + i);
    } else {
      hn::StoreU(first, d, to + i);
      hn::StoreU(second, d, to + i + n);
    }
  }
}

// Block sums of a vector: lane i of the result is the sum of the lanes i, i + 4, i + 8, ...
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<hn::TFromD<D>, 4>> SumOfBlocks(D /* d */, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Block sums of four vectors at once: lane i of every block of the result belongs to the i-th
// vector.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V BlockSumsOfFour(D d, const V* v) {
  const hn::RepartitionToWide<D> wide;
  const V sums01 = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const V sums23 = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto wide01 = hn::BitCast(wide, sums01);
  const auto wide23 = hn::BitCast(wide, sums23);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, wide01, wide23)),
                 hn::BitCast(d, hn::InterleaveUpper(wide, wide01, wide23)));
}

// Lane i of the result is the sum over all lanes of the i-th vector.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::FixedTag<hn::TFromD<D>, 4>> SumsOfFour(D d, const V* v) {
  return SumOfBlocks(d, BlockSumsOfFour(d, v));
}

// [count, 4] to [4, columns] with columns >= count rounded up to four. Reads that many rows.
HWY_INLINE void TransposeBatches(const float* from, int count, float* to, int64_t columns) {
  const hn::FixedTag<float, 4> d;
  for (int i = 0; i < count; i += 4) {
    const auto a = hn::LoadU(d, from + 4 * i), b = hn::LoadU(d, from + 4 * i + 4);
    const auto c = hn::LoadU(d, from + 4 * i + 8), e = hn::LoadU(d, from + 4 * i + 12);
    const auto ab_low = hn::InterleaveLower(d, a, b), ab_high = hn::InterleaveUpper(d, a, b);
    const auto ce_low = hn::InterleaveLower(d, c, e), ce_high = hn::InterleaveUpper(d, c, e);
    hn::StoreU(hn::ConcatLowerLower(d, ce_low, ab_low), d, to + i);
    hn::StoreU(hn::ConcatUpperUpper(d, ce_low, ab_low), d, to + columns + i);
    hn::StoreU(hn::ConcatLowerLower(d, ce_high, ab_high), d, to + 2 * columns + i);
    hn::StoreU(hn::ConcatUpperUpper(d, ce_high, ab_high), d, to + 3 * columns + i);
  }
}

// Inner products of finite numbers may overflow; as logits they must have finite differences.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ClampLogit(D d, V logit) {
  const V ceiling = hn::Set(d, 1e37f), floor = hn::Set(d, -1e37f);
  const V below_ceiling = hn::IfThenElse(hn::Lt(logit, ceiling), logit, ceiling);  // NaN too
  return hn::Max(below_ceiling, floor);
}

// The product of two fp32 rows.
HWY_INLINE float Dot(const float* a, const float* b, int dim) {
  const hn::CappedTag<float, 8> d;  // divides every dim
  auto sums = hn::Zero(d);
  for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
    sums = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sums);
  }
  return hn::GetLane(hn::SumOfLanes(d, sums));
}

// Rows of `dim` elements, by address.
struct Rows {
  const std::byte* const* begin = nullptr;
  int count = 0;
  int dim = 0;
  // As many rows that will be read next and are brought closer meanwhile; or nullptr.
  const std::byte* const* ahead = nullptr;
};

// One fp32 number for each (query, row).
struct PerQuery {
  float* data = nullptr;
  int64_t stride = 0;  // from one query to the next

  HWY_INLINE PerQuery From(int query, int row) const {
    return {data + query * stride + row, stride};
  }
};

inline constexpr int64_t kLine = 64;  // of a cache, in bytes

// ---- logits: every row against every query ----

// The logits of four rows to two queries, from what BlockSumsOfFour() made for each.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreLogitsOfTwo(D d, V first, V second, PerQuery logits) {
  const hn::Half<D> half;
  if constexpr (hn::MaxLanes(D()) == 16) {
    StoreLogitsOfTwo(half, hn::Add(hn::LowerHalf(half, first), hn::UpperHalf(half, first)),
                     hn::Add(hn::LowerHalf(half, second), hn::UpperHalf(half, second)), logits);
  } else {
    const V both = ClampLogit(
        d, hn::Add(hn::ConcatLowerLower(d, second, first), hn::ConcatUpperUpper(d, second, first)));
    hn::StoreU(hn::LowerHalf(half, both), half, logits.From(0, 0).data);
    hn::StoreU(hn::UpperHalf(half, both), half, logits.From(1, 0).data);
  }
}

// To four queries, in vectors of four blocks.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreLogitsOfFour(D d, const V* blocks, PerQuery logits) {
  // Blocks 0 + 2 and 1 + 3 of a query beside each other, two queries in a vector.
  const V sums01 = hn::Add(hn::ConcatLowerLower(d, blocks[1], blocks[0]),
                           hn::ConcatUpperUpper(d, blocks[1], blocks[0]));
  const V sums23 = hn::Add(hn::ConcatLowerLower(d, blocks[3], blocks[2]),
                           hn::ConcatUpperUpper(d, blocks[3], blocks[2]));
  const V even = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(sums23), sums01);
  const V odd = hn::OddEvenBlocks(sums23, hn::SwapAdjacentBlocks(sums01));
  const V q0213 = ClampLogit(d, hn::Add(even, odd));
  const hn::Half<D> half;
  const hn::Half<decltype(half)> four;
  const auto q02 = hn::LowerHalf(half, q0213), q13 = hn::UpperHalf(half, q0213);
  hn::StoreU(hn::LowerHalf(four, q02), four, logits.From(0, 0).data);
  hn::StoreU(hn::LowerHalf(four, q13), four, logits.From(1, 0).data);
  hn::StoreU(hn::UpperHalf(four, q02), four, logits.From(2, 0).data);
  hn::StoreU(hn::UpperHalf(four, q13), four, logits.From(3, 0).data);
}

// Stores the logits of four rows: that of query q and row i is the sum over all lanes of
// sums[q][i]. Queries share what adds up blocks; each sum is made in the same order whatever the
// number of queries.
template <int kQueries, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreLogits(D d, const V (*sums)[4], PerQuery logits) {
  const hn::FixedTag<float, 4> four;
  V blocks[kQueries];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) blocks[q] = BlockSumsOfFour(d, sums[q]);
  if constexpr (hn::MaxLanes(D()) == 4 || kQueries == 1) {
    HWY_UNROLL(4)
    for (int q = 0; q < kQueries; ++q) {
      hn::StoreU(ClampLogit(four, SumOfBlocks(d, blocks[q])), four, logits.From(q, 0).data);
    }
  } else if constexpr (hn::MaxLanes(D()) == 16 && kQueries == 4) {
    StoreLogitsOfFour(d, blocks, logits);
  } else {
    HWY_UNROLL(2)
    for (int q = 0; q < kQueries; q += 2) {
      StoreLogitsOfTwo(d, blocks[q], blocks[q + 1], logits.From(q, 0));
    }
  }
}

// Asks for bytes [begin, begin + kBytes) of a row. Inlined, or the compiler takes calls for idle.
template <int64_t kBytes>
HWY_INLINE void PrefetchPart(const std::byte* row, int64_t begin) {
  HWY_UNROLL(4)
  for (int64_t at = 0; at < kBytes; at += kLine) __builtin_prefetch(row + begin + at, 0, 2);
}

// Of the two vectors of a pair.
template <DType kType, class D>
inline constexpr int64_t kPairBytes = 2 * hn::MaxLanes(D()) * DTypeBytes(kType);

// Whether rows are asked for line by line beside the work on others: requests for many lines at
// once wait for each other, and the work with them. Where a line takes several vectors this is
// slower than to ask for four rows before they are worked on.
template <DType kType, class D>
inline constexpr bool kPaced = kPairBytes<kType, D> >= kLine;

// logits = queries . rows for the four rows at `rows`. Each row is promoted once, each query loaded
// once, and the horizontal sums of four rows share their shuffles. `ahead`: four rows to ask for.
template <DType kType, int kQueries, class D>
HWY_INLINE void DotFourRows(D d, const std::byte* const* rows, const std::byte* const* ahead,
                            int dim, const float* queries, PerQuery logits) {
  using V = hn::Vec<D>;
  const int n = static_cast<int>(hn::Lanes(d));
  V sums[kQueries][4];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) sums[q][r] = hn::Zero(d);
  }
  for (int i = 0; i < dim; i += 2 * n) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4 && kPaced<kType, D> && ahead != nullptr; ++r) {
      PrefetchPart<kPairBytes<kType, D>>(ahead[r], i * DTypeBytes(kType));
    }
    V first[4], second[4];
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      LoadPair<kType>(d, rows[r] + i * DTypeBytes(kType), first[r], second[r]);
    }
    HWY_UNROLL(4)
    for (int q = 0; q < kQueries; ++q) {
      const V q_first = hn::LoadU(d, queries + q * dim + i);
      const V q_second = hn::LoadU(d, queries + q * dim + i + n);
      HWY_UNROLL(4)
      for (int r = 0; r < 4; ++r) {
        sums[q][r] = hn::MulAdd(q_first, first[r], sums[q][r]);
        sums[q][r] = hn::MulAdd(q_second, second[r], sums[q][r]);
      }
    }
  }
  StoreLogits<kQueries>(d, sums, logits);
}

// logits = queries . rows; queries are [num_queries, rows.dim] in paired order. What lies at
// `rows`, `rows.ahead` and `logits` is padded to a multiple of four rows.
template <DType kType, class D>
void DotRows(D d, const Rows& rows, const float* queries, int num_queries, PerQuery logits) {
  constexpr int kAtOnce = kAccumulators / 4;
  const int64_t row_bytes = rows.dim * DTypeBytes(kType);
  for (int r = 0; r < rows.count; r += 4) {
    const std::byte* const* four = rows.begin + r;
    // Asked for beside the first queries.
    const std::byte* const* ahead = rows.ahead == nullptr ? nullptr : rows.ahead + r;
    for (int i = 0; i < 4 && ahead != nullptr; ++i) {
      if (!kPaced<kType, D>) PrefetchBytes(ahead[i], row_bytes);
      if (kPaced<kType, D> && row_bytes % kLine != 0) PrefetchPart<1>(ahead[i], row_bytes - 1);
    }
    int q = 0;
    const auto dot = [&](auto num_at_once) HWY_ATTR {
      DotFourRows<kType, num_at_once>(d, four, ahead, rows.dim, queries + q * rows.dim,
                                      logits.From(q, r));
      ahead = nullptr;
      q += num_at_once;
    };
    while (q + kAtOnce <= num_queries) dot(std::integral_constant<int, kAtOnce>());
    while (kAtOnce > 2 && q + 2 <= num_queries) dot(std::integral_constant<int, 2>());
    while (q < num_queries) dot(std::integral_constant<int, 1>());
  }
}

// ---- weighted sums of rows ----

// sums += weights . rows over kVectors vectors of columns; kVectors is even.
template <DType kType, int kQueries, int kVectors, class D>
HWY_INLINE void AddWeightedColumns(D d, const Rows& rows, int column, PerQuery weights,
                                   const std::byte* const* ahead, float* sums) {
  using V = hn::Vec<D>;
  const int n = static_cast<int>(hn::Lanes(d));
  const int64_t begin_bytes = column * DTypeBytes(kType);
  const int64_t pair_bytes = 2 * n * DTypeBytes(kType);
  const int64_t row_bytes = rows.dim * DTypeBytes(kType);
  const bool ends_within_line = row_bytes % kLine != 0;
  sums += column;
  V acc[kQueries][kVectors];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) acc[q][v] = hn::LoadU(d, sums + q * rows.dim + v * n);
  }
  for (int r = 0; r < rows.count; ++r) {
    if (ahead != nullptr) {
      PrefetchPart<kVectors / 2 * kPairBytes<kType, D>>(ahead[r], begin_bytes);
      if (ends_within_line) PrefetchPart<1>(ahead[r], row_bytes - 1);
    }
    V value[kVectors];
    HWY_UNROLL(4)
    for (int p = 0; p < kVectors / 2; ++p) {
      LoadPair<kType>(d, rows.begin[r] + begin_bytes + p * pair_bytes, value[2 * p],
                      value[2 * p + 1]);
    }
    HWY_UNROLL(4)
    for (int q = 0; q < kQueries; ++q) {
      const V weight = hn::Set(d, *weights.From(q, r).data);
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) acc[q][v] = hn::MulAdd(weight, value[v], acc[q][v]);
    }
  }
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[q][v], d, sums + q * rows.dim + v * n);
  }
}

// How many vectors of columns kQueries queries take at once.
template <int kQueries>
inline constexpr int kColumnVectors = kAccumulators / kQueries < 8 ? kAccumulators / kQueries : 8;

template <DType kType, int kQueries, class D>
HWY_INLINE void AddWeightedRowsTo(D d, const Rows& rows, PerQuery weights,
                                  const std::byte* const* ahead, float* sums) {
  constexpr int kVectors = kColumnVectors<kQueries>;
  const int n = static_cast<int>(hn::Lanes(d));
  int column = 0;
  for (; column + kVectors * n <= rows.dim; column += kVectors * n) {
    AddWeightedColumns<kType, kQueries, kVectors>(d, rows, column, weights, ahead, sums);
  }
  for (; column < rows.dim; column += 2 * n) {
    AddWeightedColumns<kType, kQueries, 2>(d, rows, column, weights, ahead, sums);
  }
}

// sums += weights . rows; sums are [num_queries, rows.dim] in paired order. Not inlined: the loops
// need all registers.
template <DType kType, class D>
HWY_NOINLINE void AddWeightedRows(D d, const Rows& rows, PerQuery weights, int num_queries,
                                  float* sums) {
  constexpr int kAtOnce = kAccumulators / 4;
  // Asked for beside the first queries.
  const std::byte* const* ahead = rows.ahead;
  int q = 0;
  const auto add = [&](auto num_at_once) HWY_ATTR {
    AddWeightedRowsTo<kType, num_at_once>(d, rows, weights.From(q, 0), ahead, sums + q * rows.dim);
    ahead = nullptr;
    q += num_at_once;
  };
  while (q + kAtOnce <= num_queries) add(std::integral_constant<int, kAtOnce>());
  while (kAtOnce > 2 && q + 2 <= num_queries) add(std::integral_constant<int, 2>());
  while (q < num_queries) add(std::integral_constant<int, 1>());
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
