#include "api/gpu_engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include "fmt/format.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Queries of a tile of rows that are attended exactly: keys are read once for so many.
constexpr int kTileQueries = 128;

// Rows of a launch that are answered by zones: each has buffers of its own.
constexpr int64_t kZoneStates = 4096;
// And those that are not.
constexpr int64_t kExactStates = 1 << 16;

AttendStats ToAttendStats(const StepStats& step, int64_t num_rows, int64_t num_heads) {
  AttendStats stats;
  stats.rows = num_rows;
  stats.tokens_visible = step.tokens_visible;
  stats.tokens_exact = step.tokens_exact;
  stats.tokens_retrieved = step.tokens_retrieved;
  stats.tokens_sketched = step.tokens_sketched;
  stats.tokens_estimated = step.tokens_estimated;
  stats.clusters_scored = step.clusters_scored;
  stats.clusters_retrieved = step.clusters_retrieved;
  stats.bytes_dense = step.bytes_dense;
  stats.bytes_read = step.bytes_read;
  const double states = static_cast<double>(num_rows * num_heads);
  if (states > 0) {
    stats.estimated_mass_mean = step.estimated_mass / states;
    stats.error_estimate_mean = step.error_estimate / states;
  }
  stats.estimated_mass_max = step.estimated_mass_max;
  stats.error_estimate_max = step.error_estimate_max;
  return stats;
}

// Keeps what a call has pinned, and the tensors that it has staged, until its kernels have run,
// however the call ends.
class PinnedUse {
 public:
  PinnedUse(GpuContext& context, GpuPlan& plan, const std::vector<SequenceView>& views,
            std::shared_ptr<const void> staged, GpuStream stream)
      : context_(context),
        plan_(plan),
        views_(views),
        staged_(std::move(staged)),
        stream_(stream) {}
  ~PinnedUse() {
    if (has_run_) return;
    struct Kept {
      std::vector<SequenceView> views;
      std::shared_ptr<const void> staged;
    };
    context_.NoteFailure(
        context_.Retire(stream_, std::make_shared<Kept>(Kept{views_, std::move(staged_)})));
    context_.NoteFailure(context_.gpu().Record(plan_.last_use.get(), stream_));
  }
  // All that the call has queued was waited for.
  void HasRun() { has_run_ = true; }

  PinnedUse(const PinnedUse&) = delete;
  PinnedUse& operator=(const PinnedUse&) = delete;

 private:
  GpuContext& context_;
  GpuPlan& plan_;
  const std::vector<SequenceView>& views_;
  std::shared_ptr<const void> staged_;
  const GpuStream stream_;
  bool has_run_ = false;
};

