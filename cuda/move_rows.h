#ifndef WAVEKV_CUDA_MOVE_ROWS_H_
#define WAVEKV_CUDA_MOVE_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/step.h"
#include "storage/cluster_index.h"

namespace wavekv {

// Rows of keys and values to be appended. Row i of a run lies at source row `source_row` + i of the
// tensors or, where they are pages, at keys and values; it is written behind the first ones.
struct AppendRun {
  const std::byte* keys = nullptr;  // nullptr: by source_row
  const std::byte* values = nullptr;
  int64_t source_row = 0;
  int64_t num_rows = 0;
  std::byte* target_keys = nullptr;  // of kv head 0
  std::byte* target_values = nullptr;
  int64_t target_head_bytes = 0;
};
struct AppendTensors {
  const void* keys = nullptr;
  const void* values = nullptr;
  DType key_dtype = DType::kFloat32;
  DType value_dtype = DType::kFloat32;
  int64_t key_row_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_row_stride = 0;
  int64_t value_head_stride = 0;
};

// Rows of a sealed segment, back into chunks in the order of positions.
struct UnsealTask {
  ClusterIndex index;
  int64_t num_tokens = 0;  // the first ones
};

}  // namespace wavekv

// AppendRows: runs [num_runs] in device memory, of at most rows_max rows. Elements that are not
// finite in the stored type are stored as 0 and flagged. UnsealRows: chunk c of `chunks`, of
// chunk_tokens rows, gets the rows of positions c * chunk_tokens and following; head_offset is what
// the head's rows begin at in a chunk. ListIndexRows: rows[p] is that of the token at position
// index.position_begin + p.
WAVEKV_GPU_OPERATION(
    absl::Status AppendRows(const AppendRun* runs, int64_t num_runs, int64_t rows_max,
                            const AppendTensors& tensors, const KvShape& shape, int num_kv_heads,
                            StepFlags* flags, GpuStream stream);
    absl::Status ListIndexRows(const ClusterIndex& index, TokenRow* rows, GpuStream stream);
    absl::Status UnsealRows(const UnsealTask& task, std::byte* const* chunks, int64_t chunk_tokens,
                            int64_t head_offset, GpuStream stream))

#endif  // WAVEKV_CUDA_MOVE_ROWS_H_
