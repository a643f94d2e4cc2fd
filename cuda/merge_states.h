#ifndef WAVEKV_CUDA_MERGE_STATES_H_
#define WAVEKV_CUDA_MERGE_STATES_H_

#include "absl/status/status.h"
#include "compute/merge_states.h"
#include "cuda/gpu_types.h"

// compute/merge_states.h on GPUs. Bounds: num_queries.
WAVEKV_GPU_OPERATION(absl::Status MergeStates(GpuTasks<MergeStatesTask> tasks,
                                              const TaskBounds& bounds, GpuStream stream))

#endif  // WAVEKV_CUDA_MERGE_STATES_H_
