// Bytes: those of the rows, read and written once.
#include <algorithm>

#include "cuda/kernel.h"
#include "cuda/move_rows.h"
#include "cuda/step_parts.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kAppendThreads = 256;

// A warp a row of one kv head.
WAVEKV_KERNEL AppendKernel(const AppendRun* runs, AppendTensors tensors, KvShape shape,
                           int num_kv_heads, StepFlags* flags) {
  const AppendRun& run = runs[blockIdx.y];
  const int64_t warp = int64_t{blockIdx.x} * BlockWarps() + WarpIndex();
  const int64_t row = warp / num_kv_heads, head = warp % num_kv_heads;
  if (row >= run.num_rows) return;
  bool bad = false;
  const auto copy = [&](const void* from, DType dtype, int64_t at, int dim, std::byte* target) {
    for (int d = LaneIndex(); d < dim; d += kWarp) {
      const float x = LoadAs(from, dtype, at + d);
      StoreAs(target, shape.dtype, d, x);
      if (IsFinite(LoadAs(target, shape.dtype, d))) continue;
      bad = true;
      StoreAs(target, shape.dtype, d, 0.0f);
    }
  };
  const bool paged = run.keys != nullptr;
  const int64_t source_row = paged ? row : run.source_row + row;
  std::byte* const target = run.target_keys + head * run.target_head_bytes;
  copy(paged ? run.keys : tensors.keys, tensors.key_dtype,
       source_row * tensors.key_row_stride + head * tensors.key_head_stride, shape.head_dim_k,
       target + row * shape.head_dim_k * DTypeBytes(shape.dtype));
  std::byte* const target_values = run.target_values + head * run.target_head_bytes;
  copy(paged ? run.values : tensors.values, tensors.value_dtype,
       source_row * tensors.value_row_stride + head * tensors.value_head_stride, shape.head_dim_v,
       target_values + row * shape.head_dim_v * DTypeBytes(shape.dtype));
  if (bad) flags->bad_rows = 1;
}

// A warp a token.
WAVEKV_KERNEL UnsealKernel(UnsealTask task, std::byte* const* chunks, int64_t chunk_tokens,
                           int64_t head_offset) {
  const ClusterIndex& index = task.index;
  const int64_t token = int64_t{blockIdx.x} * BlockWarps() + WarpIndex();
  if (token >= index.num_tokens) return;
  const int64_t position = index.positions[token];
  if (position >= task.num_tokens) return;
  const int64_t cluster =
      FindLast(index.num_clusters, token, [&](int64_t c) { return int64_t{index.offsets[c]}; });
  const int64_t in_cluster = token - index.offsets[cluster];
  const int64_t key_bytes = index.key_row_bytes(), value_bytes = index.value_row_bytes();
  const std::byte* const key = index.cluster_keys(cluster) + in_cluster * key_bytes;
  const std::byte* const value = index.cluster_values(cluster) + in_cluster * value_bytes;
  std::byte* const head = chunks[position / chunk_tokens] + head_offset;
  const int64_t row = position % chunk_tokens;
  const auto copy = [&](const std::byte* from, int64_t bytes, std::byte* to) {
    // Rows are multiples of 16 bytes: head dims are multiples of 8.
    for (int64_t i = LaneIndex(); i < bytes / 16; i += kWarp) {
      reinterpret_cast<Bytes16*>(to)[i] = reinterpret_cast<const Bytes16*>(from)[i];
    }
  };
  copy(key, key_bytes, head + row * key_bytes);
  copy(value, value_bytes, head + chunk_tokens * key_bytes + row * value_bytes);
}

// A thread a token.
WAVEKV_KERNEL ListIndexRowsKernel(ClusterIndex index, TokenRow* rows) {
  const int64_t token = int64_t{blockIdx.x} * BlockThreads() + ThreadIndex();
  if (token >= index.num_tokens) return;
  const int64_t cluster =
      FindLast(index.num_clusters, token, [&](int64_t c) { return int64_t{index.offsets[c]}; });
  const int64_t in_cluster = token - index.offsets[cluster];
  rows[index.positions[token]] = {
      index.cluster_keys(cluster) + in_cluster * index.key_row_bytes(),
      index.cluster_values(cluster) + in_cluster * index.value_row_bytes()};
}

}  // namespace

absl::Status AppendRows(const AppendRun* runs, int64_t num_runs, int64_t rows_max,
                        const AppendTensors& tensors, const KvShape& shape, int num_kv_heads,
                        StepFlags* flags, GpuStream stream) {
  constexpr int64_t kRunsOfLaunch = 65535;  // a grid's y
  for (int64_t first = 0; first < num_runs; first += kRunsOfLaunch) {
    const GridShape grid = {Blocks(rows_max * num_kv_heads, kAppendThreads / kWarp),
                            static_cast<unsigned>(std::min(kRunsOfLaunch, num_runs - first))};
    const absl::Status status = Launch("AppendRows", AppendKernel, grid, kAppendThreads, 0, stream,
                                       runs + first, tensors, shape, num_kv_heads, flags);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ListIndexRows(const ClusterIndex& index, TokenRow* rows, GpuStream stream) {
  return Launch("ListIndexRows", ListIndexRowsKernel, {Blocks(index.num_tokens, kAppendThreads)},
                kAppendThreads, 0, stream, index, rows);
}

absl::Status UnsealRows(const UnsealTask& task, std::byte* const* chunks, int64_t chunk_tokens,
                        int64_t head_offset, GpuStream stream) {
  return Launch("UnsealRows", UnsealKernel, {Blocks(task.index.num_tokens, kAppendThreads / kWarp)},
                kAppendThreads, 0, stream, task, chunks, chunk_tokens, head_offset);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
