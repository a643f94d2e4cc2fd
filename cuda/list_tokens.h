#ifndef WAVEKV_CUDA_LIST_TOKENS_H_
#define WAVEKV_CUDA_LIST_TOKENS_H_

#include "absl/status/status.h"
#include "cuda/step.h"

// The tasks that follow from selections: ListSketch after clusters have been selected, for the
// tokens of the sketch zone; ListChosen after tokens have been, for what is read and estimated.
WAVEKV_GPU_OPERATION(absl::Status ListSketch(const StepOptions& options, const StepBounds& bounds,
                                             const StepBuffers& buffers, StepFlags* flags,
                                             GpuStream stream);
                     absl::Status ListChosen(const StepOptions& options, const StepBounds& bounds,
                                             const StepBuffers& buffers, StepFlags* flags,
                                             GpuStream stream))

#endif  // WAVEKV_CUDA_LIST_TOKENS_H_
