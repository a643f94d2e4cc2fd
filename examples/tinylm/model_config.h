// The shape of the model, as its config.json states it.
#ifndef WAVEKV_EXAMPLES_TINYLM_MODEL_CONFIG_H_
#define WAVEKV_EXAMPLES_TINYLM_MODEL_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "wavekv/model_spec.h"

namespace tinylm {

struct ModelConfig {
  int vocab_size = 0;
  int d_model = 0;
  int n_layers = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  double rope_theta = 0.0;
  double rms_eps = 0.0;
  double embed_scale = 0.0;
  double softmax_scale = 0.0;

  // What wavekv needs to know of it.
  wavekv::ModelSpec kv_spec() const;
};

// INVALID_ARGUMENT naming the field that is missing, of the wrong type or out of range.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json);
// NOT_FOUND for a missing file.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_MODEL_CONFIG_H_
