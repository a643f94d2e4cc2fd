// Rows of statistics as storage/statistics_row.h stores them, four at a time by one warp: kernel
// code.
#ifndef WAVEKV_CUDA_STORE_MEANS_H_
#define WAVEKV_CUDA_STORE_MEANS_H_

#include <cstddef>
#include <cstdint>

#include "cuda/kernel.h"
#include "cuda/rotate_tile.h"
#include "storage/cluster_index.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr float kFloatMax = std::numeric_limits<float>::max();

WAVEKV_DEVICE float ToFloat(double value) {
  return static_cast<float>(
      Min(Max(value, -static_cast<double>(kFloatMax)), static_cast<double>(kFloatMax)));
}

// One side of an index, keys or values, is computed in numbers that are `scale` times those of the
// rows: a power of two that brings the largest near 1, so that squares stay within fp32's range.
struct SideScale {
  double unit = 1.0;  // 1 / scale
  float scale = 1.0f;
};

// To nearest, ties to even, for numbers below 2^22.
WAVEKV_DEVICE float QuantizeTo(float value_in_steps, float integer_max) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: no bit is left for a fraction
  const float rounded = (value_in_steps + kShift) - kShift;
  return Min(Max(rounded, -integer_max - 1.0f), integer_max);
}

// The scale with the least squared error among a few, as the CPU's: 0 for a row that is as good as
// zero.
template <int kColumns>
WAVEKV_DEVICE float BestScale(const RotationTile<kColumns>& tile, StatisticsFormat format,
                              const SideScale& side) {
  const int columns = tile.shape.columns;
  float largest = 0.0f;
  for (int i = 0; i < columns; ++i) largest = Max(largest, Abs(tile.At(i, tile.lane)));
  largest = MaxOfRow(largest);
  const float integer_max = format == StatisticsFormat::kInt4 ? 7.0f : 127.0f;
  const float full = largest / integer_max;
  const float stored = ToFloat(full * side.unit);
  const bool is_zero = !IsFinite(1.0f / full) || !IsFinite(1.0f / stored);
  if (format != StatisticsFormat::kInt4) return is_zero ? 0.0f : full;

  // All rows of the warp take part, as lanes meet in the sums.
  constexpr int kScales = 12, kAtOnce = 4;
  float best = full;
  double least = 0.0;
  for (int first = 0; first < kScales; first += kAtOnce) {
    float scale[kAtOnce], inverse[kAtOnce], errors[kAtOnce] = {};
    WAVEKV_UNROLL
    for (int m = 0; m < kAtOnce; ++m) {
      scale[m] = full * (1.0f - 0.05f * static_cast<float>(first + m));
      inverse[m] = is_zero ? 0.0f : 1.0f / scale[m];
    }
    for (int i = 0; i < columns; ++i) {
      const float x = tile.At(i, tile.lane);
      WAVEKV_UNROLL
      for (int m = 0; m < kAtOnce; ++m) {
        const float in_steps = x * inverse[m];
        const float error = QuantizeTo(in_steps, integer_max) - in_steps;
        errors[m] = MulAdd(error, error, errors[m]);
      }
    }
    WAVEKV_UNROLL
    for (int m = 0; m < kAtOnce; ++m) {
      const double error = SumOfRow(static_cast<double>(errors[m])) * scale[m] * scale[m];
      if (first + m == 0 || error < least) {
        least = error;
        best = scale[m];
      }
    }
  }
  return is_zero ? 0.0f : best;
}

// What storing a row did; the same in its eight lanes, in the side's scale.
struct StoredMean {
  float squared = 0.0f;         // |row|^2
  float stored_squared = 0.0f;  // |row as stored|^2
  float error = 0.0f;           // |row - row as stored|^2
};

// Stores the tile's rows and makes of them what is stored. The lanes of a row give where it goes:
// to row `index` of `means`, nowhere if that is negative. Synchronises the warp before and after.
template <int kColumns>
WAVEKV_DEVICE StoredMean StoreMeans(const RotationTile<kColumns>& tile, StatisticsFormat format,
                                    const SideScale& side, const MutableStatisticsRows& means,
                                    int64_t index) {
  SyncWarp();
  const int columns = tile.shape.columns;
  StoredMean sums;
  const auto note = [&](int i, int k, float is, float becomes) {
    tile.At(i, k) = becomes;
    sums.squared = MulAdd(is, is, sums.squared);
    sums.stored_squared = MulAdd(becomes, becomes, sums.stored_squared);
    sums.error = MulAdd(is - becomes, is - becomes, sums.error);
  };
  if (format == StatisticsFormat::kFloat32) {
    float* const out =
        reinterpret_cast<float*>(means.rows + Max(index, int64_t{0}) * means.row_bytes);
    for (int i = tile.lane; i < columns; i += kRowLanes) {
      WAVEKV_UNROLL
      for (int k = 0; k < kRowLanes; ++k) {
        const float is = tile.At(i, k), stored = ToFloat(is * side.unit);
        if (index >= 0) out[i * kRowLanes + k] = stored;
        note(i, k, is, Abs(stored) < kFloatMax ? is : stored * side.scale);
      }
    }
  } else {
    const float scale = BestScale(tile, format, side);
    const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    if (index >= 0 && tile.lane == 0) means.scales[index] = ToFloat(scale * side.unit);
    SyncWarp();
    std::byte* const out = means.rows + Max(index, int64_t{0}) * means.row_bytes;
    if (format == StatisticsFormat::kInt8) {
      for (int i = tile.lane; i < columns; i += kRowLanes) {
        uint64_t bytes = 0;
        WAVEKV_UNROLL
        for (int k = 0; k < kRowLanes; ++k) {
          const float is = tile.At(i, k), integer = QuantizeTo(is * inverse, 127.0f);
          bytes |= static_cast<uint64_t>(static_cast<int>(integer) & 0xff) << (8 * k);
          note(i, k, is, scale * integer);
        }
        if (index >= 0) *reinterpret_cast<uint64_t*>(out + i * kRowLanes) = bytes;
      }
    } else {
      // Four bytes: elements 4 i to 4 i + 3, and as many half a row further on.
      for (int i = tile.lane; i < columns; i += kRowLanes) {
        uint32_t bytes = 0;
        WAVEKV_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int element = 4 * (i + half * columns);
          WAVEKV_UNROLL
          for (int m = 0; m < 4; ++m) {
            const int vector = element / kRowLanes, k = element % kRowLanes + m;
            const float is = tile.At(vector, k), integer = QuantizeTo(is * inverse, 7.0f);
            bytes |= static_cast<uint32_t>(static_cast<int>(integer) + 8) << (8 * m + 4 * half);
            note(vector, k, is, scale * integer);
          }
        }
        if (index >= 0) *reinterpret_cast<uint32_t*>(out + 4 * i) = bytes;
      }
    }
  }
  SyncWarp();
  sums.squared = SumOfRow(sums.squared);
  sums.stored_squared = SumOfRow(sums.stored_squared);
  sums.error = SumOfRow(sums.error);
  return sums;
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_STORE_MEANS_H_
