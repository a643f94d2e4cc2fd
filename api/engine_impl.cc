#include "api/engine_impl.h"

#include <algorithm>
#include <utility>

#include "api/check_arguments.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// From so many bytes on an append is faster past the caches, which it would empty (measured with 32
// MiB of third level, bench/append_bench.cc).
constexpr int64_t kPastCachesBytes = int64_t{4} << 20;

}  // namespace

std::vector<std::shared_ptr<TenantStore>> Engine::Impl::AllTenants() const {
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<std::shared_ptr<TenantStore>> all;
  for (const auto& [id, tenant] : tenants) all.push_back(tenant);
  return all;
}

absl::Status Engine::Impl::CheckSequence(const std::shared_ptr<StoredSequence>& sequence) const {
  const bool known =
      sequence != nullptr && sequence->context() == context.get() && !sequence->removed();
  return known ? absl::OkStatus() : SequenceNotFound();
}

Engine::Impl::PerSequence<std::shared_ptr<StoredSequence>> Engine::Impl::SequencesOf(
    const RaggedBatch& batch) {
  PerSequence<std::shared_ptr<StoredSequence>> sequences;
  sequences.reserve(batch.sequences.size());
  for (const Sequence& sequence : batch.sequences) sequences.push_back(sequence.stored_);
  return sequences;
}

absl::Status Engine::Impl::CheckBatch(absl::Span<const std::shared_ptr<StoredSequence>> sequences,
                                      absl::Span<const int32_t> cu_seqlens) const {
  WAVEKV_RETURN_IF_ERROR(CheckCuSeqlens(cu_seqlens, static_cast<int64_t>(sequences.size())));
  PerSequence<const StoredSequence*> sorted;
  sorted.reserve(sequences.size());
  for (const auto& sequence : sequences) {
    WAVEKV_RETURN_IF_ERROR(CheckSequence(sequence));
    sorted.push_back(sequence.get());
  }
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice == sorted.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("sequences of a batch must differ, got sequence {} twice", (*twice)->id()));
}

absl::Status Engine::Impl::CheckLayer(int layer) const {
  if (layer >= 0 && layer < options.model.num_layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("layer must be in [0, {}), got {}", options.model.num_layers, layer));
}

absl::Status Engine::Impl::CheckStream(Stream stream) const {
  if (stream == nullptr || gpu != nullptr) return absl::OkStatus();
  return absl::UnimplementedError("stream must be null in a CPU engine");
}

// Calls use(run, row, count, slice, first) for each piece of the batch's rows that lies in one run
// and one chunk: there it begins with row `first`.
template <typename Use>
void Engine::Impl::ForEachRun(absl::Span<const PendingAppend> appends,
                              absl::Span<const int32_t> cu_seqlens, const AppendSource& source,
                              const Use& use) const {
  for (size_t i = 0; i < appends.size(); ++i) {
    int64_t row = cu_seqlens[i];
    int64_t position = appends[i].first_position();
    for (const RowSlice& slice : appends[i].slices()) {
      for (int64_t done = 0; done < slice.count;) {
        const RowRun run = source.Locate(i, row, position);
        const int64_t count = std::min(run.num_rows, slice.count - done);
        use(run, row, count, *slice.chunk, slice.row + done);
        done += count;
        row += count;
        position += count;
      }
    }
  }
}

Engine::Impl::RowTargets Engine::Impl::InChunk(const RowChunk& chunk, int64_t row) const {
  const ModelSpec& model = options.model;
  const int64_t head_stride = chunk.capacity() * (model.head_dim_k + model.head_dim_v);
  return {{chunk.keys(0, row), model.head_dim_k, head_stride},
          {chunk.values(0, row), model.head_dim_v, head_stride}};
}

Engine::Impl::RowTargets Engine::Impl::SideBySide(std::byte* keys, std::byte* values) const {
  const ModelSpec& model = options.model;
  const int64_t heads = model.num_kv_heads;
  return {{keys, heads * model.head_dim_k, model.head_dim_k},
          {values, heads * model.head_dim_v, model.head_dim_v}};
}

