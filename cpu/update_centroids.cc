#include "cpu/update_centroids.h"

#include <algorithm>
#include <cmath>

namespace wavekv::cpu {
namespace {

void Normalize(float* x, int dim) {
  double squared = 0.0;
  for (int d = 0; d < dim; ++d) squared += static_cast<double>(x[d]) * x[d];
  if (squared == 0.0) return;
  const float inverse = static_cast<float>(1.0 / std::sqrt(squared));
  for (int d = 0; d < dim; ++d) x[d] *= inverse;
}

}  // namespace

void UpdateCentroids(const UpdateCentroidsTask& task) {
  for (int64_t c = 0; c < task.num_clusters; ++c) {
    const uint32_t begin = task.offsets[c];
    const uint32_t end = task.offsets[c + 1];
    if (begin == end) continue;
    float* mean = task.means + c * task.dim;
    std::fill_n(mean, task.dim, 0.0f);
    for (uint32_t m = begin; m < end; ++m) {
      const float* point = task.points + static_cast<int64_t>(task.members[m]) * task.dim;
      for (int d = 0; d < task.dim; ++d) mean[d] += point[d];
    }
    const float inverse = 1.0f / static_cast<float>(end - begin);
    for (int d = 0; d < task.dim; ++d) mean[d] *= inverse;
    if (task.normalize) Normalize(mean, task.dim);
  }
}

}  // namespace wavekv::cpu
