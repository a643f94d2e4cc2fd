// Tensors as callers hold them: any element type, any strides, in one piece or in pages.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_TENSORS_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/testing/random.h"
#include "wavekv/tensor_view.h"

namespace wavekv::testing {

DType DrawDType(Random& random);

// Rows [num_rows, num_heads, head_dim] of random numbers: mostly gaussian, sometimes only a few
// different ones or all the same, which is where clustering is hard.
std::vector<float> DrawRows(Random& random, int64_t num_rows, int64_t num_heads, int64_t head_dim);

// A tensor with drawn dtype and strides. What lies between its elements is kFiller, all bits set:
// NaN in every type.
class CallerTensor {
 public:
  static constexpr std::byte kFiller{0xff};

  CallerTensor(Random& random, int64_t num_rows, int64_t num_heads, int64_t head_dim);
  CallerTensor(const CallerTensor&) = delete;
  CallerTensor& operator=(const CallerTensor&) = delete;

  // values [num_rows, num_heads, head_dim]; rounds them to the tensor's dtype on both sides.
  void Fill(std::vector<float>& values);

  TensorView view() const { return view_; }
  MutableTensorView mutable_view();

  std::vector<float> Read() const;
  // Whether nothing was written beside the elements. REQUIRES: as it was constructed, then written
  // to through mutable_view() alone.
  bool FillerIsIntact() const;

 private:
  int64_t ElementOf(int64_t row, int64_t head, int64_t d) const {
    return row * view_.row_stride + head * view_.head_stride + d;
  }
  template <typename Visit>
  void ForEachElement(const Visit& visit) const;

  std::vector<std::byte> bytes_;
  TensorView view_;
};

// The rows of a batch in the caller's own paged cache.
class CallerPages {
 public:
  // Sequence i has lengths[i] tokens before rows [cu_seqlens[i], cu_seqlens[i + 1]) of `rows`
  // [num_rows, num_heads, head_dim]; these are rounded to the drawn dtype.
  CallerPages(Random& random, const std::vector<int64_t>& lengths,
              const std::vector<int32_t>& cu_seqlens, int64_t num_heads, int64_t head_dim_k,
              int64_t head_dim_v, std::vector<float>& key_rows, std::vector<float>& value_rows);

  PagedView keys() const { return keys_.view; }
  PagedView values() const { return values_.view; }
  PageTable table() const;

 private:
  struct Pool {
    std::vector<std::byte> bytes;
    PagedView view;
  };
  Pool MakePool(Random& random, int64_t num_pages, int64_t num_heads, int64_t head_dim) const;

  int64_t page_tokens_;
  int64_t num_sequences_;
  int64_t pages_max_ = 0;
  std::vector<int32_t> table_;
  Pool keys_;
  Pool values_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_TENSORS_H_
