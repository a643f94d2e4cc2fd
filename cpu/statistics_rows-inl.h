// Stored means as fp32 rows. Compiled once per instruction set.
#if defined(WAVEKV_CPU_STATISTICS_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_STATISTICS_ROWS_INL_H_
#undef WAVEKV_CPU_STATISTICS_ROWS_INL_H_
#else
#define WAVEKV_CPU_STATISTICS_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "storage/statistics_row.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// D has as many lanes as divide the row.
template <class D>
HWY_INLINE void LoadInt8Row(D d, const std::byte* row, int dim, float scale, float* out) {
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<int8_t, D> d8;
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(row) + i);
    hn::StoreU(hn::Mul(factor, hn::ConvertTo(d, hn::PromoteTo(di, bytes))), d, out + i);
  }
}

// D has as many lanes as divide half of the row.
template <class D>
HWY_INLINE void LoadInt4Row(D d, const std::byte* row, int dim, float scale, float* out) {
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<uint8_t, D> d8;
  const auto factor = hn::Set(d, scale), offset = hn::Set(d, -8.0f * scale);
  const auto low_half = hn::Set(di, 15);
  const int half = dim / 2;
  for (int i = 0; i < half; i += static_cast<int>(hn::Lanes(d))) {
    const auto bytes = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(row) + i));
    const auto low = hn::ConvertTo(d, hn::And(bytes, low_half));
    const auto high = hn::ConvertTo(d, hn::ShiftRight<4>(bytes));
    hn::StoreU(hn::MulAdd(low, factor, offset), d, out + i);
    hn::StoreU(hn::MulAdd(high, factor, offset), d, out + i + half);
  }
}

// What LoadStatisticsRow does.
HWY_INLINE void LoadRow(const std::byte* row, int dim, StatisticsFormat format, float scale,
                        float* out) {
  const hn::CappedTag<float, 16> sixteen;
  const hn::CappedTag<float, 4> four;
  if (format == StatisticsFormat::kInt4) {
    if (dim % 32 == 0) {
      LoadInt4Row(sixteen, row, dim, scale, out);
    } else {
      LoadInt4Row(four, row, dim, scale, out);
    }
  } else if (format == StatisticsFormat::kInt8) {
    if (dim % 16 == 0) {
      LoadInt8Row(sixteen, row, dim, scale, out);
    } else {
      LoadInt8Row(four, row, dim, scale, out);
    }
  } else {
    __builtin_memcpy(out, row, dim * sizeof(float));
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
