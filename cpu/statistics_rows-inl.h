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

// Four or eight bytes to as many numbers, which divide every row of integers.
using FourFloats = hn::FixedTag<float, 4>;

HWY_INLINE void LoadInt8Row(const std::byte* row, int dim, float scale, float* out) {
  const hn::CappedTag<float, 8> d;
  const hn::Rebind<int32_t, decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(row) + i);
    hn::StoreU(hn::Mul(factor, hn::ConvertTo(d, hn::PromoteTo(di, bytes))), d, out + i);
  }
}

HWY_INLINE void LoadInt4Row(const std::byte* row, int dim, float scale, float* out) {
  const FourFloats d;
  const hn::Rebind<int32_t, FourFloats> di;
  const hn::Rebind<uint8_t, FourFloats> d8;
  const auto factor = hn::Set(d, scale);
  const auto offset = hn::Set(di, 8), low_half = hn::Set(di, 15);
  const int half = dim / 2;
  const auto store = [&](auto integers, float* to) HWY_ATTR {
    hn::StoreU(hn::Mul(factor, hn::ConvertTo(d, hn::Sub(integers, offset))), d, to);
  };
  for (int i = 0; i < half; i += 4) {
    const auto bytes = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(row) + i));
    store(hn::And(bytes, low_half), out + i);
    store(hn::ShiftRight<4>(bytes), out + i + half);
  }
}

// What LoadStatisticsRow does.
HWY_INLINE void LoadRow(const std::byte* row, int dim, StatisticsFormat format, float scale,
                        float* out) {
  if (format == StatisticsFormat::kInt4) {
    LoadInt4Row(row, dim, scale, out);
  } else if (format == StatisticsFormat::kInt8) {
    LoadInt8Row(row, dim, scale, out);
  } else {
    __builtin_memcpy(out, row, dim * sizeof(float));
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
