#include "cpu/update_centroids.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/update_centroids.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

constexpr int kTile = 64;

// sum += the points named by members[begin, end).
void AddPoints(const UpdateCentroidsTask& task, uint32_t begin, uint32_t end, float* sum) {
  float ones[kTile];
  std::fill_n(ones, kTile, 1.0f);
  const std::byte* points[kTile];
  for (; begin < end; begin += kTile) {
    const int count = static_cast<int>(std::min<uint32_t>(kTile, end - begin));
    for (int i = 0; i < count; ++i) {
      const float* point = task.points + int64_t{task.members[begin + i]} * task.dim;
      points[i] = reinterpret_cast<const std::byte*>(point);
      PrefetchBytes(points[i], task.dim * static_cast<int64_t>(sizeof(float)));
    }
    WithVectorsFor(task.dim, [&](auto d) HWY_ATTR {
      AddWeightedRows<DType::kFloat32>(d, {points, count, task.dim}, {ones, kTile}, 1, sum);
    });
  }
}

// In eight partial sums, none of which waits for another.
double SquaredLength(const float* x, int dim) {
  double partial[kHeadDimStep] = {};
  for (int i = 0; i < dim; i += kHeadDimStep) {
    for (int lane = 0; lane < kHeadDimStep; ++lane) {
      const double element = x[i + lane];
      partial[lane] += element * element;
    }
  }
  double squared = 0.0;
  for (const double part : partial) squared += part;
  return squared;
}

void UpdateCentroidsOf(const UpdateCentroidsTask& task) {
  for (int64_t c = 0; c < task.num_clusters; ++c) {
    const uint32_t begin = task.offsets[c], end = task.offsets[c + 1];
    if (begin == end) continue;
    float* mean = task.means + c * task.dim;
    std::fill_n(mean, task.dim, 0.0f);
    AddPoints(task, begin, end, mean);
    ScaleRow(mean, task.dim, 1.0f / static_cast<float>(end - begin));
    if (!task.normalize && task.lengths == nullptr) continue;
    const double length = std::sqrt(SquaredLength(mean, task.dim));
    if (task.lengths != nullptr) task.lengths[c] = static_cast<float>(length);
    if (task.normalize && length > 0.0) {
      ScaleRow(mean, task.dim, static_cast<float>(1.0 / length));
    }
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(UpdateCentroidsOf);

void UpdateCentroids(const UpdateCentroidsTask& task) {
  HWY_DYNAMIC_DISPATCH(UpdateCentroidsOf)(task);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
