#ifndef WAVEKV_CUDA_ATTEND_ROWS_H_
#define WAVEKV_CUDA_ATTEND_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/gpu_types.h"
#include "storage/kv_range.h"

namespace wavekv {

// Exact attention on GPUs: what compute/attend_rows.h says, over ranges of rows and over single
// rows.
//
// Shapes: queries [num_queries, head_dim_k] fp32, scaled; ranges [num_ranges], and range_begins
// [num_ranges + 1] how many tokens stand before each; rows [*num_rows] (nullptr: none). visible_end
// [num_queries] masks tokens of ranges; single rows are always visible. The tokens, ranges first,
// are divided into as many splits as the launch says, each of whose states is written on its own:
// output [num_splits, num_queries, head_dim_v], lse [num_splits, num_queries], 0 and -infinity for
// a split without tokens. How they are divided depends on the numbers of tokens and splits alone.
struct GpuAttendTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const int64_t* visible_end = nullptr;
  const KvRange* ranges = nullptr;
  const int64_t* range_begins = nullptr;
  int64_t num_ranges = 0;
  const TokenRow* rows = nullptr;
  const int64_t* num_rows = nullptr;
  float* output = nullptr;
  float* lse = nullptr;
};

}  // namespace wavekv

// Bounds: shape, num_queries.
WAVEKV_GPU_OPERATION(absl::Status AttendRows(GpuTasks<GpuAttendTask> tasks,
                                             const TaskBounds& bounds, int num_splits,
                                             GpuStream stream))

#endif  // WAVEKV_CUDA_ATTEND_ROWS_H_
