#ifndef WAVEKV_CUDA_WRITE_INDEXES_H_
#define WAVEKV_CUDA_WRITE_INDEXES_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/cluster_segments.h"
#include "cuda/gpu_types.h"

// GpuWriteIndexTask of cluster_segments.h. Bounds: shape, statistics, code_bits; num_items, tokens
// of a task. scratch: so many bytes for each task, 256-byte aligned; what stands in it does not
// matter.
WAVEKV_GPU_OPERATION(int64_t WriteIndexScratchBytes(const TaskBounds& bounds);
                     absl::Status WriteIndexes(GpuTasks<GpuWriteIndexTask> tasks,
                                               const TaskBounds& bounds, std::byte* scratch,
                                               GpuStream stream))

#endif  // WAVEKV_CUDA_WRITE_INDEXES_H_
