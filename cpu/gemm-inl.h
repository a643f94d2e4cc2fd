// The inner block of a matrix product in fp32. Compiled once per instruction set.
#if defined(WAVEKV_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_GEMM_INL_H_
#undef WAVEKV_CPU_GEMM_INL_H_
#else
#define WAVEKV_CPU_GEMM_INL_H_
#endif

#include <cstdint>

#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A block of the product is kBlockRows rows by kBlockVectors vectors: as many accumulators as the
// registers hold, so that an element of A and a vector of B are each loaded once for many
// multiplications.
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockVectors = kAccumulators >= 16 ? 4 : 2;

template <class D>
HWY_INLINE constexpr int BlockColumns(D /* d */) {
  return kBlockVectors * static_cast<int>(hn::MaxLanes(D()));
}

// C = A B, or C += A B: A has kBlockRows rows at a[r], B is [depth, >= kVectors vectors] with rows
// b_stride apart, C alike with rows c_stride apart.
template <int kVectors, bool kAdd, class D>
HWY_INLINE void MultiplyBlock(D d, const float* const* a, const float* b, int b_stride, int depth,
                              float* c, int c_stride) {
  using V = hn::Vec<D>;
  const int n = static_cast<int>(hn::Lanes(d));
  V acc[kBlockRows][kVectors];
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = kAdd ? hn::LoadU(d, c + r * c_stride + v * n) : hn::Zero(d);
    }
  }
  for (int k = 0; k < depth; ++k, b += b_stride) {
    V b_row[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) b_row[v] = hn::LoadU(d, b + v * n);
    HWY_UNROLL(6)
    for (int r = 0; r < kBlockRows; ++r) {
      const V a_element = hn::Set(d, a[r][k]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(a_element, b_row[v], acc[r][v]);
    }
  }
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[r][v], d, c + r * c_stride + v * n);
  }
}

// Four rows of `dim` elements as columns: to[i * to_stride + r] = rows[r][i] for r < 4.
template <DType kType>
HWY_INLINE void TransposeFourRows(const std::byte* const* rows, int dim, float* to, int to_stride) {
  const hn::FixedTag<float, 4> d;
  const hn::RepartitionToWide<decltype(d)> wide;
  const auto pairs = [&](auto x) HWY_ATTR { return hn::BitCast(wide, x); };
  const auto store = [&](auto x, int i)
                         HWY_ATTR { hn::StoreU(hn::BitCast(d, x), d, to + i * to_stride); };
  for (int i = 0; i < dim; i += 4) {
    const int64_t at = i * DTypeBytes(kType);
    const auto r0 = LoadInOrder<kType>(d, rows[0] + at), r1 = LoadInOrder<kType>(d, rows[1] + at);
    const auto r2 = LoadInOrder<kType>(d, rows[2] + at), r3 = LoadInOrder<kType>(d, rows[3] + at);
    const auto low01 = pairs(hn::InterleaveLower(d, r0, r1));
    const auto low23 = pairs(hn::InterleaveLower(d, r2, r3));
    const auto high01 = pairs(hn::InterleaveUpper(d, r0, r1));
    const auto high23 = pairs(hn::InterleaveUpper(d, r2, r3));
    store(hn::InterleaveLower(wide, low01, low23), i);
    store(hn::InterleaveUpper(wide, low01, low23), i + 1);
    store(hn::InterleaveLower(wide, high01, high23), i + 2);
    store(hn::InterleaveUpper(wide, high01, high23), i + 3);
  }
}

// Rows as the columns of a product's B, in panels of BlockColumns() columns: panel p is
// [dim, BlockColumns()] and starts at to + p * BlockColumns() * dim. `rows` is padded to a multiple
// of four.
template <DType kType, class D>
void PackColumns(D d, const std::byte* const* rows, int num_rows, int dim, float* to) {
  constexpr int kColumns = BlockColumns(d);
  for (int r = 0; r < num_rows; r += 4) {
    float* panel = to + static_cast<int64_t>(r / kColumns) * kColumns * dim;
    TransposeFourRows<kType>(rows + r, dim, panel + r % kColumns, kColumns);
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
