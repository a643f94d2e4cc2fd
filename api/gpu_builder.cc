#include "api/gpu_builder.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "api/gpu_tables.h"
#include "cuda/workspace_layout.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

TaskBounds BoundsOf(const ModelSpec& model, const IndexOptions& index, int64_t num_tokens) {
  TaskBounds bounds;
  bounds.shape = {model.head_dim_k, model.head_dim_v, model.kv_dtype};
  bounds.statistics = index.statistics;
  bounds.code_bits = ResolveCodeBits(index.code_bits, model.head_dim_k);
  bounds.num_items = num_tokens;
  return bounds;
}

GpuClusteringOptions ClusteringOf(const IndexOptions& index) {
  return {index.tokens_per_cluster, index.cluster_tokens_max, index.kmeans_iterations,
          index.clusters_per_super, index.seed};
}

}  // namespace

GpuBuilder::Buffers GpuBuilder::LayOut(const GpuOperations& operations, const ModelSpec& model,
                                       const IndexOptions& index, std::byte* base) {
  Buffers buffers;
  WorkspaceLayout layout(base);
  const int64_t heads = model.num_kv_heads, tokens = index.segment_tokens;
  layout.Place(buffers.list_tasks, heads);
  layout.Place(buffers.cluster_tasks, heads);
  layout.Place(buffers.write_tasks, heads);
  layout.Place(buffers.ranges, heads * (tokens / kChunkTokens + 1));
  layout.Place(buffers.rows, heads * tokens);
  layout.Place(buffers.offsets, heads * (tokens + 1));
  layout.Place(buffers.members, heads * (tokens + 1));
  layout.Place(buffers.super_offsets, heads * (tokens + 1));
  layout.Place(buffers.counts, heads * 2);
  const TaskBounds bounds = BoundsOf(model, index, tokens);
  layout.Place(buffers.scratch,
               heads * std::max(operations.cluster_scratch_bytes(bounds, ClusteringOf(index)),
                                operations.write_index_scratch_bytes(bounds)));
  buffers.bytes = layout.used();
  return buffers;
}

int64_t GpuBuilder::WorkspaceBytes(const GpuOperations& operations, const ModelSpec& model,
                                   const IndexOptions& index) {
  return LayOut(operations, model, index, nullptr).bytes;
}

absl::StatusOr<std::unique_ptr<GpuBuilder>> GpuBuilder::Create(std::shared_ptr<GpuContext> context,
                                                               const ModelSpec& model,
                                                               const IndexOptions& index) {
  std::unique_ptr<GpuBuilder> builder(new GpuBuilder(context, model, index));
  WAVEKV_ASSIGN_OR_RETURN(builder->stream_, GpuOwnStream::Create(context->shared_gpu()));
  WAVEKV_ASSIGN_OR_RETURN(builder->event_, GpuEvent::Create(context->shared_gpu()));
  WAVEKV_ASSIGN_OR_RETURN(builder->workspace_, context->AllocateWorkspace(WorkspaceBytes(
                                                   context->operations(), model, index)));
  builder->buffers_ = LayOut(context->operations(), model, index, builder->workspace_->data());
  return builder;
}

absl::Status GpuBuilder::Await() {
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Record(event_.get(), stream_.get()));
  return context_->gpu().Await(event_.get());
}

template <typename T>
absl::Status GpuBuilder::Upload(const std::vector<T>& values, T* target) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> staging,
                          context_->AllocateStaging(bytes));
  std::memcpy(staging->data(), static_cast<const void*>(values.data()), static_cast<size_t>(bytes));
  WAVEKV_RETURN_IF_ERROR(context_->gpu().Copy(target, staging->data(), bytes, stream_.get()));
  return context_->Retire(stream_.get(), staging);
}

absl::Status GpuBuilder::ListRows(absl::Span<const GpuBuildSource> heads, int64_t begin) {
  std::vector<KvRange> ranges;
  std::vector<GpuListRowsTask> tasks;
  int64_t most = 0;
  for (size_t h = 0; h < heads.size(); ++h) {
    TokenRow* const rows = buffers_.rows + static_cast<int64_t>(h) * index_.segment_tokens;
    for (const ClusterIndex* part : heads[h].parts) {
      WAVEKV_RETURN_IF_ERROR(context_->operations().list_index_rows(
          *part, rows + (part->position_begin - begin), stream_.get()));
    }
    if (heads[h].ranges.empty()) continue;
    GpuListRowsTask task;
    task.ranges = buffers_.ranges + ranges.size();
    task.num_ranges = static_cast<int64_t>(heads[h].ranges.size());
    task.position_begin = begin;
    task.rows = rows;
    tasks.push_back(task);
    ranges.insert(ranges.end(), heads[h].ranges.begin(), heads[h].ranges.end());
    most = std::max(most, task.num_ranges);
  }
  if (tasks.empty()) return absl::OkStatus();
  WAVEKV_RETURN_IF_ERROR(Upload(ranges, buffers_.ranges));
  WAVEKV_RETURN_IF_ERROR(Upload(tasks, buffers_.list_tasks));
  const TaskBounds bounds = BoundsOf(model_, index_, most * kChunkTokens);
  return context_->operations().list_rows({buffers_.list_tasks, static_cast<int64_t>(tasks.size())},
                                          bounds, stream_.get());
}