bool AnswersByZones(const std::vector<SequenceView>& views) {
  for (const SequenceView& view : views) {
    if (view.num_rows == 0) continue;
    const int64_t visible_end = view.VisibleEnd(view.num_rows - 1);
    for (size_t i = 0; i < view.pins.size(); ++i) {
      if (view.AnswersByZones(i, visible_end)) return true;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<GpuStream> GpuEngine::StreamFor(Memory memory, Stream stream) const {
  if (stream != nullptr) return stream;
  if (memory != Memory::kDevice) return context_->own_stream();
  return absl::InvalidArgumentError(
      "stream must not be null for tensors in device memory: the default stream is never used");
}

absl::Status GpuEngine::TakeErrors(GpuPlan& plan) {
  NoteBadRows();
  WAVEKV_RETURN_IF_ERROR(context_->failure());
  if (plan.results == nullptr) return absl::OkStatus();
  volatile StepFlags& flags = *FlagsOf(plan);
  if (flags.bad_rows != 0) {
    flags.bad_rows = 0;
    return absl::InvalidArgumentError(
        "keys or values of an earlier step of this plan had NaN, infinity or numbers out of range; "
        "zeros stand in their place");
  }
  if (flags.bad_queries != 0) {
    flags.bad_queries = 0;
    return absl::InvalidArgumentError(
        "queries of an earlier step of this plan had NaN or infinity; zeros were taken in their "
        "place");
  }
  if (flags.overflow != 0) {
    flags.overflow = 0;
    return absl::InternalError("a step on the GPU met more clusters or tokens than was reserved");
  }
  return absl::OkStatus();
}

// Of appends without a plan, whose tenants nobody knows any more: not an error of whoever calls
// next.
void GpuEngine::NoteBadRows() {
  volatile StepFlags& flags = *context_->flags();
  if (flags.bad_rows == 0) return;
  flags.bad_rows = 0;
  WAVEKV_LOG(kError,
             "an append of tensors in device memory had NaN, infinity or numbers out of range in "
             "keys or values; zeros stand in their place");
}

absl::Status GpuEngine::Append(const GpuAppend& append, std::shared_ptr<const void> kept,
                               GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(CheckNotCaptured(stream));
  if (append.runs.empty()) return absl::OkStatus();
  const GpuScope scope(context_->gpu());
  const auto bytes = static_cast<int64_t>(append.runs.size() * sizeof(AppendRun));
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> runs, context_->AllocateStaging(bytes));
  std::memcpy(runs->data(), append.runs.data(), static_cast<size_t>(bytes));
  WAVEKV_RETURN_IF_ERROR(context_->BeginUse(stream));
  WAVEKV_RETURN_IF_ERROR(context_->operations().append_rows(
      reinterpret_cast<const AppendRun*>(runs->data()), static_cast<int64_t>(append.runs.size()),
      append.rows_max, append.tensors, {model_.head_dim_k, model_.head_dim_v, model_.kv_dtype},
      model_.num_kv_heads, context_->flags(), stream));
  WAVEKV_RETURN_IF_ERROR(context_->EndWrite(stream));
  return context_->Retire(
      stream, std::make_shared<std::pair<std::shared_ptr<GpuPiece>, std::shared_ptr<const void>>>(
                  runs, std::move(kept)));
}

absl::Status GpuEngine::CheckNotCaptured(GpuStream stream) const {
  WAVEKV_ASSIGN_OR_RETURN(const bool captured, context_->gpu().IsCapturing(stream));
  if (!captured) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "stream: is being captured; AppendStep and Attend of a plan with reserve_tokens can be, no "
      "other call");
}

absl::Status GpuEngine::PreparePlan(GpuPlan& plan, GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(CheckNotCaptured(stream));
  WAVEKV_RETURN_IF_ERROR(context_->BeginUse(stream));
  if (plan.context == nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(plan.last_use, GpuEvent::Create(context_->shared_gpu()));
    WAVEKV_ASSIGN_OR_RETURN(plan.results, context_->AllocateStaging(sizeof(PlanResults)));
    new (plan.results->data()) PlanResults;
    WAVEKV_ASSIGN_OR_RETURN(plan.stats, context_->AllocateWorkspace(sizeof(StepStats)));
    WAVEKV_RETURN_IF_ERROR(context_->gpu().Record(plan.last_use.get(), stream));
    plan.context = context_;
    return absl::OkStatus();
  }
  // Its buffers are in use until then, on whatever stream.
  return context_->gpu().WaitFor(plan.last_use.get(), stream);
}

absl::StatusOr<GpuEngine::LaunchSet> GpuEngine::Prepare(GpuPlan& plan,
                                                        const std::vector<SequenceView>& views,
                                                        absl::Span<const RowSpan> spans,
                                                        const StepOptions& options, int tile_rows,
                                                        GpuStream stream) {
  LaunchSet set;
  set.options = options;
  const GpuTables tables(model_, index_, set.options, views, spans, tile_rows);
  set.bounds = tables.bounds();
  set.bounds.num_splits = ChooseSplits(context_->gpu().info().num_multiprocessors,
                                       set.bounds.num_units, tables.exact_tokens());
  if (options.target_error > 0.0) set.bounds.steady_splits = set.bounds.num_splits;
  const GpuOperations& operations = context_->operations();
  const int64_t table_bytes = Arena::RoundUp(tables.sizes().Bytes(model_.num_kv_heads));
  const int64_t bytes = table_bytes + StepWorkspaceBytes(operations, set.options, set.bounds);
  if (plan.workspace == nullptr || plan.workspace->bytes() < bytes) {
    if (plan.workspace != nullptr) {
      WAVEKV_RETURN_IF_ERROR(context_->Retire(stream, std::move(plan.workspace)));
    }
    // Sequences grow: not at every step.
    auto workspace = context_->AllocateWorkspace(bytes + bytes / 4);
    if (!workspace.ok()) workspace = context_->AllocateWorkspace(bytes);
    WAVEKV_ASSIGN_OR_RETURN(plan.workspace, std::move(workspace));
  }
  std::byte* const base = plan.workspace->data();
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> staging,
                          context_->AllocateStaging(table_bytes));
  tables.Write(tables.sizes(), staging->data());
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Copy(base, staging->data(), table_bytes, stream));
  WAVEKV_RETURN_IF_ERROR(context_->Retire(stream, staging));
  set.tables = GpuTables::Locate(tables.sizes(), model_.num_kv_heads, base);
  set.buffers = LayOutStep(operations, set.options, set.bounds, base + table_bytes);
  return set;
}

