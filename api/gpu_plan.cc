#include "api/gpu_plan.h"

#include <utility>

namespace wavekv {

GpuPlan::~GpuPlan() {
  if (context == nullptr) return;
  struct Pieces {
    std::shared_ptr<const void> workspace, stats, results, reserved;
  };
  // A step without its end: what was queued behind it goes on.
  if (reserved != nullptr && reserved->pins != nullptr) {
    context->NoteFailure(context->gpu().Record(last_use.get(), reserved->stream));
  }
  auto pieces = std::make_shared<Pieces>(
      Pieces{std::move(workspace), std::move(stats), std::move(results), std::move(reserved)});
  context->Keep(std::move(last_use), std::move(pieces));
}

StepOutputs ToStepOutputs(const MutableTensorView& output, const PerHeadView& lse,
                          const PerHeadView& error_estimate) {
  return {output.data,
          output.dtype,
          output.row_stride,
          output.head_stride,
          lse.data,
          lse.row_stride,
          lse.head_stride,
          error_estimate.data,
          error_estimate.row_stride,
          error_estimate.head_stride};
}

}  // namespace wavekv
