// What a plan keeps on a GPU, and where its kernels write what the host reads.
#ifndef WAVEKV_API_GPU_PLAN_H_
#define WAVEKV_API_GPU_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "api/gpu_context.h"
#include "api/gpu_tables.h"
#include "cuda/gpu.h"
#include "cuda/step.h"
#include "wavekv/tensor_view.h"

namespace wavekv {

// What a plan keeps on a GPU from one call to the next. Guarded by the plan's use.
struct GpuPlan {
  GpuPlan() = default;
  ~GpuPlan();
  GpuPlan(const GpuPlan&) = delete;
  GpuPlan& operator=(const GpuPlan&) = delete;

  std::shared_ptr<GpuContext> context;  // nullptr: never used
  GpuEvent last_use;                    // recorded behind it
  std::shared_ptr<GpuPiece> workspace;
  std::shared_ptr<GpuPiece> stats;    // StepStats of the last call
  std::shared_ptr<GpuPiece> results;  // their copy in host memory, and what kernels found wrong

  // Of steps that can be captured: everything at addresses that stay.
  struct Reserved {
    StepOptions options;
    StepBounds bounds;
    TableSizes capacity;      // of a layer's tables
    int64_t runs = 0;         // of a layer's append
    int64_t rows_max = 0;     // of a run
    int64_t layer_bytes = 0;  // of a layer: runs, then tables
    std::shared_ptr<GpuPiece> memory;
    StepBuffers buffers;
    std::vector<std::byte> uploaded;  // what the layers' runs and tables hold, or will
    // Of the step that has begun.
    std::shared_ptr<const void> pins;  // nullptr: none has
    GpuStream stream = nullptr;
  };
  std::shared_ptr<Reserved> reserved;
};

// What kernels write into host memory, for a plan.
struct PlanResults {
  StepStats stats;
  StepFlags flags;
};
inline PlanResults& ResultsOf(const GpuPlan& plan) {
  return *reinterpret_cast<PlanResults*>(plan.results->data());
}
inline StepFlags* FlagsOf(const GpuPlan& plan) { return &ResultsOf(plan).flags; }

StepOutputs ToStepOutputs(const MutableTensorView& output, const PerHeadView& lse,
                          const PerHeadView& error_estimate);

}  // namespace wavekv

#endif  // WAVEKV_API_GPU_PLAN_H_
