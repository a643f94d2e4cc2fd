#ifndef WAVEKV_CUDA_MEASURE_STEP_H_
#define WAVEKV_CUDA_MEASURE_STEP_H_

#include "absl/status/status.h"
#include "cuda/step.h"

// With a target_error, before clusters are selected: MeasureClusters says how much each cluster may
// err and puts all into the remainder zone; MeasureUnits looks at the answer that steady zone and
// remainder give.
WAVEKV_GPU_OPERATION(absl::Status MeasureClusters(const StepBounds& bounds,
                                                  const StepBuffers& buffers, GpuStream stream);
                     absl::Status MeasureUnits(const StepBounds& bounds, const StepBuffers& buffers,
                                               GpuStream stream))

#endif  // WAVEKV_CUDA_MEASURE_STEP_H_