std::vector<std::vector<RowSpan>> GpuEngine::Batches(const std::vector<SequenceView>& views,
                                                     bool exact) const {
  const int64_t rows_max =
      std::max<int64_t>(1, (exact ? kExactStates : kZoneStates) / model_.num_q_heads);
  std::vector<std::vector<RowSpan>> batches;
  int64_t rows_left = 0;
  for (size_t v = 0; v < views.size(); ++v) {
    for (int64_t row = 0; row < views[v].num_rows;) {
      if (rows_left == 0) {
        batches.emplace_back();
        rows_left = rows_max;
      }
      const int64_t count = std::min(rows_left, views[v].num_rows - row);
      batches.back().push_back({v, row, count});
      row += count;
      rows_left -= count;
    }
  }
  return batches;
}

absl::StatusOr<GpuEngine::Staged> GpuEngine::Stage(const TensorView& queries, int64_t num_rows,
                                                   bool with_outputs) {
  Staged staged;
  const int64_t heads = model_.num_q_heads;
  const int64_t states = num_rows * heads;
  const int64_t query_floats = states * model_.head_dim_k;
  const int64_t output_floats = with_outputs ? states * (model_.head_dim_v + 2) : 0;
  WAVEKV_ASSIGN_OR_RETURN(staged.memory, context_->AllocateStaging((query_floats + output_floats) *
                                                                   int64_t{sizeof(float)}));
  auto* const floats = reinterpret_cast<float*>(staged.memory->data());
  struct Flag {
    bool finite = true;
  };
  std::vector<Flag> flags(heads);
  std::vector<ConvertRowsTask> tasks;
  for (int64_t head = 0; head < heads && num_rows > 0; ++head) {
    ConvertRowsTask task;
    task.source = static_cast<const std::byte*>(queries.data) +
                  head * queries.head_stride * DTypeBytes(queries.dtype);
    task.source_dtype = queries.dtype;
    task.source_stride = queries.row_stride;
    task.target = floats + head * model_.head_dim_k;
    task.target_stride = heads * model_.head_dim_k;
    task.num_rows = num_rows;
    task.row_elements = model_.head_dim_k;
    task.all_finite = &flags[head].finite;
    tasks.push_back(task);
  }
  WAVEKV_RETURN_IF_ERROR(cpu_.ConvertRows(tasks));
  for (int64_t head = 0; head < heads; ++head) {
    if (flags[head].finite) continue;
    return absl::InvalidArgumentError(
        fmt::format("queries must be finite, got NaN or infinity in query head {}", head));
  }
  staged.queries = {floats, DType::kFloat32, heads * model_.head_dim_k, model_.head_dim_k};
  float* const output = floats + query_floats;
  staged.outputs = {output,
                    DType::kFloat32,
                    heads * model_.head_dim_v,
                    model_.head_dim_v,
                    output + states * model_.head_dim_v,
                    heads,
                    1,
                    output + states * (model_.head_dim_v + 1),
                    heads,
                    1};
  return staged;
}

