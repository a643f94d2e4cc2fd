#include "api/check_arguments.h"

#include <cstdlib>
#include <limits>

#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

template <typename... Args>
absl::Status Invalid(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

// A stride must step over what it separates and keep every offset within 64 bits of bytes.
absl::Status CheckStride(const char* name, const char* which, int64_t stride, int64_t count,
                         int64_t at_least) {
  if (count <= 1) return absl::OkStatus();
  const int64_t magnitude_max = std::numeric_limits<int64_t>::max() / 16 / count;
  if (stride > magnitude_max || stride < -magnitude_max) {
    return Invalid("{}.{} times {} overflows, got {}", name, which, count, stride);
  }
  if (std::abs(stride) < at_least) {
    return Invalid("{}.{} must be at least {} elements, so that rows do not overlap, got {}", name,
                   which, at_least, stride);
  }
  return absl::OkStatus();
}

// Elements of `width` that are written must not share memory: whole heads lie between rows, or
// whole rows between heads. The strides have passed CheckStride.
absl::Status CheckDisjoint(const char* name, int64_t num_rows, int64_t row_stride,
                           int64_t num_heads, int64_t head_stride, int64_t width) {
  if (num_rows <= 1 || num_heads <= 1) return absl::OkStatus();
  const int64_t row_step = std::abs(row_stride);
  const int64_t head_step = std::abs(head_stride);
  if (row_step >= (num_heads - 1) * head_step + width) return absl::OkStatus();
  if (head_step >= (num_rows - 1) * row_step + width) return absl::OkStatus();
  return Invalid("{}.row_stride and head_stride must keep {} rows of {} heads apart, got {} and {}",
                 name, num_rows, num_heads, row_stride, head_stride);
}

}  // namespace

absl::Status CheckTensor(const ExpectedTensor& expected, const TensorView& tensor) {
  const char* name = expected.name;
  if (tensor.num_rows != expected.num_rows || tensor.num_heads != expected.num_heads ||
      tensor.head_dim != expected.head_dim) {
    return Invalid("{} must have shape [{}, {}, {}] (rows, heads, head_dim), got [{}, {}, {}]",
                   name, expected.num_rows, expected.num_heads, expected.head_dim, tensor.num_rows,
                   tensor.num_heads, tensor.head_dim);
  }
  if (DTypeBytes(tensor.dtype) == 0) {
    return Invalid("{}.dtype must be fp32, fp16 or bf16, got {}", name,
                   static_cast<int>(tensor.dtype));
  }
  const bool on_device = tensor.memory == Memory::kDevice;
  if (tensor.memory != Memory::kHost && tensor.memory != Memory::kPinnedHost &&
      !(on_device && expected.device_too)) {
    return absl::UnimplementedError(
        fmt::format("{}.memory must be host memory in a CPU engine, got {}", name,
                    static_cast<int>(tensor.memory)));
  }
  if (tensor.num_rows == 0) return absl::OkStatus();
  if (tensor.data == nullptr) return Invalid("{}.data must not be null", name);
  if (reinterpret_cast<uintptr_t>(tensor.data) % DTypeBytes(tensor.dtype) != 0) {
    return Invalid("{}.data must be aligned to its {}-byte elements, got {}", name,
                   DTypeBytes(tensor.dtype), fmt::ptr(tensor.data));
  }
  WAVEKV_RETURN_IF_ERROR(
      CheckStride(name, "head_stride", tensor.head_stride, tensor.num_heads, tensor.head_dim));
  return CheckStride(name, "row_stride", tensor.row_stride, tensor.num_rows, tensor.head_dim);
}

absl::Status CheckTensor(const ExpectedTensor& expected, const MutableTensorView& tensor) {
  WAVEKV_RETURN_IF_ERROR(CheckTensor(expected, TensorView(tensor)));
  return CheckDisjoint(expected.name, tensor.num_rows, tensor.row_stride, tensor.num_heads,
                       tensor.head_stride, tensor.head_dim);
}

absl::Status CheckPerHead(const char* name, int64_t num_rows, int64_t num_heads,
                          const PerHeadView& view) {
  if (view.data == nullptr) return absl::OkStatus();
  if (view.num_rows != num_rows || view.num_heads != num_heads) {
    return Invalid("{} must have shape [{}, {}] (rows, heads), got [{}, {}]", name, num_rows,
                   num_heads, view.num_rows, view.num_heads);
  }
  if (reinterpret_cast<uintptr_t>(view.data) % sizeof(float) != 0) {
    return Invalid("{}.data must be aligned to its 4-byte elements, got {}", name,
                   fmt::ptr(view.data));
  }
  WAVEKV_RETURN_IF_ERROR(CheckStride(name, "head_stride", view.head_stride, num_heads, 1));
  WAVEKV_RETURN_IF_ERROR(CheckStride(name, "row_stride", view.row_stride, num_rows, 1));
  return CheckDisjoint(name, num_rows, view.row_stride, num_heads, view.head_stride, 1);
}

absl::Status CheckSameMemory(const char* name, Memory memory, const char* other_name,
                             Memory other) {
  if ((memory == Memory::kDevice) == (other == Memory::kDevice)) return absl::OkStatus();
  return Invalid(
      "{}.memory and {}.memory must both be the device's or both the host's, got {} and {}", name,
      other_name, static_cast<int>(memory), static_cast<int>(other));
}

absl::Status CheckCuSeqlens(absl::Span<const int32_t> cu_seqlens, int64_t num_sequences) {
  if (static_cast<int64_t>(cu_seqlens.size()) != num_sequences + 1) {
    return Invalid("cu_seqlens must have {} entries (sequences + 1), got {}", num_sequences + 1,
                   cu_seqlens.size());
  }
  if (cu_seqlens[0] != 0) return Invalid("cu_seqlens[0] must be 0, got {}", cu_seqlens[0]);
  for (size_t i = 1; i < cu_seqlens.size(); ++i) {
    if (cu_seqlens[i] < cu_seqlens[i - 1]) {
      return Invalid("cu_seqlens must not decrease, got {} after {} at {}", cu_seqlens[i],
                     cu_seqlens[i - 1], i);
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
