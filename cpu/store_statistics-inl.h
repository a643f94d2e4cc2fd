// StoreStatisticsRow() of storage/statistics_row.h in vectors, to the same bits where products are
// not fused with additions. Compiled once per instruction set.
#if defined(WAVEKV_CPU_STORE_STATISTICS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_STORE_STATISTICS_INL_H_
#undef WAVEKV_CPU_STORE_STATISTICS_INL_H_
#else
#define WAVEKV_CPU_STORE_STATISTICS_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/row_sums-inl.h"
#include "hwy/highway.h"
#include "storage/statistics_row.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Rounds numbers divided by a scale to integers.
template <class D>
class Quantizer {
 public:
  Quantizer(float inverse_scale, float integer_max)
      : inverse_(hn::Set(D(), inverse_scale)),
        least_(hn::Set(D(), -integer_max - 1.0f)),
        greatest_(hn::Set(D(), integer_max)) {}

  HWY_INLINE hn::Vec<D> Scaled(const float* from) const {
    return hn::Mul(hn::LoadU(D(), from), inverse_);
  }
  HWY_INLINE hn::Vec<D> Round(hn::Vec<D> scaled) const {
    const auto shift = hn::Set(D(), 12582912.0f);  // 1.5 * 2^23: no bit is left for a fraction
    const auto rounded = hn::Sub(hn::Add(scaled, shift), shift);
    return hn::Min(hn::Max(rounded, least_), greatest_);
  }

 private:
  const hn::Vec<D> inverse_, least_, greatest_;
};

HWY_INLINE double SquaredError(const float* row, int64_t dim, float scale, float integer_max) {
  const Quantizer<Tag<float>> quantizer(1.0f / scale, integer_max);
  const double sum = SumOverRow<float, double>(dim, [&](int64_t j) HWY_ATTR {
    const auto scaled = quantizer.Scaled(row + j);
    const auto error = hn::Sub(quantizer.Round(scaled), scaled);
    return hn::Mul(error, error);
  });
  return sum * scale * scale;
}

HWY_INLINE float BestScale(const float* row, int64_t dim, StatisticsFormat format,
                           float integer_max) {
  const Tag<float> d;
  auto magnitudes = hn::Zero(d);
  for (int64_t j = 0; j < dim; j += kLanes<float>) {
    magnitudes = hn::Max(magnitudes, hn::Abs(hn::LoadU(d, row + j)));
  }
  const float full = hn::GetLane(hn::MaxOfLanes(d, magnitudes)) / integer_max;
  // Too small for an inverse: as good as zero.
  if (!std::isfinite(1.0f / full)) return 0.0f;
  if (format != StatisticsFormat::kInt4) return full;
  constexpr int kScales = 12;
  float best = full;
  double least = SquaredError(row, dim, full, integer_max);
  for (int i = 1; i < kScales; ++i) {
    const float scale = full * (1.0f - 0.05f * static_cast<float>(i));
    const double error = SquaredError(row, dim, scale, integer_max);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// Also writes the numbers that are stored, as LoadStatisticsRow() would.
HWY_INLINE void StoreStatistics(const float* row, int64_t dim, StatisticsFormat format,
                                std::byte* out, float* scale, float* stored) {
  if (format == StatisticsFormat::kFloat32) {
    std::memcpy(out, row, dim * sizeof(float));
    std::memmove(stored, row, dim * sizeof(float));
    *scale = 1.0f;
    return;
  }
  // Halves of a row of 4-bit integers are of whole vectors of four.
  using Four = hn::CappedTag<float, 4>;
  const Four d;
  const hn::RebindToSigned<Four> di;
  const float integer_max = format == StatisticsFormat::kInt4 ? 7.0f : 127.0f;
  *scale = BestScale(row, dim, format, integer_max);
  const auto factor = hn::Set(d, *scale);
  const Quantizer<Four> quantizer(*scale == 0.0f ? 0.0f : 1.0f / *scale, integer_max);
  const auto store_number = [&](int64_t j) HWY_ATTR {
    const auto integer = quantizer.Round(quantizer.Scaled(row + j));
    hn::StoreU(hn::Mul(factor, integer), d, stored + j);
    return hn::ConvertTo(di, integer);
  };
  if (format == StatisticsFormat::kInt8) {
    const hn::Rebind<int8_t, Four> di8;
    for (int64_t j = 0; j < dim; j += 4) {
      hn::StoreU(hn::DemoteTo(di8, store_number(j)), di8, reinterpret_cast<int8_t*>(out) + j);
    }
  } else {
    const hn::Rebind<uint8_t, Four> du8;
    const auto offset = hn::Set(di, 8);
    for (int64_t j = 0; j < dim / 2; j += 4) {
      const auto low = hn::Add(store_number(j), offset);
      const auto high = hn::Add(store_number(j + dim / 2), offset);
      hn::StoreU(hn::DemoteTo(du8, hn::Or(low, hn::ShiftLeft<4>(high))), du8,
                 reinterpret_cast<uint8_t*>(out) + j);
    }
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
