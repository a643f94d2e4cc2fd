// The part of GpuEngine that prepares and queues steps which can be captured.
#include <algorithm>
#include <cstring>
#include <utility>

#include "api/gpu_engine.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

std::vector<RowSpan> AllRows(const std::vector<SequenceView>& views) {
  std::vector<RowSpan> spans;
  for (size_t v = 0; v < views.size(); ++v) {
    if (views[v].num_rows > 0) spans.push_back({v, 0, views[v].num_rows});
  }
  return spans;
}

// Raises bounds to what sequences of so many tokens need.
void ReserveTokens(const IndexOptions& index, const StepOptions& options, int64_t tokens,
                   StepBounds& bounds) {
  // Clusters that were too large have been split; half as many more are not met in practice.
  const auto clusters_of = [&](int64_t num_tokens) {
    return num_tokens / index.tokens_per_cluster * 3 / 2 + 8;
  };
  const auto supers_of = [&](int64_t num_tokens) {
    return clusters_of(num_tokens) / index.clusters_per_super * 3 / 2 + 8;
  };
  const auto raise = [](int64_t& bound, int64_t to) { bound = std::max(bound, to); };
  raise(bounds.segments, tokens / index.update_tokens + 1);
  raise(bounds.clusters, clusters_of(tokens) + 8 * bounds.segments);
  raise(bounds.index_clusters, clusters_of(index.segment_tokens));
  raise(bounds.supers, supers_of(tokens) + 8 * bounds.segments);
  raise(bounds.index_supers, supers_of(index.segment_tokens));
  raise(bounds.index_tokens, index.segment_tokens);
  raise(bounds.chosen, ChosenTokens(index, options, tokens));
  if (options.zones == Zones::kSketch) {
    raise(bounds.sketch_tokens, SketchTokens(index, options, tokens));
  }
  // Chunks, and the clusters of a segment of which a row does not see the end.
  raise(bounds.ranges,
        tokens / kChunkTokens + 3 + (options.exact ? bounds.clusters : 2 * bounds.index_clusters));
}

bool Fits(const StepBounds& need, const StepBounds& room) {
  return need.segments <= room.segments && need.clusters <= room.clusters &&
         need.index_clusters <= room.index_clusters && need.supers <= room.supers &&
         need.index_supers <= room.index_supers && need.index_tokens <= room.index_tokens &&
         need.sketch_tokens <= room.sketch_tokens && need.chosen <= room.chosen &&
         need.ranges <= room.ranges;
}

bool Fits(const TableSizes& need, const TableSizes& room) {
  return need.sequences <= room.sequences && need.segments <= room.segments &&
         need.chunks <= room.chunks;
}

// Of what is uploaded, bytes that differ from what the device has: at its offset `at`.
struct Change {
  int64_t at;
  const std::byte* from;
  int64_t bytes;
};

// In pieces of some lines: mostly lengths and runs change.
void FindChanges(const std::vector<std::byte>& uploaded, int64_t at, const void* data,
                 int64_t bytes, std::vector<Change>& changes) {
  constexpr int64_t kPiece = 1024;
  const auto* const wanted = static_cast<const std::byte*>(data);
  bool goes_on = false;
  for (int64_t done = 0; done < bytes; done += kPiece) {
    const int64_t count = std::min(kPiece, bytes - done);
    if (std::memcmp(wanted + done, &uploaded[at + done], count) == 0) {
      goes_on = false;
    } else if (goes_on) {
      changes.back().bytes += count;
    } else {
      changes.push_back({at + done, wanted + done, count});
      goes_on = true;
    }
  }
}

}  // namespace

StepTables GpuEngine::TablesOf(const GpuPlan::Reserved& reserved, int layer) const {
  const std::byte* const at = reserved.memory->data() + layer * reserved.layer_bytes;
  return GpuTables::Locate(reserved.capacity, model_.num_kv_heads,
                           at + reserved.runs * static_cast<int64_t>(sizeof(AppendRun)));
}

absl::Status GpuEngine::Reserve(GpuPlan& plan, const AttendOptions& options,
                                const std::vector<SequenceView>& views, GpuStream stream) {
  auto reserved = std::make_shared<GpuPlan::Reserved>();
  reserved->options = ToStepOptions(model_, options);
  const int64_t tokens = options.reserve_tokens;
  StepBounds& bounds = reserved->bounds;
  const std::vector<RowSpan> spans = AllRows(views);
  for (const RowSpan& span : spans) {
    reserved->rows_max = std::max(reserved->rows_max, span.num_rows);
  }
  // What does not grow is taken from what is there.
  bounds = GpuTables(model_, index_, reserved->options, views, spans, /*tile_rows=*/1).bounds();
  ReserveTokens(index_, reserved->options, tokens, bounds);
  bounds.num_splits = ChooseSplits(context_->gpu().info().num_multiprocessors, bounds.num_units,
                                   bounds.chosen + index_.window_tokens + index_.update_tokens);
  if (options.target_error > 0.0) bounds.steady_splits = bounds.num_splits;
  const auto num_sequences = static_cast<int64_t>(spans.size());
  reserved->capacity = {num_sequences, num_sequences * bounds.segments,
                        num_sequences * (tokens / kChunkTokens + 3)};
  // A step's few rows end the sinks, or a chunk, and begin the next one.
  reserved->runs = 3 * num_sequences;
  reserved->layer_bytes = (reserved->runs * static_cast<int64_t>(sizeof(AppendRun)) +
                           reserved->capacity.Bytes(model_.num_kv_heads) + 255) /
                          256 * 256;
  const int64_t tables = model_.num_layers * reserved->layer_bytes;
  WAVEKV_ASSIGN_OR_RETURN(
      reserved->memory,
      context_->AllocateWorkspace(
          tables + StepWorkspaceBytes(context_->operations(), reserved->options, bounds)));
  reserved->buffers = LayOutStep(context_->operations(), reserved->options, bounds,
                                 reserved->memory->data() + tables);
  // Different from anything, so that all is uploaded at first.
  reserved->uploaded.assign(static_cast<size_t>(tables), std::byte{0xa5});
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Fill(reserved->memory->data(), 0xa5, tables, stream));
  plan.reserved = std::move(reserved);
  return absl::OkStatus();
}

