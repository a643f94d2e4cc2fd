#ifndef WAVEKV_CUDA_SCORE_TOKENS_H_
#define WAVEKV_CUDA_SCORE_TOKENS_H_

#include "absl/status/status.h"
#include "compute/score_tokens.h"
#include "cuda/gpu_types.h"

// compute/score_tokens.h on GPUs. Bounds: num_queries; num_items, tokens of a task.
WAVEKV_GPU_OPERATION(absl::Status ScoreTokens(GpuTasks<ScoreTokensTask> tasks,
                                              const TaskBounds& bounds, GpuStream stream))

#endif  // WAVEKV_CUDA_SCORE_TOKENS_H_
