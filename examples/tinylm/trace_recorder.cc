#include "examples/tinylm/trace_recorder.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/tinylm/status_macros.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

// Appends heads [begin, end) of a row.
void AppendHeads(const wavekv::TensorView& view, int64_t row, int64_t begin, int64_t end,
                 std::vector<float>* to) {
  for (int64_t head = begin; head < end; ++head) {
    const float* from =
        static_cast<const float*>(view.data) + row * view.row_stride + head * view.head_stride;
    to->insert(to->end(), from, from + view.head_dim);
  }
}

}  // namespace

TraceRecorder::TraceRecorder(const ModelConfig& config, int64_t first_query_position,
                             Attention* recorded)
    : config_(config),
      first_query_position_(first_query_position),
      recorded_(recorded),
      heads_(config.n_layers * config.n_kv_heads) {}

absl::Status TraceRecorder::BeginStep(int64_t num_rows) {
  for (int64_t row = 0; row < num_rows; ++row, ++num_tokens_) {
    if (num_tokens_ >= first_query_position_) {
      positions_.push_back(static_cast<int32_t>(num_tokens_));
    }
  }
  return recorded_->BeginStep(num_rows);
}

absl::Status TraceRecorder::Append(int layer, const wavekv::TensorView& keys,
                                   const wavekv::TensorView& values) {
  for (int head = 0; head < config_.n_kv_heads; ++head) {
    for (int64_t row = 0; row < keys.num_rows; ++row) {
      AppendHeads(keys, row, head, head + 1, &At(layer, head).keys);
      AppendHeads(values, row, head, head + 1, &At(layer, head).values);
    }
  }
  return recorded_->Append(layer, keys, values);
}

absl::Status TraceRecorder::Attend(int layer, const wavekv::TensorView& queries,
                                   const wavekv::MutableTensorView& output) {
  const int64_t group_size = config_.n_heads / config_.n_kv_heads;
  const int64_t first_position = num_tokens_ - queries.num_rows;
  const int64_t first_row = std::max<int64_t>(0, first_query_position_ - first_position);
  for (int head = 0; head < config_.n_kv_heads; ++head) {
    for (int64_t row = first_row; row < queries.num_rows; ++row) {
      AppendHeads(queries, row, head * group_size, (head + 1) * group_size,
                  &At(layer, head).queries);
    }
  }
  return recorded_->Attend(layer, queries, output);
}

absl::Status TraceRecorder::Write(const std::string& path, absl::Span<const int32_t> tokens,
                                  int64_t context_tokens) const {
  if (static_cast<int64_t>(tokens.size()) != num_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens: expected the ", num_tokens_, " recorded ones, got ", tokens.size()));
  }
  const int64_t group_size = config_.n_heads / config_.n_kv_heads;
  const auto num_queries = static_cast<int64_t>(positions_.size());
  safetensors::Writer writer;
  writer.SetMetadata("softmax_scale", absl::StrFormat("%.17g", config_.softmax_scale));
  writer.SetMetadata("rope_theta", absl::StrFormat("%.17g", config_.rope_theta));
  writer.SetMetadata("n_tokens", absl::StrCat(num_tokens_));
  writer.SetMetadata("n_context", absl::StrCat(context_tokens));
  writer.SetMetadata("head_dim", absl::StrCat(config_.head_dim));
  writer.SetMetadata("n_layers", absl::StrCat(config_.n_layers));
  writer.SetMetadata("n_kv_heads", absl::StrCat(config_.n_kv_heads));
  writer.SetMetadata("q_heads_per_kv", absl::StrCat(group_size));
  writer.SetMetadata("query_types", "decode");
  for (int layer = 0; layer < config_.n_layers; ++layer) {
    for (int head = 0; head < config_.n_kv_heads; ++head) {
      const HeadTrace& trace = heads_[layer * config_.n_kv_heads + head];
      const std::string name = absl::StrCat("layer", layer, ".kvhead", head);
      TINYLM_RETURN_IF_ERROR(
          writer.AddHalves(name + ".k", {num_tokens_, config_.head_dim}, trace.keys));
      TINYLM_RETURN_IF_ERROR(
          writer.AddHalves(name + ".v", {num_tokens_, config_.head_dim}, trace.values));
      TINYLM_RETURN_IF_ERROR(writer.AddHalves(
          name + ".q", {num_queries, group_size, config_.head_dim}, trace.queries));
    }
  }
  TINYLM_RETURN_IF_ERROR(writer.AddInt32s("positions", {num_queries}, positions_));
  TINYLM_RETURN_IF_ERROR(
      writer.AddInt32s("query_type", {num_queries}, std::vector<int32_t>(positions_.size(), 0)));
  TINYLM_RETURN_IF_ERROR(writer.AddInt32s("tokens", {num_tokens_}, tokens));
  return writer.Write(path);
}

}  // namespace tinylm
