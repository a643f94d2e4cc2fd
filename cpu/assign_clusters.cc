#include "cpu/assign_clusters.h"

namespace wavekv::cpu {

void AssignClusters(const AssignClustersTask& task) {
  for (int64_t i = 0; i < task.num_points; ++i) {
    const float* point = task.points + i * task.dim;
    int32_t best = -1;
    float best_score = 0.0f;
    for (int64_t c = 0; c < task.num_centroids; ++c) {
      float score = 0.0f;
      for (int d = 0; d < task.dim; ++d) score += point[d] * task.centroids[c * task.dim + d];
      if (best < 0 || score > best_score) {
        best = static_cast<int32_t>(c);
        best_score = score;
      }
    }
    task.assignment[i] = best;
    if (task.scores != nullptr) task.scores[i] = best_score;
  }
}

}  // namespace wavekv::cpu
