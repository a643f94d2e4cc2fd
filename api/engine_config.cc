#include "api/engine_config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <type_traits>

#include "fmt/format.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Keeps what the text parser complains about, with its place.
class ErrorLines : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    text_ += fmt::format("{}{}:{}: {}", text_.empty() ? "" : "; ", line + 1, column + 1, message);
  }
  void AddWarning(int line, int column, const std::string& message) override {
    AddError(line, column, message);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// What does not fit becomes the largest number, which validation then refuses by its name.
template <typename Int, typename Unsigned>
Int Saturate(Unsigned value) {
  constexpr auto kMax = static_cast<std::make_unsigned_t<Int>>(std::numeric_limits<Int>::max());
  return value > kMax ? std::numeric_limits<Int>::max() : static_cast<Int>(value);
}

absl::StatusOr<DType> FromProto(const char* field, v1::DType dtype) {
  switch (dtype) {
    case v1::FLOAT32:
      return DType::kFloat32;
    case v1::FLOAT16:
      return DType::kFloat16;
    case v1::BFLOAT16:
      return DType::kBFloat16;
    default:
      return absl::InvalidArgumentError(fmt::format(
          "{} must be FLOAT32, FLOAT16 or BFLOAT16, got {}", field, static_cast<int>(dtype)));
  }
}

absl::StatusOr<StatisticsFormat> FromProto(v1::StatisticsFormat statistics) {
  switch (statistics) {
    case v1::STATISTICS_FLOAT32:
      return StatisticsFormat::kFloat32;
    case v1::STATISTICS_INT8:
      return StatisticsFormat::kInt8;
    case v1::STATISTICS_INT4:
      return StatisticsFormat::kInt4;
    default:
      return absl::InvalidArgumentError(
          fmt::format("index.statistics must be STATISTICS_FLOAT32, STATISTICS_INT8 or "
                      "STATISTICS_INT4, got {}",
                      static_cast<int>(statistics)));
  }
}

absl::StatusOr<ModelSpec> FromProto(const v1::ModelSpec& proto) {
  ModelSpec model;
  model.num_layers = Saturate<int>(proto.num_layers());
  model.num_q_heads = Saturate<int>(proto.num_q_heads());
  model.num_kv_heads = Saturate<int>(proto.num_kv_heads());
  model.head_dim_k = Saturate<int>(proto.head_dim_k());
  if (proto.has_head_dim_v()) model.head_dim_v = Saturate<int>(proto.head_dim_v());
  if (proto.has_kv_dtype()) {
    WAVEKV_ASSIGN_OR_RETURN(model.kv_dtype, FromProto("model.kv_dtype", proto.kv_dtype()));
  }
  if (proto.has_softmax_scale()) model.softmax_scale = proto.softmax_scale();
  return model;
}

absl::StatusOr<IndexOptions> FromProto(const v1::IndexConfig& proto) {
  IndexOptions index;
  if (proto.has_segment_tokens()) index.segment_tokens = proto.segment_tokens();
  if (proto.has_update_tokens()) index.update_tokens = proto.update_tokens();
  if (proto.has_tokens_per_cluster()) {
    index.tokens_per_cluster = Saturate<int>(proto.tokens_per_cluster());
  }
  if (proto.has_cluster_tokens_max()) {
    index.cluster_tokens_max = Saturate<int>(proto.cluster_tokens_max());
  }
  if (proto.has_kmeans_iterations()) {
    index.kmeans_iterations = Saturate<int>(proto.kmeans_iterations());
  }
  if (proto.has_sink_tokens()) index.sink_tokens = proto.sink_tokens();
  if (proto.has_window_tokens()) index.window_tokens = proto.window_tokens();
  if (proto.has_clusters_per_super()) {
    index.clusters_per_super = Saturate<int>(proto.clusters_per_super());
  }
  if (proto.has_statistics()) {
    WAVEKV_ASSIGN_OR_RETURN(index.statistics, FromProto(proto.statistics()));
  }
  if (proto.has_code_bits()) index.code_bits = Saturate<int>(proto.code_bits());
  if (proto.has_seed()) index.seed = proto.seed();
  if (proto.has_merge_segments()) index.merge_segments = proto.merge_segments();
  return index;
}

// Numbers that are no enumerator become 0, which validation then refuses by the field's name: a
// cast would keep their low byte alone.
Device FromProto(v1::Device device) {
  switch (device) {
    case v1::CPU:
      return Device::kCpu;
    case v1::CUDA:
      return Device::kCuda;
    default:
      return Device{0};
  }
}

TenantQuota::OnLimit FromProto(v1::TenantQuota::OnLimit on_limit) {
  switch (on_limit) {
    case v1::TenantQuota::REJECT:
      return TenantQuota::OnLimit::kReject;
    case v1::TenantQuota::EVICT_OWN:
      return TenantQuota::OnLimit::kEvictOwn;
    default:
      return TenantQuota::OnLimit{0};
  }
}

TenantQuota FromProto(const v1::TenantQuota& proto) {
  TenantQuota quota;
  if (proto.has_host_bytes()) quota.host_bytes = Saturate<int64_t>(proto.host_bytes());
  if (proto.has_max_sequences()) quota.max_sequences = Saturate<int64_t>(proto.max_sequences());
  if (proto.has_on_limit()) quota.on_limit = FromProto(proto.on_limit());
  if (proto.has_backing_bytes()) quota.backing_bytes = Saturate<int64_t>(proto.backing_bytes());
  if (proto.has_cache_bytes()) quota.cache_bytes = Saturate<int64_t>(proto.cache_bytes());
  if (proto.has_reserved_cache_bytes()) {
    quota.reserved_cache_bytes = Saturate<int64_t>(proto.reserved_cache_bytes());
  }
  if (proto.has_cache_weight()) quota.cache_weight = proto.cache_weight();
  return quota;
}

TierOptions FromProto(const v1::TierConfig& proto) {
  TierOptions tiers;
  tiers.directory = proto.directory();
  if (proto.has_backing_bytes()) tiers.backing_bytes = Saturate<int64_t>(proto.backing_bytes());
  tiers.cache_bytes = Saturate<int64_t>(proto.cache_bytes());
  if (proto.has_block_tokens()) tiers.block_tokens = proto.block_tokens();
  if (proto.has_replacement()) tiers.replacement = proto.replacement();
  if (proto.has_prefault_threads()) {
    tiers.prefault_threads = Saturate<int>(proto.prefault_threads());
  }
  return tiers;
}

GpuOptions FromProto(const v1::GpuConfig& proto) {
  GpuOptions gpu;
  if (proto.has_device()) gpu.device = Saturate<int>(proto.device());
  if (proto.has_workspace_bytes()) gpu.workspace_bytes = Saturate<int64_t>(proto.workspace_bytes());
  if (proto.has_staging_bytes()) gpu.staging_bytes = Saturate<int64_t>(proto.staging_bytes());
  return gpu;
}

}  // namespace