absl::Status GpuEngine::Unstage(const Staged& staged, const MutableTensorView& output,
                                const PerHeadView& lse, const PerHeadView& error_estimate) {
  const int64_t heads = model_.num_q_heads;
  std::vector<ConvertRowsTask> tasks;
  for (int64_t head = 0; head < heads && output.num_rows > 0; ++head) {
    ConvertRowsTask task;
    task.source = static_cast<const float*>(staged.outputs.data) + head * model_.head_dim_v;
    task.source_stride = heads * model_.head_dim_v;
    task.target =
        static_cast<std::byte*>(output.data) + head * output.head_stride * DTypeBytes(output.dtype);
    task.target_dtype = output.dtype;
    task.target_stride = output.row_stride;
    task.num_rows = output.num_rows;
    task.row_elements = model_.head_dim_v;
    tasks.push_back(task);
  }
  const auto copy = [&](const float* from, const PerHeadView& to) {
    if (to.data == nullptr) return;
    for (int64_t row = 0; row < output.num_rows; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        to.data[row * to.row_stride + head * to.head_stride] = from[row * heads + head];
      }
    }
  };
  copy(staged.outputs.lse, lse);
  copy(staged.outputs.error, error_estimate);
  return cpu_.ConvertRows(tasks);
}

absl::Status GpuEngine::Await(GpuPlan& plan, GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Record(plan.last_use.get(), stream));
  return context_->gpu().Await(plan.last_use.get());
}

absl::StatusOr<AttendStats> GpuEngine::Attend(GpuPlan& plan, const std::vector<SequenceView>& views,
                                              const AttendOptions& options,
                                              const TensorView& queries,
                                              const MutableTensorView& output,
                                              const PerHeadView& lse,
                                              const PerHeadView& error_estimate, GpuStream stream) {
  const GpuScope scope(context_->gpu());
  const bool on_host = output.memory != Memory::kDevice;
  AttendStats stats;
  stats.rows = output.num_rows;
  if (output.num_rows == 0) return stats;
  Staged staged;
  StepQueries from = {queries.data, queries.dtype, queries.row_stride, queries.head_stride};
  StepOutputs to = ToStepOutputs(output, lse, error_estimate);
  if (on_host) {
    WAVEKV_ASSIGN_OR_RETURN(staged, Stage(queries, output.num_rows, /*with_outputs=*/true));
    from = staged.queries;
    to = staged.outputs;
  }
  if (!on_host) WAVEKV_RETURN_IF_ERROR(TakeErrors(plan));
  WAVEKV_RETURN_IF_ERROR(PreparePlan(plan, stream));
  PinnedUse use(*context_, plan, views, staged.memory, stream);
  StepOptions step = ToStepOptions(model_, options);
  step.exact = step.exact || !AnswersByZones(views);
  if (step.exact) step.target_error = 0.0;
  const int tile_rows = step.exact ? std::max(1, kTileQueries / model_.gqa_group_size()) : 1;
  auto* const sums = reinterpret_cast<StepStats*>(plan.stats->data());
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Fill(sums, 0, sizeof(StepStats), stream));
  const GpuOperations& operations = context_->operations();
  for (const auto& spans : Batches(views, step.exact)) {
    WAVEKV_ASSIGN_OR_RETURN(const LaunchSet set,
                            Prepare(plan, views, spans, step, tile_rows, stream));
    WAVEKV_RETURN_IF_ERROR(QueueRanking(operations, set.tables, set.options, set.bounds, from,
                                        set.buffers, FlagsOf(plan), stream));
    WAVEKV_RETURN_IF_ERROR(QueueAnswer(operations, set.tables, set.options, set.bounds, set.buffers,
                                       to, sums, stream));
  }
  WAVEKV_RETURN_IF_ERROR(
      context_->gpu().Copy(&ResultsOf(plan).stats, sums, sizeof(StepStats), stream));
  if (!on_host) return stats;
  WAVEKV_RETURN_IF_ERROR(Await(plan, stream));
  use.HasRun();
  context_->Collect();
  WAVEKV_RETURN_IF_ERROR(Unstage(staged, output, lse, error_estimate));
  return ReadStats(plan, output.num_rows);
}

