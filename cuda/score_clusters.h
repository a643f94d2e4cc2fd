#ifndef WAVEKV_CUDA_SCORE_CLUSTERS_H_
#define WAVEKV_CUDA_SCORE_CLUSTERS_H_

#include "absl/status/status.h"
#include "compute/score_clusters.h"
#include "compute/score_supers.h"
#include "cuda/gpu_types.h"

// compute/score_clusters.h and compute/score_supers.h on GPUs. Bounds: num_queries; num_items,
// clusters (super-clusters) of an index.
WAVEKV_GPU_OPERATION(absl::Status ScoreClusters(GpuTasks<ScoreClustersTask> tasks,
                                                const TaskBounds& bounds, GpuStream stream);
                     absl::Status ScoreSupers(GpuTasks<ScoreSupersTask> tasks,
                                              const TaskBounds& bounds, GpuStream stream))

#endif  // WAVEKV_CUDA_SCORE_CLUSTERS_H_
