#include "examples/tinylm/model_config.h"

#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "examples/tinylm/status_macros.h"
#include "nlohmann/json.hpp"

namespace tinylm {
namespace {

using Json = nlohmann::json;

absl::Status FieldError(absl::string_view field, absl::string_view expected, const Json& got) {
  return absl::InvalidArgumentError(
      absl::StrCat("config: ", field, ": expected ", expected, ", got ",
                   got.is_null() ? "nothing" : got.dump().substr(0, 40)));
}

const Json& Field(const Json& json, const char* field) {
  static const Json* const kMissing = new Json();
  const auto it = json.find(field);
  return it == json.end() ? *kMissing : *it;
}

absl::Status ReadCount(const Json& json, const char* field, int* count) {
  constexpr int kCountMax = 1 << 24;  // products of two counts stay within 64 bits
  const Json& value = Field(json, field);
  if (!value.is_number_integer() || value < 1 || value > kCountMax) {
    return FieldError(field, absl::StrCat("an integer from 1 to ", kCountMax), value);
  }
  *count = value.get<int>();
  return absl::OkStatus();
}

absl::Status ReadPositive(const Json& json, const char* field, double* number) {
  const Json& value = Field(json, field);
  if (!value.is_number() || value.get<double>() <= 0.0) {
    return FieldError(field, "a number above 0", value);
  }
  *number = value.get<double>();
  return absl::OkStatus();
}

}  // namespace

wavekv::ModelSpec ModelConfig::kv_spec() const {
  wavekv::ModelSpec spec;
  spec.num_layers = n_layers;
  spec.num_q_heads = n_heads;
  spec.num_kv_heads = n_kv_heads;
  spec.head_dim_k = head_dim;
  spec.head_dim_v = head_dim;
  // Keys and values of this model stay far below 65504, and fp16 has the finer steps.
  spec.kv_dtype = wavekv::DType::kFloat16;
  spec.softmax_scale = static_cast<float>(softmax_scale);
  return spec;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("config: expected a JSON object");

  ModelConfig config;
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "vocab_size", &config.vocab_size));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "d_model", &config.d_model));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "n_layers", &config.n_layers));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "n_heads", &config.n_heads));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "n_kv_heads", &config.n_kv_heads));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "head_dim", &config.head_dim));
  TINYLM_RETURN_IF_ERROR(ReadCount(json, "ffn", &config.ffn));
  TINYLM_RETURN_IF_ERROR(ReadPositive(json, "rope_theta", &config.rope_theta));
  TINYLM_RETURN_IF_ERROR(ReadPositive(json, "rms_eps", &config.rms_eps));
  TINYLM_RETURN_IF_ERROR(ReadPositive(json, "embed_scale", &config.embed_scale));
  TINYLM_RETURN_IF_ERROR(ReadPositive(json, "softmax_scale", &config.softmax_scale));

  if (config.n_heads % config.n_kv_heads != 0) {
    return FieldError("n_heads", absl::StrCat("a multiple of n_kv_heads = ", config.n_kv_heads),
                      config.n_heads);
  }
  if (config.head_dim % 2 != 0) {
    return FieldError("head_dim", "an even number, for RoPE's halves", config.head_dim);
  }
  // The forward pass is written for these two alone.
  if (const Json& value = Field(json, "input_prev_tokens"); value != 2) {
    return FieldError("input_prev_tokens", "2", value);
  }
  if (const Json& value = Field(json, "rope_style");
      !value.is_string() || !absl::StartsWith(value.get<std::string>(), "half")) {
    return FieldError("rope_style", "\"half\"", value);
  }
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  std::ifstream input(path);
  std::ostringstream text;
  if (!input || !(text << input.rdbuf())) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot read the model's configuration"));
  }
  return ParseModelConfig(text.str());
}

}  // namespace tinylm
