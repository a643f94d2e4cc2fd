// The kernels of a step in their order, and the memory between them.
#ifndef WAVEKV_CUDA_RUN_STEP_H_
#define WAVEKV_CUDA_RUN_STEP_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/gpu_operations.h"
#include "cuda/step.h"

namespace wavekv {

// Bytes of device memory, 256-byte aligned, for the buffers of such a step.
int64_t StepWorkspaceBytes(const GpuOperations& operations, const StepOptions& options,
                           const StepBounds& bounds);
StepBuffers LayOutStep(const GpuOperations& operations, const StepOptions& options,
                       const StepBounds& bounds, std::byte* workspace);

// Splits of a unit's exact attention that keep a GPU busy.
int ChooseSplits(int num_multiprocessors, int64_t num_units, int64_t tokens_max);

// Queues kernels only, so they can be captured. Ranks: decides what is read. Answers: the rest.
absl::Status QueueRanking(const GpuOperations& operations, const StepTables& tables,
                          const StepOptions& options, const StepBounds& bounds,
                          const StepQueries& queries, const StepBuffers& buffers, StepFlags* flags,
                          GpuStream stream);
absl::Status QueueAnswer(const GpuOperations& operations, const StepTables& tables,
                         const StepOptions& options, const StepBounds& bounds,
                         const StepBuffers& buffers, const StepOutputs& outputs, StepStats* stats,
                         GpuStream stream);

}  // namespace wavekv

#endif  // WAVEKV_CUDA_RUN_STEP_H_
