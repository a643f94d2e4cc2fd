// Rows of statistics (centroids, value means) as a cluster index stores them.
//
// A row is its numbers as fp32, or as small integers times a scale of its own:
//   kInt8  dim bytes, two's complement;
//   kInt4  dim / 2 bytes: byte j holds element j in its low and element j + dim / 2 in its high
//          half, each plus 8.
#ifndef WAVEKV_STORAGE_STATISTICS_ROW_H_
#define WAVEKV_STORAGE_STATISTICS_ROW_H_

#include <cstddef>
#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// Bytes of a row without its scale; 0 for a format that is not an enumerator.
constexpr int64_t StatisticsRowBytes(StatisticsFormat format, int64_t dim) {
  switch (format) {
    case StatisticsFormat::kFloat32:
      return dim * 4;
    case StatisticsFormat::kInt8:
      return dim;
    case StatisticsFormat::kInt4:
      return dim / 2;
  }
  return 0;
}

// What super-clusters' means are stored as: few, and what their clusters' means are relative to.
constexpr StatisticsFormat SuperFormat(StatisticsFormat format) {
  return format == StatisticsFormat::kFloat32 ? format : StatisticsFormat::kInt8;
}

// Writes `row` [dim] to `out` and its scale to *scale (1 for fp32). Integers are rounded to nearest
// at the scale, among a few, that leaves the least squared error. REQUIRES: finite numbers; dim is
// a multiple of kHeadDimStep.
void StoreStatisticsRow(const float* row, int64_t dim, StatisticsFormat format, std::byte* out,
                        float* scale);

// The numbers that are stored.
void LoadStatisticsRow(const std::byte* row, int64_t dim, StatisticsFormat format, float scale,
                       float* out);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_STATISTICS_ROW_H_
