// How far wavekv's output is from exact attention.
#ifndef WAVEKV_EXAMPLES_TINYLM_ERROR_METER_H_
#define WAVEKV_EXAMPLES_TINYLM_ERROR_METER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "examples/tinylm/attention.h"
#include "examples/tinylm/engine_attention.h"

namespace tinylm {

// |output - exact| / |exact| over rows, layers and query heads.
struct OutputErrors {
  int64_t count = 0;
  double sum = 0.0;
  double worst = 0.0;

  void Add(const OutputErrors& other);
  double mean() const { return count > 0 ? sum / static_cast<double>(count) : 0.0; }
};

// Answers with `options`, and answers the same queries exactly to compare.
class ErrorMeter : public Attention {
 public:
  ErrorMeter(wavekv::Engine* engine, const wavekv::Sequence& sequence,
             const wavekv::AttendOptions& options)
      : measured_(engine, sequence, options),
        exact_(engine, sequence, wavekv::AttendOptions::Exact()) {}

  const OutputErrors& errors() const { return errors_; }
  // Of the measured calls alone.
  const AttendTotals& totals() const { return measured_.totals(); }

  absl::Status BeginStep(int64_t num_rows) override;
  absl::Status Append(int layer, const wavekv::TensorView& keys,
                      const wavekv::TensorView& values) override;
  absl::Status Attend(int layer, const wavekv::TensorView& queries,
                      const wavekv::MutableTensorView& output) override;

 private:
  EngineAttention measured_;
  EngineAttention exact_;
  std::vector<float> exact_output_;
  OutputErrors errors_;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_ERROR_METER_H_
