#include "wavekv/options.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "fmt/format.h"
#include "storage/arena.h"
#include "storage/cluster_index.h"
#include "storage/layer_cache.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Less would not hold the tables of a step over a few sequences.
constexpr int64_t kStagingBytesMin = int64_t{1} << 20;

template <typename... Args>
absl::Status Invalid(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Invalid("{} must be in [{}, {}], got {}", field, min, max, value);
}

absl::Status CheckHeadDim(const char* field, int64_t head_dim) {
  if (head_dim >= kHeadDimStep && head_dim <= kHeadDimMax && head_dim % kHeadDimStep == 0) {
    return absl::OkStatus();
  }
  return Invalid("{} must be a multiple of {} in [{}, {}], got {}", field, kHeadDimStep,
                 kHeadDimStep, kHeadDimMax, head_dim);
}

absl::Status CheckDType(const char* field, DType dtype) {
  if (DTypeBytes(dtype) > 0) return absl::OkStatus();
  return Invalid("{} must be fp32, fp16 or bf16, got {}", field, static_cast<int>(dtype));
}

absl::Status ValidateModel(const ModelSpec& model) {
  WAVEKV_RETURN_IF_ERROR(CheckRange("model.num_layers", model.num_layers, 1, 65536));
  WAVEKV_RETURN_IF_ERROR(CheckRange("model.num_q_heads", model.num_q_heads, 1, 65536));
  WAVEKV_RETURN_IF_ERROR(CheckRange("model.num_kv_heads", model.num_kv_heads, 1, 65536));
  if (model.num_q_heads % model.num_kv_heads != 0) {
    return Invalid("model.num_q_heads must be a multiple of model.num_kv_heads ({}), got {}",
                   model.num_kv_heads, model.num_q_heads);
  }
  WAVEKV_RETURN_IF_ERROR(CheckHeadDim("model.head_dim_k", model.head_dim_k));
  if (model.head_dim_v != 0) {
    WAVEKV_RETURN_IF_ERROR(CheckHeadDim("model.head_dim_v", model.head_dim_v));
  }
  WAVEKV_RETURN_IF_ERROR(CheckDType("model.kv_dtype", model.kv_dtype));
  if (!std::isfinite(model.softmax_scale) || model.softmax_scale < 0.0f) {
    return Invalid("model.softmax_scale must be finite and >= 0 (0: 1 / sqrt(head_dim_k)), got {}",
                   model.softmax_scale);
  }
  return absl::OkStatus();
}

absl::Status ValidateIndex(const IndexOptions& index) {
  const auto check_cut = [](const char* field, int64_t tokens) -> absl::Status {
    if (tokens >= kChunkTokens && tokens <= kSegmentTokensMax && tokens % kChunkTokens == 0) {
      return absl::OkStatus();
    }
    return Invalid("{} must be a multiple of {} in [{}, {}], got {}", field, kChunkTokens,
                   kChunkTokens, kSegmentTokensMax, tokens);
  };
  WAVEKV_RETURN_IF_ERROR(check_cut("index.segment_tokens", index.segment_tokens));
  WAVEKV_RETURN_IF_ERROR(check_cut("index.update_tokens", index.update_tokens));
  if (index.segment_tokens % index.update_tokens != 0) {
    return Invalid("index.update_tokens must divide index.segment_tokens ({}), got {}",
                   index.segment_tokens, index.update_tokens);
  }
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("index.tokens_per_cluster", index.tokens_per_cluster, 1, kSegmentTokensMax));
  WAVEKV_RETURN_IF_ERROR(CheckRange("index.cluster_tokens_max", index.cluster_tokens_max,
                                    index.tokens_per_cluster, kSegmentTokensMax));
  WAVEKV_RETURN_IF_ERROR(CheckRange("index.kmeans_iterations", index.kmeans_iterations, 0, 1000));
  WAVEKV_RETURN_IF_ERROR(CheckRange("index.sink_tokens", index.sink_tokens, 0, kSegmentTokensMax));
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("index.window_tokens", index.window_tokens, 0, int64_t{1} << 40));
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("index.clusters_per_super", index.clusters_per_super, 1, kSegmentTokensMax));
  if (StatisticsRowBytes(index.statistics, kHeadDimStep) == 0) {
    return Invalid("index.statistics must be fp32, int8 or int4, got {}",
                   static_cast<int>(index.statistics));
  }
  if (index.code_bits != 0 && index.code_bits != 1 && index.code_bits != 2 &&
      index.code_bits != 4) {
    return Invalid("index.code_bits must be 1, 2, 4 or 0, got {}", index.code_bits);
  }
  return absl::OkStatus();
}

