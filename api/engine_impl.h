// What an engine owns. Internal to api/.
#ifndef WAVEKV_API_ENGINE_IMPL_H_
#define WAVEKV_API_ENGINE_IMPL_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "api/append_source.h"
#include "api/attend_step.h"
#include "api/build_pace.h"
#include "api/build_queue.h"
#include "api/gpu_engine.h"
#include "api/own_thread.h"
#include "api/step_observer.h"
#include "buffer/row_tiers.h"
#include "compute/backend.h"
#include "cpu/cpu_backend.h"
#include "storage/tenant_store.h"
#include "wavekv/engine.h"

namespace wavekv {

struct PlanState {
  std::shared_ptr<StoreContext> context;  // of the engine that made it
  AttendOptions options;
  std::vector<std::shared_ptr<StoredSequence>> sequences;
  std::vector<int32_t> cu_seqlens;
  std::atomic<bool> busy{false};
  // Of a step through the layers, for the cache.
  uint32_t step = 0;
  int last_layer = 0;
  AttendWorkspace workspace;
  GpuPlan gpu;
  bool step_has_begun = false;
  AttendStats last_stats;
};

// Holds a plan for one call.
class PlanUse {
 public:
  explicit PlanUse(PlanState& plan) : plan_(plan), owned_(!plan.busy.exchange(true)) {}
  ~PlanUse() {
    if (!owned_) return;
    for (SequenceView& view : plan_.workspace.batch.views) Unpin(view);
    plan_.busy.store(false);
  }
  PlanUse(const PlanUse&) = delete;
  PlanUse& operator=(const PlanUse&) = delete;

  absl::Status status() const {
    if (owned_) return absl::OkStatus();
    return absl::AbortedError("plan: another call is using it; a plan serves one call at a time");
  }

 private:
  PlanState& plan_;
  const bool owned_;
};

absl::Status PlanNotFound();
absl::Status CheckStepHasBegun(const PlanState& plan);
absl::Status CheckOnDevice(const char* name, Memory memory);

TenantStats StatsOf(const TenantStore& tenant);

// What CUDA engines open, where it is set: for tests on machines without a GPU.
std::shared_ptr<Gpu>& GpuForTests();

struct Engine::Impl {
  EngineOptions options;
  std::shared_ptr<StoreContext> context;
  std::shared_ptr<Executor> executor;
  std::unique_ptr<Backend> backend;
  OwnThread own_thread;
  std::unique_ptr<Backend> own_thread_backend = MakeCpuBackend(&own_thread);
  std::shared_ptr<RowTiers> row_tiers;     // nullptr: all is in the arena
  std::unique_ptr<GpuEngine> gpu;          // nullptr: on the processor
  std::unique_ptr<StepObserver> observer;  // outlives builds
  StepCount steps;                         // as well
  std::unique_ptr<BuildQueue> builds;

  mutable std::mutex mutex;
  std::map<std::string, std::shared_ptr<TenantStore>> tenants;  // guarded by mutex

  std::atomic<uint32_t> next_step{1};

  // Running totals of EngineStats.
  std::atomic<int64_t> appended_tokens{0};
  std::atomic<int64_t> attend_calls{0};
  std::atomic<int64_t> attend_rows{0};
  std::atomic<int64_t> tokens_visible{0};
  std::atomic<int64_t> tokens_exact{0};
  std::atomic<int64_t> tokens_estimated{0};
  std::atomic<int64_t> tokens_degraded{0};
  std::atomic<int64_t> bytes_dense{0};
  std::atomic<int64_t> bytes_read{0};

  StepMachine machine() { return {*executor, *backend, own_thread, *own_thread_backend}; }
  std::vector<std::shared_ptr<TenantStore>> AllTenants() const;

  // What an append keeps of each of its sequences lies in the call's frame for so many: a decode
  // row takes no longer to be stored than a few allocations do.
  template <typename T>
  using PerSequence = absl::InlinedVector<T, 4>;
  static PerSequence<std::shared_ptr<StoredSequence>> SequencesOf(const RaggedBatch& batch);

  // NOT_FOUND unless the sequence lives in this engine.
  absl::Status CheckSequence(const std::shared_ptr<StoredSequence>& sequence) const;
  absl::Status CheckBatch(absl::Span<const std::shared_ptr<StoredSequence>> sequences,
                          absl::Span<const int32_t> cu_seqlens) const;
  absl::Status CheckLayer(int layer) const;
  absl::Status CheckStream(Stream stream) const;

  // REQUIRES: layer, batch and the source's views have been checked.
  absl::Status Append(absl::Span<const std::shared_ptr<StoredSequence>> sequences,
                      absl::Span<const int32_t> cu_seqlens, int layer, const AppendSource& source,
                      Stream stream);

  // Where rows go: that of kv head 0, and the elements from there to the next row and to the next
  // head.
  struct RowTarget {
    std::byte* first = nullptr;
    int64_t row_stride = 0;
    int64_t head_stride = 0;
  };
  struct RowTargets {
    RowTarget keys;
    RowTarget values;
  };
  // Those of a chunk's rows from `row` on, and of rows side by side with all of their heads.
  RowTargets InChunk(const RowChunk& chunk, int64_t row) const;
  RowTargets SideBySide(std::byte* keys, std::byte* values) const;

  // A task for the keys and one for the values.
  using ConvertTasks = absl::InlinedVector<ConvertRowsTask, 2 * 4>;
  void AddConvertTasks(const AppendSource& source, const RowRun& run, int64_t num_rows,
                       const RowTargets& targets, ConvertTasks& tasks) const;
  // INVALID_ARGUMENT when a number is not finite in the stored type. tasks: as AddConvertTasks adds
  // them.
  absl::Status Convert(absl::Span<ConvertRowsTask> tasks) const;
  // What Convert says of a run of which either task met such a number.
  absl::Status NotFinite(absl::Span<const ConvertRowsTask> run) const;

  template <typename Use>
  void ForEachRun(absl::Span<const PendingAppend> appends, absl::Span<const int32_t> cu_seqlens,
                  const AppendSource& source, const Use& use) const;
  // Room for the plan's rows in every layer, appended but not written; for a GPU, also its tables.
  absl::Status BeginStep(PlanState& plan, Stream stream);

  // Copy rows that have been claimed.
  absl::Status AppendOnCpu(absl::Span<const PendingAppend> appends,
                           absl::Span<const int32_t> cu_seqlens, const AppendSource& source) const;
  absl::Status AppendOnGpu(absl::Span<const PendingAppend> appends,
                           absl::Span<const int32_t> cu_seqlens, const AppendSource& source,
                           Stream stream) const;

  // Converts rows [row, row + num_rows) of the batch to nowhere, for the check alone.
  absl::Status CheckFinite(const AppendSource& source, size_t sequence, int64_t row,
                           int64_t position, int64_t num_rows) const;

  // What the plan's call reads tiers with; nothing when there are none, or when others are using
  // all there is until miss_deadline is over. A layer that does not follow the last one begins a
  // new step.
  FetchLease AcquireFetch(PlanState& plan, int layer, BlockReader::TimePoint deadline);

  // Pins the layer of the plan's sequences in its workspace; NOT_FOUND when one has been removed.
  absl::Status PinStep(PlanState& plan, int layer) const;
};

}  // namespace wavekv

#endif  // WAVEKV_API_ENGINE_IMPL_H_
