#include "examples/tinylm/model.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

using wavekv::DType;
using wavekv::Memory;

// Rows a task works on: enough for an efficient matrix product, few enough to share a chunk of a
// prompt among the threads.
constexpr int64_t kBlockRows = 64;

// y = beta * y + x weight^T for x [rows, in] and weight [out, in].
void MultiplyTransposed(const float* x, int64_t rows, int64_t in, const std::vector<float>& weight,
                        float beta, float* y) {
  const auto out = static_cast<int64_t>(weight.size()) / in;
  if (rows == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, out, in, 1.0f, weight.data(), in, x, 1, beta, y, 1);
  } else {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, out, in, 1.0f, x, in, weight.data(),
                in, beta, y, out);
  }
}

void RmsNorm(const float* x, const std::vector<float>& weight, double epsilon, float* normed) {
  const size_t width = weight.size();
  double sum = 0.0;
  for (size_t i = 0; i < width; ++i) sum += double{x[i]} * x[i];
  const auto scale =
      static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(width) + epsilon));
  for (size_t i = 0; i < width; ++i) normed[i] = x[i] * scale * weight[i];
}

// (a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of one head.
void RotateHalves(float* head, const float* cosines, const float* sines, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

// Reads tensors one below the other into one matrix.
absl::Status ReadStacked(const safetensors::File& file,
                         std::initializer_list<std::pair<std::string, safetensors::Shape>> tensors,
                         std::vector<float>* stacked) {
  for (const auto& [name, shape] : tensors) {
    TINYLM_ASSIGN_OR_RETURN(const std::vector<float> values, file.Floats(name, shape));
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
    if (!finite) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.name(), ": tensor '", name, "' has a NaN or an infinity"));
    }
    stacked->insert(stacked->end(), values.begin(), values.end());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& directory,
                                                   std::shared_ptr<wavekv::Executor> executor) {
  // Blocks of rows already occupy every thread of the executor.
  openblas_set_num_threads(1);
  TINYLM_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(directory + "/config.json"));
  TINYLM_ASSIGN_OR_RETURN(const safetensors::File file,
                          safetensors::File::Read(directory + "/model.safetensors"));
  std::unique_ptr<Model> model(new Model(config, std::move(executor)));
  TINYLM_RETURN_IF_ERROR(model->LoadWeights(file));
  return model;
}

absl::Status Model::LoadWeights(const safetensors::File& file) {
  const int64_t d_model = config_.d_model;
  const int64_t ffn = config_.ffn;
  TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{"emb", {config_.vocab_size, d_model}}}, &embedding_));
  TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{"prev1.weight", {d_model, d_model}}}, &previous1_));
  TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{"prev2.weight", {d_model, d_model}}}, &previous2_));
  TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{"lnf.weight", {d_model}}}, &final_norm_));
  layers_.resize(config_.n_layers);
  for (int i = 0; i < config_.n_layers; ++i) {
    Layer& layer = layers_[i];
    const auto name = [i](const char* weight) {
      return absl::StrCat("layers.", i, ".", weight, ".weight");
    };
    TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{name("ln1"), {d_model}}}, &layer.attention_norm));
    TINYLM_RETURN_IF_ERROR(ReadStacked(file,
                                       {{name("wq"), {q_width(), d_model}},
                                        {name("wk"), {kv_width(), d_model}},
                                        {name("wv"), {kv_width(), d_model}}},
                                       &layer.qkv));
    TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{name("wo"), {d_model, q_width()}}}, &layer.out));
    TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{name("ln2"), {d_model}}}, &layer.mlp_norm));
    TINYLM_RETURN_IF_ERROR(ReadStacked(
        file, {{name("w1"), {ffn, d_model}}, {name("w3"), {ffn, d_model}}}, &layer.gate_up));
    TINYLM_RETURN_IF_ERROR(ReadStacked(file, {{name("w2"), {d_model, ffn}}}, &layer.down));
  }
  return absl::OkStatus();
}