void Engine::Impl::AddConvertTasks(const AppendSource& source, const RowRun& run, int64_t num_rows,
                                   const RowTargets& targets, ConvertTasks& tasks) const {
  const auto add = [&](const RowLayout& layout, const std::byte* first, const RowTarget& target,
                       int head_dim) {
    ConvertRowsTask& task = tasks.emplace_back();
    task.source = first;
    task.source_dtype = layout.dtype;
    task.source_stride = layout.row_stride;
    task.source_head_stride = layout.head_stride;
    task.target = target.first;
    task.target_dtype = options.model.kv_dtype;
    task.target_stride = target.row_stride;
    task.target_head_stride = target.head_stride;
    task.num_rows = num_rows;
    task.num_heads = options.model.num_kv_heads;
    task.row_elements = head_dim;
  };
  add(source.keys(), run.keys, targets.keys, options.model.head_dim_k);
  add(source.values(), run.values, targets.values, options.model.head_dim_v);
}

absl::Status Engine::Impl::Convert(absl::Span<ConvertRowsTask> tasks) const {
  struct Flag {
    bool finite = true;
  };
  absl::InlinedVector<Flag, 2 * 4> flags(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i].all_finite = &flags[i].finite;
  WAVEKV_RETURN_IF_ERROR(backend->ConvertRows(tasks));
  for (size_t i = 0; i < flags.size(); i += 2) {
    if (!flags[i].finite || !flags[i + 1].finite) return NotFinite(tasks.subspan(i, 2));
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::NotFinite(absl::Span<const ConvertRowsTask> run) const {
  for (int head = 0; head < options.model.num_kv_heads; ++head) {
    for (const size_t i : {0, 1}) {
      // To the same place once more: nobody reads it.
      ConvertRowsTask task = run[i];
      const auto move = [head](auto* at, int64_t stride, DType dtype) {
        return at + head * stride * DTypeBytes(dtype);
      };
      task.source = move(static_cast<const std::byte*>(task.source), task.source_head_stride,
                         task.source_dtype);
      task.target =
          move(static_cast<std::byte*>(task.target), task.target_head_stride, task.target_dtype);
      task.num_heads = 1;
      bool finite = true;
      task.all_finite = &finite;
      WAVEKV_RETURN_IF_ERROR(backend->ConvertRows({&task, 1}));
      if (finite) continue;
      return absl::InvalidArgumentError(fmt::format(
          "{} must be finite in {}, got NaN, infinity or a number out of its range in kv head {}",
          i == 0 ? "keys" : "values", DTypeName(options.model.kv_dtype), head));
    }
  }
  return absl::InvalidArgumentError("keys or values changed while they were appended");
}

absl::Status Engine::Impl::CheckFinite(const AppendSource& source, size_t sequence, int64_t row,
                                       int64_t position, int64_t num_rows) const {
  const ModelSpec& model = options.model;
  std::vector<std::byte> scratch(kChunkTokens * model.token_bytes());
  const RowTargets targets = SideBySide(
      scratch.data(), scratch.data() + kChunkTokens * model.num_kv_heads * model.key_row_bytes());
  ConvertTasks tasks;
  for (int64_t done = 0; done < num_rows;) {
    const RowRun run = source.Locate(sequence, row + done, position + done);
    const int64_t count = std::min({run.num_rows, num_rows - done, kChunkTokens});
    tasks.clear();
    AddConvertTasks(source, run, count, targets, tasks);
    WAVEKV_RETURN_IF_ERROR(Convert(absl::MakeSpan(tasks)));
    done += count;
  }
  return absl::OkStatus();
}

// All rows of the batch in one call: from the caller's strides and type to the chunks'.
absl::Status Engine::Impl::AppendOnCpu(absl::Span<const PendingAppend> appends,
                                       absl::Span<const int32_t> cu_seqlens,
                                       const AppendSource& source) const {
  ConvertTasks tasks;
  ForEachRun(appends, cu_seqlens, source,
             [&](const RowRun& run, int64_t, int64_t count, const RowChunk& chunk, int64_t first) {
               AddConvertTasks(source, run, count, InChunk(chunk, first), tasks);
             });
  if (cu_seqlens.back() * options.model.token_bytes() >= kPastCachesBytes) {
    for (ConvertRowsTask& task : tasks) task.past_caches = true;
  }
  return Convert(absl::MakeSpan(tasks));
}

absl::Status Engine::Impl::AppendOnGpu(absl::Span<const PendingAppend> appends,
                                       absl::Span<const int32_t> cu_seqlens,
                                       const AppendSource& source, Stream requested) const {
  const ModelSpec& model = options.model;
  WAVEKV_ASSIGN_OR_RETURN(const GpuStream stream, gpu->StreamFor(source.memory(), requested));
  GpuAppend append;
  append.tensors = {nullptr,
                    nullptr,
                    source.keys().dtype,
                    source.values().dtype,
                    source.keys().row_stride,
                    source.keys().head_stride,
                    source.values().row_stride,
                    source.values().head_stride};
  // Rows of the host's memory go through pinned memory, in the stored type.
  const bool on_host = source.memory() != Memory::kDevice;
  std::shared_ptr<GpuPiece> staged;
  const int64_t row_keys = model.num_kv_heads * model.key_row_bytes();
  const int64_t row_values = model.num_kv_heads * model.value_row_bytes();
  std::byte* staged_values = nullptr;
  if (on_host) {
    WAVEKV_ASSIGN_OR_RETURN(
        staged, gpu->context().AllocateStaging(cu_seqlens.back() * (row_keys + row_values)));
    staged_values = staged->data() + cu_seqlens.back() * row_keys;
    const int64_t heads = model.num_kv_heads;
    append.tensors = {nullptr,
                      nullptr,
                      model.kv_dtype,
                      model.kv_dtype,
                      heads * model.head_dim_k,
                      model.head_dim_k,
                      heads * model.head_dim_v,
                      model.head_dim_v};
  }
  ConvertTasks tasks;
  ForEachRun(
      appends, cu_seqlens, source,
      [&](const RowRun& run, int64_t row, int64_t count, const RowChunk& chunk, int64_t first) {
        AppendRun to{run.keys,
                     run.values,
                     0,
                     count,
                     chunk.keys(0, first),
                     chunk.values(0, first),
                     chunk.keys(1, 0) - chunk.keys(0, 0)};
        if (on_host) {
          to.keys = staged->data() + row * row_keys;
          to.values = staged_values + row * row_values;
          AddConvertTasks(
              source, run, count,
              SideBySide(staged->data() + row * row_keys, staged_values + row * row_values), tasks);
        }
        append.runs.push_back(to);
        append.rows_max = std::max(append.rows_max, count);
      });
  if (on_host) WAVEKV_RETURN_IF_ERROR(Convert(absl::MakeSpan(tasks)));
  // The chunks, which another call may let go of before they are written.
  auto chunks = std::make_shared<std::vector<std::shared_ptr<RowChunk>>>();
  for (const PendingAppend& pending : appends) {
    for (const RowSlice& slice : pending.slices()) chunks->push_back(slice.chunk);
  }
  struct Kept {
    std::shared_ptr<const void> chunks, staged;
  };
  return gpu->Append(append, std::make_shared<Kept>(Kept{std::move(chunks), std::move(staged)}),
                     stream);
}

absl::Status Engine::Impl::Append(absl::Span<const std::shared_ptr<StoredSequence>> sequences,
                                  absl::Span<const int32_t> cu_seqlens, int layer,
                                  const AppendSource& source, Stream stream) {
  const PhaseSpan span(observer.get(), Phase::kAppend, layer, cu_seqlens.back());
  PerSequence<SequenceWriter> writers;
  PerSequence<StoredSequence*> keep;
  writers.reserve(sequences.size());
  keep.reserve(sequences.size());
  for (const auto& sequence : sequences) {
    WAVEKV_ASSIGN_OR_RETURN(SequenceWriter writer, SequenceWriter::Acquire(sequence));
    writers.push_back(std::move(writer));
    keep.push_back(sequence.get());
  }
  const auto num_rows = [&](size_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  const auto length = [&](size_t i) { return sequences[i]->layer(layer).writer_length(); };
  for (size_t i = 0; i < sequences.size(); ++i) {
    WAVEKV_RETURN_IF_ERROR(source.Check(i, length(i), num_rows(i)));
  }

  // Sequences are evicted only for a batch that is sound and has a chance to fit.
  const auto may_evict_for = [&](const TenantStore& tenant) -> absl::Status {
    int64_t bytes = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (source.memory() != Memory::kDevice) {
        WAVEKV_RETURN_IF_ERROR(CheckFinite(source, i, cu_seqlens[i], length(i), num_rows(i)));
      }
      if (&sequences[i]->account() != &tenant.account()) continue;
      bytes += sequences[i]->layer(layer).AppendBytes(num_rows(i));
    }
    return tenant.CheckRoom(keep, bytes);
  };
  PerSequence<PendingAppend> appends;
  appends.reserve(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::shared_ptr<TenantStore> tenant = sequences[i]->tenant();
    if (tenant == nullptr) return SequenceNotFound();
    WAVEKV_ASSIGN_OR_RETURN(PendingAppend append,
                            tenant->WithEviction(
                                keep, [&] { return may_evict_for(*tenant); },
                                [&] {
                                  return sequences[i]->layer(layer).PrepareAppend(
                                      sequences[i]->account(), num_rows(i));
                                }));
    appends.push_back(std::move(append));
  }

  if (gpu != nullptr) {
    WAVEKV_RETURN_IF_ERROR(AppendOnGpu(appends, cu_seqlens, source, stream));
  } else {
    WAVEKV_RETURN_IF_ERROR(AppendOnCpu(appends, cu_seqlens, source));
  }

  for (size_t i = 0; i < appends.size(); ++i) {
    LayerCache& cache = sequences[i]->layer(layer);
    const bool decoding = num_rows(i) <= kDecodeRowsMax;
    cache.Commit(std::move(appends[i]));
    if (const auto cut = cache.Cut(decoding); !cut.empty()) {
      builds->Add(cache.RetryUnsealable(), sequences[i]->seal_target());
      builds->Add(cut, sequences[i]->seal_target());
      builds->AddMerges(cache.BeginMerges(), sequences[i]->seal_target(), sequences[i]->tenant(),
                        layer);
    }
    sequences[i]->Touch();
  }
  appended_tokens += cu_seqlens.back();
  return absl::OkStatus();
}

FetchLease Engine::Impl::AcquireFetch(PlanState& plan, int layer, BlockReader::TimePoint deadline) {
  if (row_tiers == nullptr) return {};
  const auto has_sealed = [](const SequenceView& view) {
    return std::any_of(view.pins.begin(), view.pins.end(),
                       [](const Segment::Pin& pin) { return pin.sealed != nullptr; });
  };
  const auto& views = plan.workspace.batch.views;
  if (std::none_of(views.begin(), views.end(), has_sealed)) return {};
  if (plan.step == 0 || layer <= plan.last_layer) plan.step = next_step.fetch_add(1);
  plan.last_layer = layer;
  return row_tiers->Acquire(plan.step, deadline);
}

absl::Status Engine::Impl::PinStep(PlanState& plan, int layer) const {
  AttendWorkspace& workspace = plan.workspace;
  workspace.batch.views.resize(plan.sequences.size());
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    SequenceView& view = workspace.batch.views[i];
    view.first_row = plan.cu_seqlens[i];
    view.num_rows = plan.cu_seqlens[i + 1] - plan.cu_seqlens[i];
    view.causal = plan.options.causal;
    PinLayer(*plan.sequences[i], layer, view);
    // Asked after pinning: a sequence that still exists now had all its tokens when they were
    // pinned.
    if (plan.sequences[i]->removed()) return SequenceNotFound();
    plan.sequences[i]->Touch();
  }
  return absl::OkStatus();
}

}  // namespace wavekv