absl::Status GpuEngine::MergeStates(absl::Span<const TensorView> outputs,
                                    absl::Span<const PerHeadView> lses, LseBase base,
                                    const MutableTensorView& output, const PerHeadView& lse,
                                    GpuStream stream) {
  const GpuScope scope(context_->gpu());
  WAVEKV_RETURN_IF_ERROR(CheckNotCaptured(stream));
  WAVEKV_RETURN_IF_ERROR(context_->failure());
  const auto bytes = static_cast<int64_t>(outputs.size() * sizeof(MergeTensor));
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> staging,
                          context_->AllocateStaging(bytes));
  auto* const states = reinterpret_cast<MergeTensor*>(staging->data());
  for (size_t s = 0; s < outputs.size(); ++s) {
    new (states + s) MergeTensor{outputs[s].data,        outputs[s].dtype, outputs[s].row_stride,
                                 outputs[s].head_stride, lses[s].data,     lses[s].row_stride,
                                 lses[s].head_stride};
  }
  WAVEKV_RETURN_IF_ERROR(context_->operations().merge_tensors(
      states, static_cast<int64_t>(outputs.size()), output.num_rows, output.num_heads,
      static_cast<int>(output.head_dim), base == LseBase::k2 ? std::log(2.0f) : 1.0f,
      {output.data, output.dtype, output.row_stride, output.head_stride, lse.data, lse.row_stride,
       lse.head_stride},
      stream));
  return context_->Retire(stream, staging);
}

absl::StatusOr<AttendStats> GpuEngine::ReadStats(GpuPlan& plan, int64_t num_rows) {
  if (plan.results == nullptr) return AttendStats();
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Await(plan.last_use.get()));
  WAVEKV_RETURN_IF_ERROR(TakeErrors(plan));
  StepStats step;
  std::memcpy(&step, &ResultsOf(plan).stats, sizeof(step));
  return ToAttendStats(step, num_rows, model_.num_q_heads);
}

template <typename T>
absl::Status GpuEngine::Download(const T* from, int64_t count, std::vector<T>& to, GpuPlan& plan,
                                 GpuStream stream) {
  to.resize(static_cast<size_t>(count));
  WAVEKV_RETURN_IF_ERROR(
      context_->gpu().Copy(to.data(), from, count * static_cast<int64_t>(sizeof(T)), stream));
  return Await(plan, stream);
}

absl::StatusOr<std::vector<RetrievedTokens>> GpuEngine::Retrieve(
    GpuPlan& plan, const std::vector<SequenceView>& views, const AttendOptions& options,
    const TensorView& queries, GpuStream stream) {
  std::vector<RetrievedTokens> all(static_cast<size_t>(queries.num_rows * model_.num_kv_heads));
  if (queries.num_rows == 0) return all;
  const GpuScope scope(context_->gpu());
  Staged staged;
  StepQueries from = {queries.data, queries.dtype, queries.row_stride, queries.head_stride};
  if (queries.memory != Memory::kDevice) {
    WAVEKV_ASSIGN_OR_RETURN(staged, Stage(queries, queries.num_rows, /*with_outputs=*/false));
    from = staged.queries;
  }
  WAVEKV_RETURN_IF_ERROR(PreparePlan(plan, stream));
  PinnedUse use(*context_, plan, views, staged.memory, stream);
  StepOptions step = ToStepOptions(model_, options);
  // Retrieval that takes all still has a ranking.
  step.exact = !AnswersByZones(views);
  if (step.exact) step.target_error = 0.0;
  for (const auto& spans : Batches(views, step.exact)) {
    WAVEKV_ASSIGN_OR_RETURN(const LaunchSet set,
                            Prepare(plan, views, spans, step, /*tile_rows=*/1, stream));
    WAVEKV_RETURN_IF_ERROR(QueueRanking(context_->operations(), set.tables, set.options, set.bounds,
                                        from, set.buffers, FlagsOf(plan), stream));
    int64_t number = 0;
    for (const RowSpan& span : spans) {
      for (int64_t row = 0; row < span.num_rows; ++row) {
        for (int head = 0; head < model_.num_kv_heads; ++head, ++number) {
          const SequenceView& view = views[span.view];
          const int64_t at = (view.first_row + span.first_row + row) * model_.num_kv_heads + head;
          WAVEKV_ASSIGN_OR_RETURN(all[at], RetrievedBy(plan, view, set, number, stream));
        }
      }
    }
  }
  WAVEKV_RETURN_IF_ERROR(Await(plan, stream));
  use.HasRun();
  context_->Collect();
  WAVEKV_RETURN_IF_ERROR(TakeErrors(plan));
  return all;
}

