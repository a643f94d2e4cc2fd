#include "api/append_source.h"

#include <limits>

#include "api/check_arguments.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

const std::byte* ElementAt(const void* data, DType dtype, int64_t element) {
  return static_cast<const std::byte*>(data) + element * DTypeBytes(dtype);
}

// One page as a tensor, for the checks that all tensors get.
TensorView PageAsTensor(const PagedView& view) {
  return {view.data,     view.dtype,        view.page_tokens, view.num_heads,
          view.head_dim, view.token_stride, view.head_stride, view.memory};
}

absl::Status CheckPages(const char* name, const PagedView& view, int64_t num_heads,
                        int64_t head_dim, bool device_too) {
  if (view.num_pages < 1 || view.page_tokens < 1) {
    return absl::InvalidArgumentError(
        fmt::format("{} must have at least one page of at least one token, got {} pages of {}",
                    name, view.num_pages, view.page_tokens));
  }
  WAVEKV_RETURN_IF_ERROR(
      CheckTensor({name, view.page_tokens, num_heads, head_dim, device_too}, PageAsTensor(view)));
  const int64_t stride_max = std::numeric_limits<int64_t>::max() / 16 / view.num_pages;
  if (view.page_stride > stride_max || view.page_stride < -stride_max) {
    return absl::InvalidArgumentError(fmt::format("{}.page_stride times {} overflows, got {}", name,
                                                  view.num_pages, view.page_stride));
  }
  return absl::OkStatus();
}

}  // namespace

TensorSource::TensorSource(const TensorView& keys, const TensorView& values)
    : AppendSource({keys.dtype, keys.row_stride, keys.head_stride},
                   {values.dtype, values.row_stride, values.head_stride}),
      key_view_(keys),
      value_view_(values) {}

RowRun TensorSource::Locate(size_t, int64_t row, int64_t) const {
  return {ElementAt(key_view_.data, key_view_.dtype, row * key_view_.row_stride),
          ElementAt(value_view_.data, value_view_.dtype, row * value_view_.row_stride),
          key_view_.num_rows - row};
}

PagedSource::PagedSource(const PagedView& keys, const PagedView& values, const PageTable& table)
    : AppendSource({keys.dtype, keys.token_stride, keys.head_stride},
                   {values.dtype, values.token_stride, values.head_stride}),
      key_view_(keys),
      value_view_(values),
      table_(table) {}

absl::Status PagedSource::CheckViews(const ModelSpec& model, int64_t num_sequences,
                                     bool device_too) const {
  WAVEKV_RETURN_IF_ERROR(
      CheckPages("keys", key_view_, model.num_kv_heads, model.head_dim_k, device_too));
  WAVEKV_RETURN_IF_ERROR(
      CheckPages("values", value_view_, model.num_kv_heads, model.head_dim_v, device_too));
  WAVEKV_RETURN_IF_ERROR(CheckSameMemory("keys", key_view_.memory, "values", value_view_.memory));
  if (value_view_.page_tokens != key_view_.page_tokens) {
    return absl::InvalidArgumentError(
        fmt::format("values.page_tokens must be that of keys ({}), got {}", key_view_.page_tokens,
                    value_view_.page_tokens));
  }
  if (table_.num_sequences != num_sequences || table_.pages_max < 0) {
    return absl::InvalidArgumentError(
        fmt::format("table must have shape [{}, pages_max >= 0] (sequences, pages), got [{}, {}]",
                    num_sequences, table_.num_sequences, table_.pages_max));
  }
  if (table_.data == nullptr && num_sequences > 0) {
    return absl::InvalidArgumentError("table.data must not be null");
  }
  const int64_t stride_max = std::numeric_limits<int64_t>::max() / 16 / (num_sequences + 1);
  if (num_sequences > 1 &&
      (table_.row_stride < table_.pages_max || table_.row_stride > stride_max)) {
    return absl::InvalidArgumentError(
        fmt::format("table.row_stride must be in [{}, {}] (pages_max, so that rows do not overlap, "
                    "and what does not overflow), got {}",
                    table_.pages_max, stride_max, table_.row_stride));
  }
  return absl::OkStatus();
}

absl::Status PagedSource::Check(size_t sequence, int64_t length, int64_t num_rows) const {
  if (num_rows == 0) return absl::OkStatus();
  const int64_t page_tokens = key_view_.page_tokens;
  const int64_t last = (length + num_rows - 1) / page_tokens;
  if (last >= table_.pages_max) {
    return absl::InvalidArgumentError(fmt::format(
        "table.pages_max must be at least {} for {} tokens of the batch's sequence {}, got {}",
        last + 1, length + num_rows, sequence, table_.pages_max));
  }
  for (int64_t i = length / page_tokens; i <= last; ++i) {
    const int64_t page = Page(sequence, i * page_tokens);
    if (page < 0 || page >= key_view_.num_pages || page >= value_view_.num_pages) {
      return absl::InvalidArgumentError(
          fmt::format("table[{}][{}] must be in [0, {}) for keys and [0, {}) for values, got {}",
                      sequence, i, key_view_.num_pages, value_view_.num_pages, page));
    }
  }
  return absl::OkStatus();
}

RowRun PagedSource::Locate(size_t sequence, int64_t, int64_t position) const {
  const int64_t page = Page(sequence, position);
  const int64_t slot = position % key_view_.page_tokens;
  const auto at = [&](const PagedView& view) {
    return ElementAt(view.data, view.dtype, page * view.page_stride + slot * view.token_stride);
  };
  return {at(key_view_), at(value_view_), key_view_.page_tokens - slot};
}

int64_t PagedSource::Page(size_t sequence, int64_t position) const {
  return table_
      .data[static_cast<int64_t>(sequence) * table_.row_stride + position / key_view_.page_tokens];
}

}  // namespace wavekv
