// Views of the caller's tensors. Nothing is owned, nothing is kept after the call that takes them.
#ifndef WAVEKV_STORAGE_TENSOR_VIEW_H_
#define WAVEKV_STORAGE_TENSOR_VIEW_H_

#include <cstdint>
#include <type_traits>

#include "wavekv/types.h"

namespace wavekv {

// A [num_rows, num_heads, head_dim] view with free row and head strides and feature stride 1, so
// that slices of a fused QKV projection, NHD and HND layouts all fit. Rows are packed tokens of a
// ragged batch. Strides count elements. Alignment to 16 bytes is the fast path, not a requirement.
template <typename Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  Memory memory = Memory::kHost;

  // Row-major and dense: element (r, h, d) is data[(r * num_heads + h) * head_dim + d].
  static BasicTensorView Dense(Void* data, DType dtype, int64_t num_rows, int64_t num_heads,
                               int64_t head_dim) {
    return {data,     dtype,        num_rows, num_heads, head_dim, num_heads * head_dim,
            head_dim, Memory::kHost};
  }

  // What can be written can be read.
  operator BasicTensorView<const void>() const requires(!std::is_const_v<Void>) {
    return {data, dtype, num_rows, num_heads, head_dim, row_stride, head_stride, memory};
  }
};

using TensorView = BasicTensorView<const void>;
using MutableTensorView = BasicTensorView<void>;

// A [num_rows, num_heads] view of one number a query head: a log-sum-exp, an error estimate. vLLM's
// [heads, tokens] and FlashInfer's [tokens, heads] differ in the strides alone. data == nullptr:
// the caller does not want them.
struct PerHeadView {
  float* data = nullptr;
  int64_t num_rows = 0;
  int64_t num_heads = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  // Row-major and dense: element (r, h) is data[r * num_heads + h].
  static PerHeadView Dense(float* data, int64_t num_rows, int64_t num_heads) {
    return {data, num_rows, num_heads, num_heads, 1};
  }
};

// The caller's own paged cache as a source: a [num_pages, page_tokens, num_heads, head_dim] view
// with free strides but feature stride 1, which covers NHD and HND pages, keys and values in one
// buffer, and all layers in one page. Strides count elements.
struct PagedView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t num_pages = 0;
  int64_t page_tokens = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t page_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  Memory memory = Memory::kHost;
};

// [num_sequences, pages_max] page numbers: position p of sequence i lies in slot p % page_tokens of
// page data[i * row_stride + p / page_tokens]. Entries that no call reads may hold anything.
struct PageTable {
  const int32_t* data = nullptr;
  int64_t num_sequences = 0;
  int64_t pages_max = 0;
  int64_t row_stride = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_TENSOR_VIEW_H_
