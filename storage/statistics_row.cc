#include "storage/statistics_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace wavekv {
namespace {

constexpr int kInt4Offset = 8;

// The greatest integer; the least is one further from zero.
constexpr float IntegerMax(StatisticsFormat format) {
  return format == StatisticsFormat::kInt4 ? 7.0f : 127.0f;
}

// To nearest, ties to even, for numbers below 2^22: as std::nearbyint without a call of it.
float RoundToNearest(float value) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: no bit is left for a fraction
  return (value + kShift) - kShift;
}

float Quantize(float value, float inverse_scale, float integer_max) {
  const float rounded = RoundToNearest(value * inverse_scale);
  return std::min(std::max(rounded, -integer_max - 1.0f), integer_max);
}

double SquaredError(const float* row, int64_t dim, float scale, float integer_max) {
  const float inverse = 1.0f / scale;
  // Several partial sums, because one chain of additions would wait for each to finish.
  float partial[kHeadDimStep] = {};
  for (int64_t i = 0; i < dim; i += kHeadDimStep) {
    for (int lane = 0; lane < kHeadDimStep; ++lane) {
      const float error = Quantize(row[i + lane], inverse, integer_max) - row[i + lane] * inverse;
      partial[lane] += error * error;
    }
  }
  double sum = 0.0;
  for (const float part : partial) sum += part;
  return sum * scale * scale;
}

// Cutting off the largest numbers pays where there are few integers: those of a row of 4-bit
// integers are finer then.
float BestScale(const float* row, int64_t dim, StatisticsFormat format) {
  float largest = 0.0f;
  for (int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::abs(row[i]));
  const float integer_max = IntegerMax(format);
  const float full = largest / integer_max;
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

}  // namespace

void StoreStatisticsRow(const float* row, int64_t dim, StatisticsFormat format, std::byte* out,
                        float* scale) {
  if (format == StatisticsFormat::kFloat32) {
    std::memcpy(out, row, dim * sizeof(float));
    *scale = 1.0f;
    return;
  }
  *scale = BestScale(row, dim, format);
  const float inverse = *scale == 0.0f ? 0.0f : 1.0f / *scale;
  const float integer_max = IntegerMax(format);
  const auto integer = [&](int64_t i) {
    return static_cast<int>(Quantize(row[i], inverse, integer_max));
  };
  if (format == StatisticsFormat::kInt8) {
    for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<std::byte>(integer(i));
  } else {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const int low = integer(i) + kInt4Offset, high = integer(i + dim / 2) + kInt4Offset;
      out[i] = static_cast<std::byte>(low | high << 4);
    }
  }
}

void LoadStatisticsRow(const std::byte* row, int64_t dim, StatisticsFormat format, float scale,
                       float* out) {
  switch (format) {
    case StatisticsFormat::kFloat32:
      std::memcpy(out, row, dim * sizeof(float));
      break;
    case StatisticsFormat::kInt8:
      for (int64_t i = 0; i < dim; ++i) {
        out[i] = scale * static_cast<float>(static_cast<int8_t>(row[i]));
      }
      break;
    case StatisticsFormat::kInt4:
      for (int64_t i = 0; i < dim / 2; ++i) {
        const auto both = static_cast<int>(row[i]);
        out[i] = scale * static_cast<float>((both & 15) - kInt4Offset);
        out[i + dim / 2] = scale * static_cast<float>((both >> 4) - kInt4Offset);
      }
      break;
  }
}

}  // namespace wavekv
