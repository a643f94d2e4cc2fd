// Where the rows of an append come from: the caller's tensor, or its paged cache.
#ifndef WAVEKV_API_APPEND_SOURCE_H_
#define WAVEKV_API_APPEND_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "wavekv/model_spec.h"
#include "wavekv/tensor_view.h"
#include "wavekv/types.h"

namespace wavekv {

// How rows follow one another in the source; strides in elements.
struct RowLayout {
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// Rows that lie in one stride: the first one's key and value of kv head 0, and how many there are.
struct RowRun {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  int64_t num_rows = 0;
};

class AppendSource {
 public:
  virtual ~AppendSource() = default;

  // Can num_rows rows be read for the batch's sequence `sequence`, which has `length` tokens so
  // far?
  virtual absl::Status Check(size_t sequence, int64_t length, int64_t num_rows) const = 0;

  // The run that begins with row `row` of the batch, which becomes position `position` of the
  // sequence.
  virtual RowRun Locate(size_t sequence, int64_t row, int64_t position) const = 0;

  // Where the rows lie; both in the same place. A page table is always the host's.
  virtual Memory memory() const = 0;

  const RowLayout& keys() const { return keys_; }
  const RowLayout& values() const { return values_; }

 protected:
  AppendSource(const RowLayout& keys, const RowLayout& values) : keys_(keys), values_(values) {}

 private:
  const RowLayout keys_;
  const RowLayout values_;
};

// Packed rows, as CheckTensor has passed them.
class TensorSource : public AppendSource {
 public:
  TensorSource(const TensorView& keys, const TensorView& values);

  Memory memory() const override { return key_view_.memory; }

  absl::Status Check(size_t, int64_t, int64_t) const override { return absl::OkStatus(); }
  RowRun Locate(size_t sequence, int64_t row, int64_t position) const override;

 private:
  const TensorView key_view_;
  const TensorView value_view_;
};

// Pages found through a table.
class PagedSource : public AppendSource {
 public:
  PagedSource(const PagedView& keys, const PagedView& values, const PageTable& table);

  // INVALID_ARGUMENT unless the views fit the model, each other and the table.
  absl::Status CheckViews(const ModelSpec& model, int64_t num_sequences,
                          bool device_too = false) const;

  Memory memory() const override { return key_view_.memory; }
  absl::Status Check(size_t sequence, int64_t length, int64_t num_rows) const override;
  RowRun Locate(size_t sequence, int64_t row, int64_t position) const override;

 private:
  int64_t Page(size_t sequence, int64_t position) const;

  const PagedView key_view_;
  const PagedView value_view_;
  const PageTable table_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_APPEND_SOURCE_H_
