// Append, Attend and Retrieve on a GPU: from pinned sequences to kernels on the caller's stream.
#ifndef WAVEKV_API_GPU_ENGINE_H_
#define WAVEKV_API_GPU_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "api/gpu_context.h"
#include "api/gpu_plan.h"
#include "api/gpu_tables.h"
#include "api/step_view.h"
#include "compute/backend.h"
#include "cuda/move_rows.h"
#include "cuda/run_step.h"
#include "wavekv/engine.h"
#include "wavekv/options.h"
#include "wavekv/stats.h"
#include "wavekv/tensor_view.h"

namespace wavekv {

// Where an append finds rows, and where it puts them.
struct GpuAppend {
  std::vector<AppendRun> runs;
  AppendTensors tensors;
  int64_t rows_max = 0;  // of a run
};

// Threads: safe; calls with the same plan one at a time.
class GpuEngine {
 public:
  // `cpu`: converts tensors that lie in the host's memory.
  GpuEngine(std::shared_ptr<GpuContext> context, const ModelSpec& model, const IndexOptions& index,
            Backend& cpu)
      : context_(std::move(context)), model_(model), index_(index), cpu_(cpu) {}

  GpuContext& context() const { return *context_; }

  // The stream to queue on: the caller's or, for tensors in host memory, one of our own.
  // INVALID_ARGUMENT for tensors in device memory without a stream.
  absl::StatusOr<GpuStream> StreamFor(Memory memory, Stream stream) const;
  // FAILED_PRECONDITION while the stream is captured: only calls of a step can be.
  absl::Status CheckNotCaptured(GpuStream stream) const;

  // INVALID_ARGUMENT, once, when a call of the plan since the last one handed over numbers that
  // were not finite; INTERNAL after an error of the device.
  absl::Status TakeErrors(GpuPlan& plan);

  // Copies rows into chunks that the caller has claimed. `kept` lives until that is done.
  absl::Status Append(const GpuAppend& append, std::shared_ptr<const void> kept, GpuStream stream);

  // As Engine::Attend, for what `views` have pinned. Statistics of calls with tensors in device
  // memory are those of ReadStats.
  absl::StatusOr<AttendStats> Attend(GpuPlan& plan, const std::vector<SequenceView>& views,
                                     const AttendOptions& options, const TensorView& queries,
                                     const MutableTensorView& output, const PerHeadView& lse,
                                     const PerHeadView& error_estimate, GpuStream stream);
  absl::StatusOr<std::vector<RetrievedTokens>> Retrieve(GpuPlan& plan,
                                                        const std::vector<SequenceView>& views,
                                                        const AttendOptions& options,
                                                        const TensorView& queries,
                                                        GpuStream stream);
  // A step that can be captured: BeginStep, then for each layer AppendStep and AttendStep, which
  // queue kernels and nothing else; EndStep or the next BeginStep. `layers`: what each layer has
  // pinned, with the step's rows; `runs`: where these go. FAILED_PRECONDITION when there is more
  // than the plan's first step has reserved. REQUIRES, but of BeginStep: a step has begun.
  absl::Status BeginStep(GpuPlan& plan, const AttendOptions& options,
                         std::vector<std::vector<SequenceView>> layers,
                         std::vector<std::vector<AppendRun>> runs, GpuStream stream);
  absl::Status AppendStep(GpuPlan& plan, int layer, const AppendTensors& tensors, GpuStream stream);
  absl::StatusOr<AttendStats> AttendStep(GpuPlan& plan, int layer, const TensorView& queries,
                                         const MutableTensorView& output, const PerHeadView& lse,
                                         const PerHeadView& error_estimate, GpuStream stream);
  // Orders what was queued on the stream before all that the engine queues from now on.
  absl::Status EndStep(GpuPlan& plan, GpuStream stream);

  // As Engine::MergeStates, for tensors in device memory.
  absl::Status MergeStates(absl::Span<const TensorView> outputs, absl::Span<const PerHeadView> lses,
                           LseBase base, const MutableTensorView& output, const PerHeadView& lse,
                           GpuStream stream);

  // Waits for the plan's last call.
  absl::StatusOr<AttendStats> ReadStats(GpuPlan& plan, int64_t num_rows);

 private:
  // Kernels of some rows, ready to be queued.
  struct LaunchSet {
    StepOptions options;
    StepBounds bounds;
    StepTables tables;
    StepBuffers buffers;
  };
  void NoteBadRows();
  absl::Status PreparePlan(GpuPlan& plan, GpuStream stream);
  absl::Status Reserve(GpuPlan& plan, const AttendOptions& options,
                       const std::vector<SequenceView>& views, GpuStream stream);
  StepTables TablesOf(const GpuPlan::Reserved& reserved, int layer) const;
  // Uploads the tables of these rows and finds room for what their kernels write.
  absl::StatusOr<LaunchSet> Prepare(GpuPlan& plan, const std::vector<SequenceView>& views,
                                    absl::Span<const RowSpan> spans, const StepOptions& options,
                                    int tile_rows, GpuStream stream);
  // Queries and answers of tensors in host memory, in pinned memory and fp32.
  struct Staged {
    std::shared_ptr<GpuPiece> memory;
    StepQueries queries;
    StepOutputs outputs;
  };
  absl::StatusOr<Staged> Stage(const TensorView& queries, int64_t num_rows, bool with_outputs);
  absl::Status Unstage(const Staged& staged, const MutableTensorView& output,
                       const PerHeadView& lse, const PerHeadView& error_estimate);
  absl::Status Await(GpuPlan& plan, GpuStream stream);
  // Rows in the pieces in which they are launched.
  std::vector<std::vector<RowSpan>> Batches(const std::vector<SequenceView>& views,
                                            bool exact) const;
  template <typename T>
  absl::Status Download(const T* from, int64_t count, std::vector<T>& to, GpuPlan& plan,
                        GpuStream stream);
  absl::StatusOr<RetrievedTokens> RetrievedBy(GpuPlan& plan, const SequenceView& view,
                                              const LaunchSet& set, int64_t number,
                                              GpuStream stream);

  const std::shared_ptr<GpuContext> context_;
  const ModelSpec& model_;
  const IndexOptions& index_;
  Backend& cpu_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_GPU_ENGINE_H_
