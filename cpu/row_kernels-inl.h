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

#include "hwy/cache_control.h"
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
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumOfBlocks(D /* d */, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Lane i of the result is the sum over all lanes of the i-th vector.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumsOfFour(D d, const V* v) {
  const hn::RepartitionToWide<D> wide;
  const V sums01 = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const V sums23 = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto wide01 = hn::BitCast(wide, sums01);
  const auto wide23 = hn::BitCast(wide, sums23);
  return SumOfBlocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, wide01, wide23)),
                                hn::BitCast(d, hn::InterleaveUpper(wide, wide01, wide23))));
}

// Inner products of finite numbers may overflow; as logits they must have finite differences.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ClampLogit(D d, V logit) {
  const V ceiling = hn::Set(d, 1e37f), floor = hn::Set(d, -1e37f);
  const V below_ceiling = hn::IfThenElse(hn::Lt(logit, ceiling), logit, ceiling);  // NaN too
  return hn::Max(below_ceiling, floor);
}

// ---- logits: every row against every query ----

// out[q * out_stride + r] = queries[q] . rows[r] for four rows. Each row is promoted once, each
// query loaded once, and the horizontal sums of four rows share their shuffles.
template <DType kType, int kQueries, class D>
HWY_INLINE void DotFourRows(D d, const std::byte* const* rows, const float* queries, int dim,
                            float* out, int out_stride) {
  using V = hn::Vec<D>;
  const int n = static_cast<int>(hn::Lanes(d));
  const hn::FixedTag<float, 4> four;
  V sums[kQueries][4];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) sums[q][r] = hn::Zero(d);
  }
  for (int i = 0; i < dim; i += 2 * n) {
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
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    hn::StoreU(ClampLogit(four, SumsOfFour(d, sums[q])), four, out + q * out_stride);
  }
}

// Asks for the first `bytes` of a row.
HWY_INLINE void PrefetchRow(const std::byte* row, int bytes) {
  for (int i = 0; i < bytes; i += 64) hwy::Prefetch(row + i);
}

// out[q * out_stride + r] = queries[q] . rows[r]; queries are [num_queries, dim] in paired order.
// `rows` and `out` are padded to a multiple of four rows. Meanwhile the rows of `prefetch`, as many
// and of `prefetch_bytes` each, come into the cache.
template <DType kType, class D>
void DotRows(D d, const std::byte* const* rows, int num_rows, const float* queries, int num_queries,
             int dim, float* out, int out_stride, const std::byte* const* prefetch,
             int prefetch_bytes) {
  constexpr int kAtOnce = kAccumulators / 4;
  for (int r = 0; r < num_rows; r += 4) {
    for (int i = 0; i < 4; ++i) PrefetchRow(prefetch[r + i], prefetch_bytes);
    int q = 0;
    for (; q + kAtOnce <= num_queries; q += kAtOnce) {
      DotFourRows<kType, kAtOnce>(d, rows + r, queries + q * dim, dim, out + q * out_stride + r,
                                  out_stride);
    }
    if (kAtOnce > 2 && q + 2 <= num_queries) {
      DotFourRows<kType, 2>(d, rows + r, queries + q * dim, dim, out + q * out_stride + r,
                            out_stride);
      q += 2;
    }
    if (q < num_queries) {
      DotFourRows<kType, 1>(d, rows + r, queries + q * dim, dim, out + q * out_stride + r,
                            out_stride);
    }
  }
}

// ---- weighted sums of rows ----

// sums[q] += sum_r weights[q * weight_stride + r] * rows[r] over 2 * kPairs vectors of columns.
template <DType kType, int kQueries, int kPairs, class D>
HWY_INLINE void AddWeightedColumns(D d, const std::byte* const* rows, int num_rows, int column,
                                   const float* weights, int weight_stride, float* sums, int dim) {
  using V = hn::Vec<D>;
  const int n = static_cast<int>(hn::Lanes(d));
  V acc[kQueries][2 * kPairs];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(16)
    for (int v = 0; v < 2 * kPairs; ++v) acc[q][v] = hn::LoadU(d, sums + q * dim + column + v * n);
  }
  for (int r = 0; r < num_rows; ++r) {
    const std::byte* row = rows[r] + column * DTypeBytes(kType);
    V value[2 * kPairs];
    HWY_UNROLL(8)
    for (int p = 0; p < kPairs; ++p) {
      LoadPair<kType>(d, row + 2 * p * n * DTypeBytes(kType), value[2 * p], value[2 * p + 1]);
    }
    HWY_UNROLL(4)
    for (int q = 0; q < kQueries; ++q) {
      const V weight = hn::Set(d, weights[q * weight_stride + r]);
      HWY_UNROLL(16)
      for (int v = 0; v < 2 * kPairs; ++v) acc[q][v] = hn::MulAdd(weight, value[v], acc[q][v]);
    }
  }
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(16)
    for (int v = 0; v < 2 * kPairs; ++v) hn::StoreU(acc[q][v], d, sums + q * dim + column + v * n);
  }
}

template <DType kType, int kQueries, class D>
HWY_INLINE void AddWeightedRowsOf(D d, const std::byte* const* rows, int num_rows,
                                  const float* weights, int weight_stride, float* sums, int dim) {
  constexpr int kPairs = kAccumulators / 2 / kQueries < 4 ? kAccumulators / 2 / kQueries : 4;
  const int n = static_cast<int>(hn::Lanes(d));
  int column = 0;
  for (; column + 2 * kPairs * n <= dim; column += 2 * kPairs * n) {
    AddWeightedColumns<kType, kQueries, kPairs>(d, rows, num_rows, column, weights, weight_stride,
                                                sums, dim);
  }
  for (; column < dim; column += 2 * n) {
    AddWeightedColumns<kType, kQueries, 1>(d, rows, num_rows, column, weights, weight_stride, sums,
                                           dim);
  }
}

// sums[q] += sum_r weights[q * weight_stride + r] * rows[r]; sums are [num_queries, dim] in paired
// order.
template <DType kType, class D>
void AddWeightedRows(D d, const std::byte* const* rows, int num_rows, const float* weights,
                     int weight_stride, int num_queries, float* sums, int dim) {
  constexpr int kAtOnce = kAccumulators / 4;
  int q = 0;
  for (; q + kAtOnce <= num_queries; q += kAtOnce) {
    AddWeightedRowsOf<kType, kAtOnce>(d, rows, num_rows, weights + q * weight_stride, weight_stride,
                                      sums + q * dim, dim);
  }
  if (kAtOnce > 2 && q + 2 <= num_queries) {
    AddWeightedRowsOf<kType, 2>(d, rows, num_rows, weights + q * weight_stride, weight_stride,
                                sums + q * dim, dim);
    q += 2;
  }
  if (q < num_queries) {
    AddWeightedRowsOf<kType, 1>(d, rows, num_rows, weights + q * weight_stride, weight_stride,
                                sums + q * dim, dim);
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