absl::Status Model::Forward(absl::Span<const int32_t> tokens, int64_t num_logit_rows,
                            TokenHistory* history, Attention* attention,
                            std::vector<float>* logits) {
  const auto num_rows = static_cast<int64_t>(tokens.size());
  if (num_rows == 0) return absl::InvalidArgumentError("tokens: expected at least one, got none");
  if (num_logit_rows < 0 || num_logit_rows > num_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_logit_rows: expected 0 to ", num_rows, ", got ", num_logit_rows));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= config_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens: expected ids from 0 to ", config_.vocab_size - 1, ", got ", token));
    }
  }
  const int64_t d_model = config_.d_model;
  work_.embedding.resize((2 + num_rows) * d_model);
  work_.x.resize(num_rows * d_model);
  work_.normed.resize(num_rows * d_model);
  work_.qkv.resize(num_rows * qkv_width());
  work_.attended.resize(num_rows * q_width());
  work_.gate_up.resize(num_rows * 2 * config_.ffn);

  const auto write_embedding = [&](int64_t row, int32_t token) {
    float* to = &work_.embedding[row * d_model];
    if (token < 0) {  // before the first token
      std::fill_n(to, d_model, 0.0f);
      return;
    }
    const float* from = &embedding_[token * d_model];
    const auto scale = static_cast<float>(config_.embed_scale);
    for (int64_t i = 0; i < d_model; ++i) to[i] = scale * from[i];
  };
  write_embedding(0, history->last[1]);
  write_embedding(1, history->last[0]);
  for (int64_t row = 0; row < num_rows; ++row) write_embedding(2 + row, tokens[row]);
  ComputeRope(history->num_tokens, num_rows);
  ForRowBlocks(num_rows, [&](int64_t begin, int64_t end) { Embed(begin, end); });

  const int64_t head_dim = config_.head_dim;
  const auto qkv_view = [&](int64_t column, int64_t num_heads) {
    return wavekv::TensorView{.data = &work_.qkv[column],
                              .dtype = DType::kFloat32,
                              .num_rows = num_rows,
                              .num_heads = num_heads,
                              .head_dim = head_dim,
                              .row_stride = qkv_width(),
                              .head_stride = head_dim,
                              .memory = Memory::kHost};
  };
  const wavekv::TensorView queries = qkv_view(0, config_.n_heads);
  const wavekv::TensorView keys = qkv_view(q_width(), config_.n_kv_heads);
  const wavekv::TensorView values = qkv_view(q_width() + kv_width(), config_.n_kv_heads);
  const auto attended = wavekv::MutableTensorView::Dense(work_.attended.data(), DType::kFloat32,
                                                         num_rows, config_.n_heads, head_dim);

  TINYLM_RETURN_IF_ERROR(attention->BeginStep(num_rows));
  for (int i = 0; i < config_.n_layers; ++i) {
    const Layer& layer = layers_[i];
    ForRowBlocks(num_rows, [&](int64_t begin, int64_t end) { ProjectQkv(layer, begin, end); });
    TINYLM_RETURN_IF_ERROR(attention->Append(i, keys, values));
    TINYLM_RETURN_IF_ERROR(attention->Attend(i, queries, attended));
    ForRowBlocks(num_rows, [&](int64_t begin, int64_t end) { FinishLayer(layer, begin, end); });
  }

  logits->resize(num_logit_rows * config_.vocab_size);
  const int64_t first_logit_row = num_rows - num_logit_rows;
  ForRowBlocks(num_logit_rows, [&](int64_t begin, int64_t end) {
    ComputeLogits(first_logit_row + begin, first_logit_row + end,
                  &(*logits)[begin * config_.vocab_size]);
  });
  history->num_tokens += num_rows;
  history->last = {tokens[num_rows - 1], num_rows > 1 ? tokens[num_rows - 2] : history->last[0]};
  return absl::OkStatus();
}

