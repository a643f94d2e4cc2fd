#include "cpu/score_clusters.h"

#include "storage/float16.h"

namespace wavekv::cpu {

void ScoreClusters(const ScoreClustersTask& task) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_k;
  for (int h = 0; h < task.num_queries; ++h) {
    for (int64_t i = 0; i < index.num_clusters; ++i) {
      float dot = 0.0f;
      for (int d = 0; d < dim; ++d) {
        dot += task.queries[h * dim + d] *
               LoadElement(index.centroids, index.statistics_dtype, i * dim + d);
      }
      task.log_masses[h * task.log_masses_stride + i] = dot + index.log_sizes[i];
    }
  }
}

}  // namespace wavekv::cpu