absl::Status GpuEngine::BeginStep(GpuPlan& plan, const AttendOptions& options,
                                  std::vector<std::vector<SequenceView>> layers,
                                  std::vector<std::vector<AppendRun>> runs, GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(PreparePlan(plan, stream));
  if (plan.reserved == nullptr) {
    WAVEKV_RETURN_IF_ERROR(Reserve(plan, options, layers[0], stream));
  }
  GpuPlan::Reserved& reserved = *plan.reserved;
  std::vector<GpuTables> tables;
  tables.reserve(layers.size());
  std::vector<Change> changes;
  int64_t bytes = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const auto& of_layer = tables.emplace_back(model_, index_, reserved.options, layers[layer],
                                               AllRows(layers[layer]), /*tile_rows=*/1);
    if (!Fits(of_layer.bounds(), reserved.bounds) || !Fits(of_layer.sizes(), reserved.capacity)) {
      return absl::FailedPreconditionError(fmt::format(
          "reserve_tokens: the plan's sequences have more clusters or segments than those of {} "
          "tokens usually have; make a plan with room for more, and capture anew",
          options.reserve_tokens));
    }
    const int64_t at = static_cast<int64_t>(layer) * reserved.layer_bytes;
    runs[layer].resize(static_cast<size_t>(reserved.runs));
    const auto run_bytes = reserved.runs * static_cast<int64_t>(sizeof(AppendRun));
    FindChanges(reserved.uploaded, at, runs[layer].data(), run_bytes, changes);
    of_layer.ForEachPart(reserved.capacity, [&](int64_t offset, const void* data, int64_t size) {
      FindChanges(reserved.uploaded, at + run_bytes + offset, data, size, changes);
    });
  }
  for (const Change& change : changes) bytes += change.bytes;
  if (bytes > 0) {
    WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> staging,
                            context_->AllocateStaging(bytes));
    std::byte* next = staging->data();
    for (const Change& change : changes) {
      std::memcpy(next, change.from, static_cast<size_t>(change.bytes));
      std::memcpy(&reserved.uploaded[change.at], change.from, static_cast<size_t>(change.bytes));
      WAVEKV_RETURN_IF_ERROR(
          context_->gpu().Copy(reserved.memory->data() + change.at, next, change.bytes, stream));
      next += change.bytes;
    }
    WAVEKV_RETURN_IF_ERROR(context_->Retire(stream, staging));
  }
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Fill(plan.stats->data(), 0, sizeof(StepStats), stream));
  if (reserved.pins != nullptr) {
    WAVEKV_RETURN_IF_ERROR(context_->Retire(stream, std::move(reserved.pins)));
  }
  reserved.pins = std::make_shared<std::vector<std::vector<SequenceView>>>(std::move(layers));
  reserved.stream = stream;
  context_->Collect();
  return absl::OkStatus();
}

absl::Status GpuEngine::AppendStep(GpuPlan& plan, int layer, const AppendTensors& tensors,
                                   GpuStream stream) {
  const GpuScope scope(context_->gpu());
  const GpuPlan::Reserved& reserved = *plan.reserved;
  return context_->operations().append_rows(
      reinterpret_cast<const AppendRun*>(reserved.memory->data() + layer * reserved.layer_bytes),
      reserved.runs, reserved.rows_max, tensors,
      {model_.head_dim_k, model_.head_dim_v, model_.kv_dtype}, model_.num_kv_heads, FlagsOf(plan),
      stream);
}

absl::StatusOr<AttendStats> GpuEngine::AttendStep(
    GpuPlan& plan, int layer, const TensorView& queries, const MutableTensorView& output,
    const PerHeadView& lse, const PerHeadView& error_estimate, GpuStream stream) {
  const GpuScope scope(context_->gpu());
  const GpuPlan::Reserved& reserved = *plan.reserved;
  const StepTables tables = TablesOf(reserved, layer);
  const GpuOperations& operations = context_->operations();
  WAVEKV_RETURN_IF_ERROR(
      QueueRanking(operations, tables, reserved.options, reserved.bounds,
                   {queries.data, queries.dtype, queries.row_stride, queries.head_stride},
                   reserved.buffers, FlagsOf(plan), stream));
  WAVEKV_RETURN_IF_ERROR(QueueAnswer(operations, tables, reserved.options, reserved.bounds,
                                     reserved.buffers, ToStepOutputs(output, lse, error_estimate),
                                     reinterpret_cast<StepStats*>(plan.stats->data()), stream));
  AttendStats stats;
  stats.rows = output.num_rows;
  return stats;
}

absl::Status GpuEngine::EndStep(GpuPlan& plan, GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(CheckNotCaptured(stream));
  WAVEKV_RETURN_IF_ERROR(
      context_->gpu().Copy(&ResultsOf(plan).stats, plan.stats->data(), sizeof(StepStats), stream));
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Record(plan.last_use.get(), stream));
  WAVEKV_RETURN_IF_ERROR(context_->EndWrite(stream));
  return context_->Retire(stream, std::move(plan.reserved->pins));
}

}  // namespace wavekv
