#ifndef WAVEKV_CUDA_ESTIMATE_CLUSTERS_H_
#define WAVEKV_CUDA_ESTIMATE_CLUSTERS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "compute/estimate_clusters.h"
#include "cuda/gpu_types.h"

// compute/estimate_clusters.h on GPUs. Bounds: all; num_items, clusters of an index. scratch:
// EstimateScratchBytes(bounds) for each task, 256-byte aligned; what stands in it does not matter.
WAVEKV_GPU_OPERATION(int64_t EstimateScratchBytes(const TaskBounds& bounds);
                     absl::Status EstimateClusters(GpuTasks<EstimateClustersTask> tasks,
                                                   const TaskBounds& bounds, std::byte* scratch,
                                                   GpuStream stream))

#endif  // WAVEKV_CUDA_ESTIMATE_CLUSTERS_H_
