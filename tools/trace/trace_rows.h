// Rows of a recorded tensor, wherever they lie.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_ROWS_H_
#define WAVEKV_TOOLS_TRACE_TRACE_ROWS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
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

// Writes rows [first, first + count) as fp32, each divided into parts of part_elements elements
// that are filled up with zeros to padded_elements. INVALID_ARGUMENT naming tensor and row when one
// holds NaN or infinity. REQUIRES: the rows exist; part_elements divides row_elements and is at
// most padded_elements; out holds count * row_elements / part_elements * padded_elements floats.
absl::Status LoadRows(const RowsView& rows, int64_t first, int64_t count, int64_t part_elements,
                      int64_t padded_elements, float* out);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_ROWS_H_