absl::Status ValidateQuota(const char* field, const TenantQuota& quota) {
  if (quota.host_bytes < 0) {
    return Invalid("{}.host_bytes must be >= 0 (0: the whole arena), got {}", field,
                   quota.host_bytes);
  }
  if (quota.max_sequences < 0) {
    return Invalid("{}.max_sequences must be >= 0 (0: no ceiling), got {}", field,
                   quota.max_sequences);
  }
  if (quota.on_limit != TenantQuota::OnLimit::kReject &&
      quota.on_limit != TenantQuota::OnLimit::kEvictOwn) {
    return Invalid("{}.on_limit must be kReject or kEvictOwn, got {}", field,
                   static_cast<int>(quota.on_limit));
  }
  if (quota.backing_bytes < 0) {
    return Invalid("{}.backing_bytes must be >= 0 (0: no ceiling), got {}", field,
                   quota.backing_bytes);
  }
  if (quota.cache_bytes < 0) {
    return Invalid("{}.cache_bytes must be >= 0 (0: the whole cache), got {}", field,
                   quota.cache_bytes);
  }
  if (quota.reserved_cache_bytes < 0 ||
      (quota.cache_bytes > 0 && quota.reserved_cache_bytes > quota.cache_bytes)) {
    return Invalid("{}.reserved_cache_bytes must be >= 0 and at most cache_bytes ({}), got {}",
                   field, quota.cache_bytes, quota.reserved_cache_bytes);
  }
  if (!(quota.cache_weight > 0.0) || !std::isfinite(quota.cache_weight)) {
    return Invalid("{}.cache_weight must be finite and > 0, got {}", field, quota.cache_weight);
  }
  return absl::OkStatus();
}

absl::Status ValidateTiers(const TierOptions& tiers, const IndexOptions& index) {
  constexpr int64_t kMost = int64_t{1} << 60;
  WAVEKV_RETURN_IF_ERROR(CheckRange("tiers.backing_bytes", tiers.backing_bytes, 0, kMost));
  if (tiers.directory.empty() && tiers.cache_bytes != 0) {
    return Invalid("tiers.directory must be given for a cache, got cache_bytes {} without",
                   tiers.cache_bytes);
  }
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("tiers.cache_bytes", tiers.cache_bytes, tiers.directory.empty() ? 0 : 1, kMost));
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("tiers.block_tokens", tiers.block_tokens, 0, index.update_tokens));
  WAVEKV_RETURN_IF_ERROR(CheckRange("tiers.prefault_threads", tiers.prefault_threads, 0, 4096));
  if (tiers.replacement != "lru" && tiers.replacement != "slru" && tiers.replacement != "s3fifo") {
    return Invalid("tiers.replacement must be lru, slru or s3fifo, got \"{}\"", tiers.replacement);
  }
  return absl::OkStatus();
}

absl::Status ValidateGpu(const GpuOptions& gpu) {
  constexpr int64_t kMost = int64_t{1} << 60;
  WAVEKV_RETURN_IF_ERROR(
      CheckRange("gpu.device", gpu.device, 0, std::numeric_limits<int>::max() - 1));
  WAVEKV_RETURN_IF_ERROR(CheckRange("gpu.workspace_bytes", gpu.workspace_bytes, 0, kMost));
  return CheckRange("gpu.staging_bytes", gpu.staging_bytes, kStagingBytesMin, kMost);
}

absl::Status ValidateBudget(const char* field, const Budget& budget) {
  if (!budget.is_ratio() || (budget.ratio() >= 0.0 && budget.ratio() <= 1.0)) {
    return absl::OkStatus();
  }
  return Invalid("{} must be a ratio in [0, 1] or a number of tokens >= 0, got ratio {}", field,
                 budget.ratio());
}

}  // namespace

absl::Status ValidateEngineOptions(const EngineOptions& options) {
  WAVEKV_RETURN_IF_ERROR(ValidateModel(options.model));
  WAVEKV_RETURN_IF_ERROR(ValidateIndex(options.index));
  WAVEKV_RETURN_IF_ERROR(CheckRange("arena_bytes", options.arena_bytes, Arena::kBlockBytes,
                                    std::numeric_limits<int64_t>::max()));
  WAVEKV_RETURN_IF_ERROR(ValidateTiers(options.tiers, options.index));
  WAVEKV_RETURN_IF_ERROR(CheckRange("worker_threads", options.worker_threads, 0, 4096));
  WAVEKV_RETURN_IF_ERROR(CheckRange("build_threads", options.build_threads, 1, 4096));
  WAVEKV_RETURN_IF_ERROR(CheckRange("prefault_threads", options.prefault_threads, 0, 4096));
  if (options.device != Device::kCpu && options.device != Device::kCuda) {
    return Invalid("device must be kCpu or kCuda, got {}", static_cast<int>(options.device));
  }
  WAVEKV_RETURN_IF_ERROR(ValidateGpu(options.gpu));
  return ValidateQuota("default_quota", options.default_quota);
}

