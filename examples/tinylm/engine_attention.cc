#include "examples/tinylm/engine_attention.h"

#include <utility>

#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<wavekv::Engine>> OpenEngine(
    const ModelConfig& config, int64_t num_tokens, std::shared_ptr<wavekv::Executor> executor,
    const wavekv::TierOptions& tiers, wavekv::Device device) {
  wavekv::EngineOptions options;
  options.device = device;
  options.model = config.kv_spec();
  options.executor = std::move(executor);
  // The document, and the forks that a question and its two ways of answering make of it.
  constexpr int kSequences = 8;
  // With tiers, too, a document may come faster than it is sealed.
  options.arena_bytes = wavekv::ArenaBytesFor(options, num_tokens, kSequences);
  options.tiers = tiers;
  return wavekv::Engine::Open(options);
}

void AttendTotals::Add(const AttendTotals& other) {
  tokens_visible += other.tokens_visible;
  tokens_exact += other.tokens_exact;
  bytes_dense += other.bytes_dense;
  bytes_read += other.bytes_read;
}

double AttendTotals::exact_tokens_share() const { return Share(tokens_exact, tokens_visible); }

double AttendTotals::bytes_share() const { return Share(bytes_read, bytes_dense); }

absl::Status EngineAttention::BeginStep(int64_t num_rows) {
  row_bounds_ = {0, static_cast<int32_t>(num_rows)};
  TINYLM_ASSIGN_OR_RETURN(plan_, engine_->MakePlan(batch(), options_));
  return absl::OkStatus();
}

absl::Status EngineAttention::Append(int layer, const wavekv::TensorView& keys,
                                     const wavekv::TensorView& values) {
  return engine_->Append(batch(), layer, keys, values);
}

absl::Status EngineAttention::Attend(int layer, const wavekv::TensorView& queries,
                                     const wavekv::MutableTensorView& output) {
  TINYLM_ASSIGN_OR_RETURN(const wavekv::AttendStats stats,
                          engine_->Attend(plan_, layer, queries, output));
  totals_.Add({.tokens_visible = stats.tokens_visible,
               .tokens_exact = stats.tokens_exact,
               .bytes_dense = stats.bytes_dense,
               .bytes_read = stats.bytes_read});
  return absl::OkStatus();
}

}  // namespace tinylm