absl::StatusOr<std::vector<SealedHead>> GpuBuilder::Build(absl::Span<const GpuBuildSource> heads,
                                                          int64_t begin, int64_t num_tokens,
                                                          MemoryAccount& account) {
  const GpuScope scope(context_->gpu());
  std::vector<SealedHead> sealed(heads.size());
  const absl::Status queued = Queue(heads, begin, num_tokens, account, sealed);
  // In any case: what has been queued reads and writes memory that is let go of now. Whatever is
  // queued after it sees what it wrote, so no other stream need wait for this one.
  const absl::Status done = Await();
  WAVEKV_RETURN_IF_ERROR(queued);
  WAVEKV_RETURN_IF_ERROR(done);
  context_->Collect();
  return sealed;
}

// What running calls hold of removed sequences is freed when they end.
absl::StatusOr<Extent> GpuBuilder::Allocate(MemoryAccount& account, int64_t bytes) {
  auto extent = account.Allocate(bytes);
  if (!extent.ok() && context_->CollectAll()) extent = account.Allocate(bytes);
  return extent;
}

absl::Status GpuBuilder::Queue(absl::Span<const GpuBuildSource> heads, int64_t begin,
                               int64_t num_tokens, MemoryAccount& account,
                               std::vector<SealedHead>& sealed) {
  const GpuOperations& operations = context_->operations();
  const GpuStream stream = stream_.get();
  const auto num_heads = static_cast<int64_t>(heads.size());
  const TaskBounds bounds = BoundsOf(model_, index_, num_tokens);
  WAVEKV_RETURN_IF_ERROR(context_->BeginUse(stream));
  WAVEKV_RETURN_IF_ERROR(ListRows(heads, begin));
  std::vector<GpuClusterTask> cluster_tasks;
  for (int64_t h = 0; h < num_heads; ++h) {
    GpuClusterTask task;
    task.rows = buffers_.rows + h * index_.segment_tokens;
    task.num_tokens = num_tokens;
    task.offsets = buffers_.offsets + h * (index_.segment_tokens + 1);
    task.members = buffers_.members + h * (index_.segment_tokens + 1);
    task.super_offsets = buffers_.super_offsets + h * (index_.segment_tokens + 1);
    task.counts = buffers_.counts + h * 2;
    cluster_tasks.push_back(task);
  }
  WAVEKV_RETURN_IF_ERROR(Upload(cluster_tasks, buffers_.cluster_tasks));
  WAVEKV_RETURN_IF_ERROR(operations.cluster_segments(
      {buffers_.cluster_tasks, num_heads}, bounds, ClusteringOf(index_), buffers_.scratch, stream));
  const auto count_bytes = num_heads * 2 * static_cast<int64_t>(sizeof(uint32_t));
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> counts,
                          context_->AllocateStaging(count_bytes));
  WAVEKV_RETURN_IF_ERROR(
      context_->gpu().Copy(counts->data(), buffers_.counts, count_bytes, stream));
  WAVEKV_RETURN_IF_ERROR(Await());

  std::vector<GpuWriteIndexTask> write_tasks;
  WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> records,
                          context_->AllocateStaging(num_heads * (kIndexRecordBytes + 64)));
  for (int64_t h = 0; h < num_heads; ++h) {
    const uint32_t* const count = reinterpret_cast<const uint32_t*>(counts->data()) + 2 * h;
    ClusterIndexShape shape;
    shape.kv = bounds.shape;
    shape.statistics = bounds.statistics;
    shape.code_bits = bounds.code_bits;
    shape.num_clusters = count[0];
    shape.num_supers = count[1];
    shape.num_tokens = num_tokens;
    WAVEKV_ASSIGN_OR_RETURN(sealed[h].extent,
                            Allocate(account, kIndexRecordBytes + ClusterIndexBytes(shape)));
    std::byte* const extent = sealed[h].extent.data();
    const GpuClusterTask& clustering = cluster_tasks[h];
    GpuWriteIndexTask task;
    task.rows = clustering.rows;
    task.offsets = clustering.offsets;
    task.members = clustering.members;
    task.super_offsets = clustering.super_offsets;
    task.out = LocateClusterIndex(extent + kIndexRecordBytes, shape, begin);
    write_tasks.push_back(task);
    sealed[h].index = ReadOnly(task.out);
    // The record for kernels, and the header of the index behind it, in one copy.
    std::byte* const record = records->data() + h * (kIndexRecordBytes + 64);
    std::memset(record, 0, kIndexRecordBytes + 64);
    std::memcpy(record, &sealed[h].index, sizeof(ClusterIndex));
    const ClusterIndexHeader header = HeaderOf(shape, begin);
    std::memcpy(record + kIndexRecordBytes, &header, sizeof(header));
  }
  // What was allocated is being zeroed by now.
  WAVEKV_RETURN_IF_ERROR(context_->BeginUse(stream));
  for (int64_t h = 0; h < num_heads; ++h) {
    WAVEKV_RETURN_IF_ERROR(context_->gpu().Copy(
        sealed[h].extent.data(), records->data() + h * (kIndexRecordBytes + 64),
        kIndexRecordBytes + static_cast<int64_t>(sizeof(ClusterIndexHeader)), stream));
  }
  WAVEKV_RETURN_IF_ERROR(Upload(write_tasks, buffers_.write_tasks));
  WAVEKV_RETURN_IF_ERROR(operations.write_indexes({buffers_.write_tasks, num_heads}, bounds,
                                                  buffers_.scratch, stream));
  return context_->Retire(stream, records);
}

}  // namespace wavekv