absl::StatusOr<TenantQuota> TenantQuotaFromProto(const v1::TenantQuota& proto) {
  const TenantQuota quota = FromProto(proto);
  WAVEKV_RETURN_IF_ERROR(ValidateTenantQuota(quota));
  return quota;
}

absl::StatusOr<EngineOptions> EngineOptionsFromProto(const v1::EngineConfig& proto) {
  EngineOptions options;
  WAVEKV_ASSIGN_OR_RETURN(options.model, FromProto(proto.model()));
  WAVEKV_ASSIGN_OR_RETURN(options.index, FromProto(proto.index()));
  options.arena_bytes = Saturate<int64_t>(proto.arena_bytes());
  options.tiers = FromProto(proto.tiers());
  if (proto.has_worker_threads()) options.worker_threads = Saturate<int>(proto.worker_threads());
  if (proto.has_build_threads()) options.build_threads = Saturate<int>(proto.build_threads());
  if (proto.has_prefault_threads()) {
    options.prefault_threads = Saturate<int>(proto.prefault_threads());
  }
  if (proto.has_device()) options.device = FromProto(proto.device());
  options.gpu = FromProto(proto.gpu());
  options.default_quota = FromProto(proto.default_quota());
  options.trace_path = proto.trace_path();
  WAVEKV_RETURN_IF_ERROR(ValidateEngineOptions(options));
  return options;
}

absl::StatusOr<EngineOptions> ParseEngineOptions(absl::string_view text) {
  v1::EngineConfig config;
  ErrorLines errors;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  if (!parser.ParseFromString(std::string(text), &config)) {
    return absl::InvalidArgumentError(fmt::format("engine config: {}", errors.text()));
  }
  return EngineOptionsFromProto(config);
}

absl::StatusOr<EngineOptions> LoadEngineOptions(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(
        fmt::format("engine config: cannot open {}: {}", path, std::strerror(errno)));
  }
  std::stringstream text;
  text << file.rdbuf();
  if (file.bad() || (text.fail() && !file.eof())) {
    return absl::InvalidArgumentError(
        fmt::format("engine config: cannot read {}: is it a file, and not empty?", path));
  }
  absl::StatusOr<EngineOptions> options = ParseEngineOptions(text.str());
  if (options.ok()) return options;
  return absl::Status(options.status().code(),
                      fmt::format("{}: {}", path, std::string(options.status().message())));
}

}  // namespace wavekv
