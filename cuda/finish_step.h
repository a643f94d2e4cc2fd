#ifndef WAVEKV_CUDA_FINISH_STEP_H_
#define WAVEKV_CUDA_FINISH_STEP_H_

#include "absl/status/status.h"
#include "cuda/step.h"

// Merges the states of each unit, hands over, and counts.
WAVEKV_GPU_OPERATION(absl::Status FinishStep(const StepTables& tables, const StepOptions& options,
                                             const StepBounds& bounds, const StepBuffers& buffers,
                                             const StepOutputs& outputs, StepStats* stats,
                                             GpuStream stream))

#endif  // WAVEKV_CUDA_FINISH_STEP_H_
