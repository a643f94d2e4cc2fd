// A small transformer language model: everything of its forward pass but the attention.
#ifndef WAVEKV_EXAMPLES_TINYLM_MODEL_H_
#define WAVEKV_EXAMPLES_TINYLM_MODEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "examples/tinylm/attention.h"
#include "examples/tinylm/model_config.h"
#include "tools/safetensors/safetensors.h"
#include "wavekv/executor.h"

namespace tinylm {

// How far a sequence has come: all the state the model has outside the KV cache. Copy it when the
// cache is forked.
struct TokenHistory {
  int64_t num_tokens = 0;
  std::array<int32_t, 2> last = {-1, -1};  // the last token and the one before; -1: none
};

//   e_t = embed_scale * emb[id_t]
//   x_t = e_t + prev1 e_{t-1} + prev2 e_{t-2}
//   per layer:  h = rms(x) * ln1;  q, k, v = wq h, wk h, wv h;  RoPE on q and k
//               x += wo attention(q, k, v)
//               h = rms(x) * ln2;  x += w2 (silu(w1 h) * (w3 h))
//   logits = emb (rms(x) * lnf)
//
// Threads: work is spread over the executor; one Forward at a time.
class Model {
 public:
  // Reads config.json and model.safetensors in `directory`. Errors name the file and the field or
  // tensor.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& directory,
                                                     std::shared_ptr<wavekv::Executor> executor);

  const ModelConfig& config() const { return config_; }

  // Runs `tokens`, which follow `history`, through the layers. logits gets the last num_logit_rows
  // rows' [num_logit_rows, vocab_size]; 0 skips them. After an error `history` is as before, while
  // `attention` may hold the tokens in some of its layers.
  absl::Status Forward(absl::Span<const int32_t> tokens, int64_t num_logit_rows,
                       TokenHistory* history, Attention* attention, std::vector<float>* logits);

 private:
  // Matrices are [out, in], row-major.
  struct Layer {
    std::vector<float> attention_norm;  // ln1
    std::vector<float> qkv;             // wq, wk, wv: one product gives all three
    std::vector<float> out;             // wo
    std::vector<float> mlp_norm;        // ln2
    std::vector<float> gate_up;         // w1, w3
    std::vector<float> down;            // w2
  };

  // Rows of the step that runs; capacity stays.
  struct Workspace {
    std::vector<float> embedding;  // [2 + rows, d_model]; the first two are of earlier tokens
    std::vector<float> rope;       // [rows, head_dim]: cos, then sin
    std::vector<float> x;          // [rows, d_model]
    std::vector<float> normed;     // [rows, d_model]
    std::vector<float> qkv;        // [rows, qkv_width()]
    std::vector<float> attended;   // [rows, n_heads * head_dim]
    std::vector<float> gate_up;    // [rows, 2 * ffn]
  };

  Model(const ModelConfig& config, std::shared_ptr<wavekv::Executor> executor)
      : config_(config), executor_(std::move(executor)) {}

  absl::Status LoadWeights(const safetensors::File& file);
  int64_t q_width() const { return int64_t{config_.n_heads} * config_.head_dim; }
  int64_t kv_width() const { return int64_t{config_.n_kv_heads} * config_.head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }

  // Each works on the rows [begin, end) of the workspace.
  void Embed(int64_t begin, int64_t end);
  void ProjectQkv(const Layer& layer, int64_t begin, int64_t end);
  void FinishLayer(const Layer& layer, int64_t begin, int64_t end);
  void ComputeLogits(int64_t begin, int64_t end, float* logits);

  void ComputeRope(int64_t first_position, int64_t num_rows);
  void ForRowBlocks(int64_t num_rows, absl::FunctionRef<void(int64_t begin, int64_t end)> work);

  const ModelConfig config_;
  const std::shared_ptr<wavekv::Executor> executor_;
  std::vector<float> embedding_;  // [vocab_size, d_model]
  std::vector<float> previous1_;
  std::vector<float> previous2_;
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
  Workspace work_;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_MODEL_H_
