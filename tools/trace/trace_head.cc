#include "tools/trace/trace_head.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "tools/safetensors/half.h"

namespace wavekv {
namespace {

template <float (*kToFloat)(uint16_t)>
void ConvertHalves(const std::byte* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + i * sizeof(bits), sizeof(bits));
    to[i] = kToFloat(bits);
  }
}

void Convert(const std::byte* from, DType dtype, int64_t count, float* to) {
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case DType::kFloat16:
      return ConvertHalves<safetensors::HalfToFloat>(from, count, to);
    case DType::kBFloat16:
      return ConvertHalves<safetensors::BFloat16ToFloat>(from, count, to);
  }
}

}  // namespace

absl::Status LoadRows(const RowsView& rows, int64_t first, int64_t count, int64_t part_elements,
                      int64_t padded_elements, float* out) {
  const int64_t element_bytes = DTypeBytes(rows.dtype);
  const int64_t num_parts = rows.row_elements / part_elements;
  for (int64_t row = first; row < first + count; ++row) {
    const std::byte* from =
        static_cast<const std::byte*>(rows.data) + row * rows.row_elements * element_bytes;
    float not_finite = 0.0f;  // stays 0 while all elements are finite: x * 0 is NaN otherwise
    for (int64_t part = 0; part < num_parts; ++part) {
      Convert(from + part * part_elements * element_bytes, rows.dtype, part_elements, out);
      std::fill(out + part_elements, out + padded_elements, 0.0f);
      for (int64_t i = 0; i < part_elements; ++i) not_finite += out[i] * 0.0f;
      out += padded_elements;
    }
    if (not_finite != 0.0f || std::isnan(not_finite)) {
      return absl::InvalidArgumentError(
          absl::StrCat(rows.name, ": expected finite numbers, got NaN or infinity in row ", row));
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
