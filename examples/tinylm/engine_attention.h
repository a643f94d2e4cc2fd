// The model's attention, kept and answered by wavekv.
#ifndef WAVEKV_EXAMPLES_TINYLM_ENGINE_ATTENTION_H_
#define WAVEKV_EXAMPLES_TINYLM_ENGINE_ATTENTION_H_

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/tinylm/attention.h"
#include "examples/tinylm/model_config.h"
#include "wavekv/engine.h"
#include "wavekv/executor.h"
#include "wavekv/options.h"

namespace tinylm {

// An engine with room for the KV cache of num_tokens tokens, their index and the forks of a few
// decode steps. Its work on the CPU runs on `executor`. tiers: where sealed rows lie, if not in
// DRAM.
absl::StatusOr<std::unique_ptr<wavekv::Engine>> OpenEngine(
    const ModelConfig& config, int64_t num_tokens, std::shared_ptr<wavekv::Executor> executor,
    const wavekv::TierOptions& tiers = {}, wavekv::Device device = wavekv::Device::kCpu);

// Sums over Attend calls.
struct AttendTotals {
  int64_t tokens_visible = 0;
  int64_t tokens_exact = 0;
  int64_t bytes_dense = 0;
  int64_t bytes_read = 0;

  void Add(const AttendTotals& other);
  // Shares of what exact attention reads; 0 before the first call.
  double exact_tokens_share() const;
  double bytes_share() const;
};

// One sequence of an engine that outlives it. Append and Attend of a layer become one call each; a
// step shares one plan among its layers.
class EngineAttention : public Attention {
 public:
  EngineAttention(wavekv::Engine* engine, wavekv::Sequence sequence,
                  const wavekv::AttendOptions& options)
      : engine_(engine), sequence_(std::move(sequence)), options_(options) {}

  // From the next step on.
  void set_options(const wavekv::AttendOptions& options) { options_ = options; }
  const wavekv::Sequence& sequence() const { return sequence_; }
  const AttendTotals& totals() const { return totals_; }
  void clear_totals() { totals_ = {}; }

  absl::Status BeginStep(int64_t num_rows) override;
  absl::Status Append(int layer, const wavekv::TensorView& keys,
                      const wavekv::TensorView& values) override;
  absl::Status Attend(int layer, const wavekv::TensorView& queries,
                      const wavekv::MutableTensorView& output) override;

 private:
  wavekv::RaggedBatch batch() const { return {{&sequence_, 1}, row_bounds_}; }

  wavekv::Engine* engine_;
  wavekv::Sequence sequence_;
  wavekv::AttendOptions options_;
  std::array<int32_t, 2> row_bounds_ = {0, 0};
  wavekv::Plan plan_;
  AttendTotals totals_;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_ENGINE_ATTENTION_H_
