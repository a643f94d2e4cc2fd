#ifndef WAVEKV_COMPUTE_ATTEND_ROWS_H_
#define WAVEKV_COMPUTE_ATTEND_ROWS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "storage/kv_range.h"

namespace wavekv {

// Exact attention of some queries over ranges of rows, read in place and once for all queries.
//
// Shapes: queries [num_queries, head_dim_k] fp32, already multiplied by the softmax scale
// query_scale, which is only told because what they were before may be of fewer bits; output
// [num_queries, head_dim_v] fp32, normalised; lse [num_queries], natural logarithm.
// Mask: query i sees the tokens whose position is < visible_end[i]; visible_end == nullptr: all
// tokens. A query that sees nothing gets output 0 and lse -infinity. Order: tokens are reduced in
// the order of `ranges`, whatever the number of threads.
struct AttendRowsTask {
  const float* queries = nullptr;
  int num_queries = 0;
  float query_scale = 1.0f;
  const int64_t* visible_end = nullptr;
  KvShape shape;
  absl::Span<const KvRange> ranges;
  float* output = nullptr;
  float* lse = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ATTEND_ROWS_H_
