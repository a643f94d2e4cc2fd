#include "examples/tinylm/error_meter.h"

#include <algorithm>
#include <cmath>

#include "examples/tinylm/status_macros.h"

namespace tinylm {

void OutputErrors::Add(const OutputErrors& other) {
  count += other.count;
  sum += other.sum;
  worst = std::max(worst, other.worst);
}

absl::Status ErrorMeter::BeginStep(int64_t num_rows) {
  TINYLM_RETURN_IF_ERROR(measured_.BeginStep(num_rows));
  return exact_.BeginStep(num_rows);
}

absl::Status ErrorMeter::Append(int layer, const wavekv::TensorView& keys,
                                const wavekv::TensorView& values) {
  return measured_.Append(layer, keys, values);
}

absl::Status ErrorMeter::Attend(int layer, const wavekv::TensorView& queries,
                                const wavekv::MutableTensorView& output) {
  TINYLM_RETURN_IF_ERROR(measured_.Attend(layer, queries, output));
  exact_output_.resize(output.num_rows * output.num_heads * output.head_dim);
  TINYLM_RETURN_IF_ERROR(exact_.Attend(
      layer, queries,
      wavekv::MutableTensorView::Dense(exact_output_.data(), wavekv::DType::kFloat32,
                                       output.num_rows, output.num_heads, output.head_dim)));
  const float* exact = exact_output_.data();
  for (int64_t row = 0; row < output.num_rows; ++row) {
    for (int64_t head = 0; head < output.num_heads; ++head, exact += output.head_dim) {
      const float* got = static_cast<const float*>(output.data) + row * output.row_stride +
                         head * output.head_stride;
      double difference = 0.0;
      double norm = 0.0;
      for (int64_t i = 0; i < output.head_dim; ++i) {
        difference += std::pow(double{got[i]} - exact[i], 2);
        norm += std::pow(double{exact[i]}, 2);
      }
      const double error = norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
      errors_.Add({.count = 1, .sum = error, .worst = error});
    }
  }
  return absl::OkStatus();
}

}  // namespace tinylm