absl::StatusOr<RetrievedTokens> GpuEngine::RetrievedBy(GpuPlan& plan, const SequenceView& view,
                                                       const LaunchSet& set, int64_t number,
                                                       GpuStream stream) {
  RetrievedTokens tokens;
  std::vector<StepUnit> units;
  WAVEKV_RETURN_IF_ERROR(Download(set.buffers.units + number, 1, units, plan, stream));
  const StepUnit& unit = units[0];
  if (unit.num_indexes == 0) return tokens;
  const int64_t first = number * set.bounds.clusters;
  std::vector<uint32_t> retrieved, tokens_before;
  std::vector<float> probabilities;
  std::vector<uint8_t> chosen;
  WAVEKV_RETURN_IF_ERROR(
      Download(set.buffers.retrieved + first, unit.num_selected, retrieved, plan, stream));
  WAVEKV_RETURN_IF_ERROR(
      Download(set.buffers.probabilities + first, unit.num_clusters, probabilities, plan, stream));
  const bool sketch = set.options.zones == Zones::kSketch;
  if (sketch) {
    WAVEKV_RETURN_IF_ERROR(Download(set.buffers.tokens_before + number * (set.bounds.clusters + 1),
                                    unit.num_clusters + 1, tokens_before, plan, stream));
    WAVEKV_RETURN_IF_ERROR(Download(set.buffers.chosen + number * set.bounds.sketch_tokens,
                                    unit.num_sketch_tokens, chosen, plan, stream));
  }
  std::stable_sort(retrieved.begin(), retrieved.end(), [&](uint32_t a, uint32_t b) {
    return probabilities[a] != probabilities[b] ? probabilities[a] > probabilities[b] : a < b;
  });

  // What the indexes say of positions, which lies on the device.
  struct Index {
    int64_t first_cluster;
    int64_t position_begin;
    std::vector<uint32_t> offsets;
    std::vector<uint16_t> positions;
  };
  std::vector<Index> indexes;
  int64_t first_cluster = 0;
  for (size_t i = 0; i < view.pins.size(); ++i) {
    if (!view.AnswersByZones(i, unit.visible_end)) continue;
    const ClusterIndex& index = view.pins[i].sealed->heads[unit.kv_head].index;
    Index& copy = indexes.emplace_back();
    copy.first_cluster = first_cluster;
    copy.position_begin = index.position_begin;
    WAVEKV_RETURN_IF_ERROR(
        Download(index.offsets, index.num_clusters + 1, copy.offsets, plan, stream));
    WAVEKV_RETURN_IF_ERROR(
        Download(index.positions, index.num_tokens, copy.positions, plan, stream));
    first_cluster += index.num_clusters;
  }
  for (const uint32_t id : retrieved) {
    const auto after = std::upper_bound(
        indexes.begin(), indexes.end(), int64_t{id},
        [](int64_t cluster, const Index& index) { return cluster < index.first_cluster; });
    const Index& index = *std::prev(after);
    const int64_t cluster = id - index.first_cluster;
    const int64_t begin = index.offsets[cluster];
    const int64_t size = index.offsets[cluster + 1] - begin;
    RankedCluster ranked{index.position_begin, cluster, size, probabilities[id], 0};
    for (int64_t t = 0; t < size; ++t) {
      if (sketch && chosen[tokens_before[id] + t] == 0) continue;
      tokens.positions.push_back(index.position_begin + index.positions[begin + t]);
      tokens.places.push_back(t);
      ++ranked.num_read;
    }
    tokens.clusters.push_back(ranked);
  }
  return tokens;
}

}  // namespace wavekv
