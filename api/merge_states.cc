#include "wavekv/merge_states.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "api/check_arguments.h"
#include "fmt/format.h"
#include "storage/float16.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

float LoadLse(const PerHeadView& lse, int64_t row, int64_t head) {
  return lse.data[row * lse.row_stride + head * lse.head_stride];
}

int64_t ElementOffset(const TensorView& tensor, int64_t row, int64_t head) {
  return row * tensor.row_stride + head * tensor.head_stride;
}

}  // namespace

absl::Status CheckMergeArguments(absl::Span<const TensorView> outputs,
                                 absl::Span<const PerHeadView> lses, LseBase base,
                                 const MutableTensorView& output, const PerHeadView& lse,
                                 bool device_too) {
  if (outputs.empty() || outputs.size() != lses.size()) {
    return absl::InvalidArgumentError(
        fmt::format("outputs and lses must be equally many and at least one, got {} and {}",
                    outputs.size(), lses.size()));
  }
  if (base != LseBase::kE && base != LseBase::k2) {
    return absl::InvalidArgumentError(
        fmt::format("base must be kE or k2, got {}", static_cast<int>(base)));
  }
  if (output.num_rows < 0 || output.num_heads < 0 || output.head_dim < 1) {
    return absl::InvalidArgumentError(
        fmt::format("output must have a shape of at least [0, 0, 1] (rows, heads, head_dim), got "
                    "[{}, {}, {}]",
                    output.num_rows, output.num_heads, output.head_dim));
  }
  const ExpectedTensor expected{"outputs[]", output.num_rows, output.num_heads, output.head_dim,
                                device_too};
  WAVEKV_RETURN_IF_ERROR(CheckTensor(
      {"output", output.num_rows, output.num_heads, output.head_dim, device_too}, output));
  WAVEKV_RETURN_IF_ERROR(CheckPerHead("lse", output.num_rows, output.num_heads, lse));
  for (size_t s = 0; s < outputs.size(); ++s) {
    WAVEKV_RETURN_IF_ERROR(CheckTensor(expected, outputs[s]));
    WAVEKV_RETURN_IF_ERROR(
        CheckSameMemory("outputs[]", outputs[s].memory, "output", output.memory));
    WAVEKV_RETURN_IF_ERROR(CheckPerHead("lses[]", output.num_rows, output.num_heads, lses[s]));
    if (lses[s].data == nullptr && output.num_rows > 0) {
      return absl::InvalidArgumentError(fmt::format("lses[{}].data must not be null", s));
    }
  }
  return absl::OkStatus();
}

absl::Status MergeStates(absl::Span<const TensorView> outputs, absl::Span<const PerHeadView> lses,
                         LseBase base, const MutableTensorView& output, const PerHeadView& lse) {
  WAVEKV_RETURN_IF_ERROR(
      CheckMergeArguments(outputs, lses, base, output, lse, /*device_too=*/false));
  for (size_t s = 0; s < outputs.size(); ++s) {
    for (int64_t row = 0; row < output.num_rows; ++row) {
      for (int64_t head = 0; head < output.num_heads; ++head) {
        const float value = LoadLse(lses[s], row, head);
        if (!std::isnan(value) && value != std::numeric_limits<float>::infinity()) continue;
        return absl::InvalidArgumentError(
            fmt::format("lses[{}] must be finite or -infinity, got {} at row {}, head {}", s, value,
                        row, head));
      }
    }
  }

  const float to_natural = base == LseBase::k2 ? std::log(2.0f) : 1.0f;
  std::vector<float> weights(outputs.size());
  for (int64_t row = 0; row < output.num_rows; ++row) {
    for (int64_t head = 0; head < output.num_heads; ++head) {
      float top = kEmpty;
      for (const PerHeadView& view : lses) top = std::max(top, LoadLse(view, row, head));
      float sum = 0.0f;
      for (size_t s = 0; s < weights.size(); ++s) {
        // With all states empty the difference would be NaN.
        weights[s] =
            top == kEmpty ? 0.0f : std::exp((LoadLse(lses[s], row, head) - top) * to_natural);
        sum += weights[s];
      }
      const int64_t offset = row * output.row_stride + head * output.head_stride;
      for (int64_t d = 0; d < output.head_dim; ++d) {
        float merged = 0.0f;
        for (size_t s = 0; s < weights.size(); ++s) {
          if (weights[s] == 0.0f) continue;  // what an empty state holds is not looked at
          const TensorView& state = outputs[s];
          merged += weights[s] / sum *
                    LoadElement(state.data, state.dtype, ElementOffset(state, row, head) + d);
        }
        StoreElement(output.data, output.dtype, offset + d, merged);
      }
      if (lse.data != nullptr) {
        lse.data[row * lse.row_stride + head * lse.head_stride] =
            top == kEmpty ? kEmpty : top + std::log(sum) / to_natural;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
