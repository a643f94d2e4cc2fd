#ifndef WAVEKV_CUDA_SELECT_ITEMS_H_
#define WAVEKV_CUDA_SELECT_ITEMS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "compute/select_clusters.h"
#include "compute/select_tokens.h"
#include "cuda/gpu_types.h"

// compute/select_clusters.h and compute/select_tokens.h on GPUs. Bounds: num_queries; num_items,
// clusters or tokens of a task. `ranked` must be false. scratch: SelectScratchBytes(bounds) for
// each task, 256-byte aligned; what stands in it does not matter.
WAVEKV_GPU_OPERATION(int64_t SelectScratchBytes(const TaskBounds& bounds);
                     absl::Status SelectClusters(GpuTasks<SelectClustersTask> tasks,
                                                 const TaskBounds& bounds, std::byte* scratch,
                                                 GpuStream stream);
                     absl::Status SelectTokens(GpuTasks<SelectTokensTask> tasks,
                                               const TaskBounds& bounds, std::byte* scratch,
                                               GpuStream stream))

#endif  // WAVEKV_CUDA_SELECT_ITEMS_H_
