// What was recorded of one head, wherever it lies.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_HEAD_H_
#define WAVEKV_TOOLS_TRACE_TRACE_HEAD_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "wavekv/types.h"

namespace wavekv {

// [num_rows, row_elements], row-major. The bytes are the caller's and may begin at any address: a
// mapped file aligns nothing.
struct RowsView {
  std::string name;  // for messages: "trace.safetensors: tensor 'layer0.kvhead0.k'"
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t num_rows = 0;
  int64_t row_elements = 0;
};

// What was recorded of one head. Nothing is copied: all of it outlives the evaluation.
struct TraceHead {
  RowsView keys;           // [num_tokens, head_dim_k], after RoPE
  RowsView values;         // [num_tokens, head_dim_v]
  RowsView queries;        // [num_queries, group_size * head_dim_k], after RoPE, not scaled
  int64_t head_dim_k = 0;  // at most 576, as is head_dim_v
  absl::Span<const int32_t> positions;  // [num_queries], any order: query i sees keys 0..position
  double softmax_scale = 0.0;
};

// Writes rows [first, first + count) as fp32, each divided into parts of part_elements elements
// that are filled up with zeros to padded_elements. INVALID_ARGUMENT naming tensor and row when one
// holds NaN or infinity. REQUIRES: the rows exist; part_elements divides row_elements and is at
// most padded_elements; out holds count * row_elements / part_elements * padded_elements floats.
absl::Status LoadRows(const RowsView& rows, int64_t first, int64_t count, int64_t part_elements,
                      int64_t padded_elements, float* out);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_HEAD_H_
