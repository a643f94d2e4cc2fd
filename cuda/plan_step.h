#ifndef WAVEKV_CUDA_PLAN_STEP_H_
#define WAVEKV_CUDA_PLAN_STEP_H_

#include "absl/status/status.h"
#include "cuda/step.h"

// PlanStep looks at the tables and writes units and all tasks that follow from them; LoadQueries
// fills the units' queries.
WAVEKV_GPU_OPERATION(absl::Status PlanStep(const StepTables& tables, const StepOptions& options,
                                           const StepBounds& bounds, const StepBuffers& buffers,
                                           StepFlags* flags, GpuStream stream);
                     absl::Status LoadQueries(const StepTables& tables, const StepOptions& options,
                                              const StepBounds& bounds, const StepQueries& queries,
                                              const StepBuffers& buffers, StepFlags* flags,
                                              GpuStream stream))

#endif  // WAVEKV_CUDA_PLAN_STEP_H_