absl::Status ValidateTenantQuota(const TenantQuota& quota) { return ValidateQuota("quota", quota); }

absl::Status ValidateAttendOptions(const AttendOptions& options) {
  if (options.zones != Zones::kPaper && options.zones != Zones::kClusters &&
      options.zones != Zones::kSketch) {
    return Invalid("zones must be kPaper, kClusters or kSketch, got {}",
                   static_cast<int>(options.zones));
  }
  WAVEKV_RETURN_IF_ERROR(ValidateBudget("retrieval", options.retrieval));
  WAVEKV_RETURN_IF_ERROR(ValidateBudget("sketch", options.sketch));
  WAVEKV_RETURN_IF_ERROR(ValidateBudget("estimation", options.estimation));
  WAVEKV_RETURN_IF_ERROR(ValidateBudget("open", options.open));
  if (!(options.target_error >= 0.0) || !std::isfinite(options.target_error)) {
    return Invalid("target_error must be finite and >= 0, got {}", options.target_error);
  }
  if (options.exact_below_tokens < -1) {
    return Invalid("exact_below_tokens must be >= 0, or -1 for the default, got {}",
                   options.exact_below_tokens);
  }
  if (options.reserve_tokens < 0) {
    return Invalid("reserve_tokens must be >= 0, got {}", options.reserve_tokens);
  }
  if (options.target_error > 0.0 && options.zones == Zones::kPaper) {
    return Invalid("target_error must be 0 with zones kPaper, which leaves clusters out, got {}",
                   options.target_error);
  }
  if (options.mass != MassEstimate::kLowerBound && options.mass != MassEstimate::kSecondOrder) {
    return Invalid("mass must be kLowerBound or kSecondOrder, got {}",
                   static_cast<int>(options.mass));
  }
  if (options.miss_deadline < absl::ZeroDuration()) {
    return Invalid("miss_deadline must be >= 0, got {}",
                   absl::FormatDuration(options.miss_deadline));
  }
  if (options.lse_base != LseBase::kE && options.lse_base != LseBase::k2) {
    return Invalid("lse_base must be kE or k2, got {}", static_cast<int>(options.lse_base));
  }
  return absl::OkStatus();
}

int64_t ArenaBytesFor(const EngineOptions& options, int64_t num_tokens, int64_t num_sequences) {
  ModelSpec model = options.model;
  if (model.head_dim_v == 0) model.head_dim_v = model.head_dim_k;
  const IndexOptions& index = options.index;
  const KvShape shape{model.head_dim_k, model.head_dim_v, model.kv_dtype};
  // Splitting adds a few clusters to those asked for; a half more is far from what data have shown.
  const auto sealed_bytes = [&](int64_t tokens) {
    const int64_t clusters = tokens / index.tokens_per_cluster * 3 / 2 + 1;
    const int64_t supers = clusters / index.clusters_per_super * 3 / 2 + 1;
    const ClusterIndexShape sealed = {
        shape,    index.statistics, ResolveCodeBits(index.code_bits, model.head_dim_k),
        clusters, supers,           tokens};
    int64_t head_bytes = options.tiers.directory.empty() ? ClusterIndexBytes(sealed)
                                                         : ClusterIndexOverheadBytes(sealed);
    if (options.device == Device::kCuda) head_bytes += kIndexRecordBytes;
    return model.num_kv_heads * Arena::RoundUp(head_bytes);
  };
  // The smallest cut has the largest share of padding.
  const int64_t cuts = num_tokens / index.update_tokens + 1;
  const int64_t tail_chunks = (index.window_tokens + index.update_tokens) / kChunkTokens + 3;
  const int64_t per_layer =
      cuts * sealed_bytes(index.update_tokens) +
      num_sequences * tail_chunks * Arena::RoundUp(kChunkTokens * model.token_bytes());
  const int64_t segment_chunks =
      index.segment_tokens / kChunkTokens * Arena::RoundUp(kChunkTokens * model.token_bytes());
  const int64_t building =
      options.build_threads * std::max(segment_chunks, sealed_bytes(index.segment_tokens));
  // A prompt that comes faster than it is sealed lies in chunks, beside what is being built; a
  // quarter more lets extents find room between them.
  return (model.num_layers * per_layer + 2 * building) * 5 / 4;
}

int64_t Budget::Resolve(int64_t num_tokens) const {
  if (!is_ratio()) return std::min(tokens_, num_tokens);
  if (ratio_ >= 1.0) return num_tokens;
  return std::min(num_tokens, static_cast<int64_t>(std::ceil(ratio_ * num_tokens)));
}

}  // namespace wavekv