void Model::Embed(int64_t begin, int64_t end) {
  const int64_t d_model = config_.d_model;
  const auto embedding = [&](int64_t back) {  // of the tokens `back` before the rows
    return &work_.embedding[(2 - back + begin) * d_model];
  };
  float* x = &work_.x[begin * d_model];
  std::copy_n(embedding(0), (end - begin) * d_model, x);
  MultiplyTransposed(embedding(1), end - begin, d_model, previous1_, 1.0f, x);
  MultiplyTransposed(embedding(2), end - begin, d_model, previous2_, 1.0f, x);
}

void Model::ProjectQkv(const Layer& layer, int64_t begin, int64_t end) {
  const int64_t d_model = config_.d_model;
  for (int64_t row = begin; row < end; ++row) {
    RmsNorm(&work_.x[row * d_model], layer.attention_norm, config_.rms_eps,
            &work_.normed[row * d_model]);
  }
  MultiplyTransposed(&work_.normed[begin * d_model], end - begin, d_model, layer.qkv, 0.0f,
                     &work_.qkv[begin * qkv_width()]);
  const int64_t half = config_.head_dim / 2;
  for (int64_t row = begin; row < end; ++row) {
    const float* cosines = &work_.rope[row * config_.head_dim];
    for (int head = 0; head < config_.n_heads + config_.n_kv_heads; ++head) {
      RotateHalves(&work_.qkv[row * qkv_width() + head * config_.head_dim], cosines, cosines + half,
                   half);
    }
  }
}

void Model::FinishLayer(const Layer& layer, int64_t begin, int64_t end) {
  const int64_t d_model = config_.d_model;
  const int64_t ffn = config_.ffn;
  const int64_t num_rows = end - begin;
  float* x = &work_.x[begin * d_model];
  float* normed = &work_.normed[begin * d_model];
  float* gate_up = &work_.gate_up[begin * 2 * ffn];
  MultiplyTransposed(&work_.attended[begin * q_width()], num_rows, q_width(), layer.out, 1.0f, x);
  for (int64_t row = 0; row < num_rows; ++row) {
    RmsNorm(x + row * d_model, layer.mlp_norm, config_.rms_eps, normed + row * d_model);
  }
  MultiplyTransposed(normed, num_rows, d_model, layer.gate_up, 0.0f, gate_up);
  // silu(gate) * up, packed to [num_rows, ffn] at the front of the buffer.
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* gate = gate_up + row * 2 * ffn;
    const float* up = gate + ffn;
    float* activation = gate_up + row * ffn;
    for (int64_t i = 0; i < ffn; ++i) activation[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }
  MultiplyTransposed(gate_up, num_rows, ffn, layer.down, 1.0f, x);
}

void Model::ComputeLogits(int64_t begin, int64_t end, float* logits) {
  const int64_t d_model = config_.d_model;
  for (int64_t row = begin; row < end; ++row) {
    RmsNorm(&work_.x[row * d_model], final_norm_, config_.rms_eps, &work_.normed[row * d_model]);
  }
  MultiplyTransposed(&work_.normed[begin * d_model], end - begin, d_model, embedding_, 0.0f,
                     logits);
}

void Model::ComputeRope(int64_t first_position, int64_t num_rows) {
  const int64_t half = config_.head_dim / 2;
  work_.rope.resize(num_rows * config_.head_dim);
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(config_.rope_theta, -static_cast<double>(i) / static_cast<double>(half));
    for (int64_t row = 0; row < num_rows; ++row) {
      const double angle = static_cast<double>(first_position + row) * frequency;
      float* cosines = &work_.rope[row * config_.head_dim];
      cosines[i] = static_cast<float>(std::cos(angle));
      cosines[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Model::ForRowBlocks(int64_t num_rows,
                         absl::FunctionRef<void(int64_t begin, int64_t end)> work) {
  const int64_t num_blocks = (num_rows + kBlockRows - 1) / kBlockRows;
  executor_->ParallelFor(num_blocks, [&](int64_t block, int /*worker*/) {
    work(block * kBlockRows, std::min(num_rows, (block + 1) * kBlockRows));
  });
}

}  // namespace tinylm
