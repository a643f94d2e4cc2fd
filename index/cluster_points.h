// What a clustering knows of its points, and how their rows become integers.
#ifndef WAVEKV_INDEX_CLUSTER_POINTS_H_
#define WAVEKV_INDEX_CLUSTER_POINTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace wavekv {

// Rows [num_points, dim] with their mean taken off, finite and of elements of about 1 at most.
struct ClusterPoints {
  const float* rows = nullptr;
  const int16_t* rounded = nullptr;  // each in a unit of its own: 4096 is its largest element
  const float* squared_lengths = nullptr;
  int64_t num_points = 0;
  int dim = 0;

  const float* row(int64_t point) const { return rows + point * dim; }
};

// to = row * scale, to nearest. REQUIRES: magnitudes below 2^15.
inline void RoundRow(const float* row, int dim, float scale, int16_t* to) {
  constexpr int kShift = 1 << 15;  // what is converted is positive, where truncation rounds down
  for (int j = 0; j < dim; ++j) {
    const auto shifted = static_cast<int32_t>(row[j] * scale + (kShift + 0.5f));
    to[j] = static_cast<int16_t>(shifted - kShift);
  }
}

// Rows of unit length, or zero.
inline constexpr float kCentroidUnit = 16384.0f;
inline void RoundCentroids(absl::Span<const float> rows, int dim, std::vector<int16_t>& to) {
  to.resize(rows.size());
  for (size_t i = 0; i < rows.size(); i += dim) {
    RoundRow(rows.data() + i, dim, kCentroidUnit, to.data() + i);
  }
}

}  // namespace wavekv

#endif  // WAVEKV_INDEX_CLUSTER_POINTS_H_
