// A decode step of an inference engine on wavekv.
#include <cstdio>
#include <random>
#include <vector>

#include "wavekv/engine.h"

// Stands for what a model computes, [rows, heads, 64] of fp32: like a text's, a row resembles the
// one before it.
std::vector<float> Activations(int rows, int heads) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> noise(0.1f, 0.6f);
  std::vector<float> values(static_cast<size_t>(rows) * heads * 64);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = noise(generator) + (i < heads * 64u ? 0.0f : 0.8f * values[i - heads * 64]);
  }
  return values;
}

int main() {
  wavekv::EngineOptions options;
  options.model = {.num_layers = 2, .num_q_heads = 8, .num_kv_heads = 2, .head_dim_k = 64};
  options.arena_bytes = 64 << 20;  // all keys, values and indexes live here
  auto engine = wavekv::Engine::Open(options).value();
  auto tenant = engine->OpenTenant("alice").value();
  auto sequence = tenant.CreateSequence().value();

  for (int rows : {20000, 1}) {  // a prompt, then a decode step
    auto input = [rows](const std::vector<float>& tensor, int heads) {
      return wavekv::TensorView::Dense(tensor.data(), wavekv::DType::kFloat32, rows, heads, 64);
    };
    std::vector<int32_t> cu_seqlens = {0, rows};
    wavekv::RaggedBatch batch = {{&sequence, 1}, cu_seqlens};
    wavekv::Plan plan = engine->MakePlan(batch).value();  // once per step
    for (int layer = 0; layer < options.model.num_layers; ++layer) {
      auto q = Activations(rows, 8), k = Activations(rows, 2), v = Activations(rows, 2), out = q;
      if (!engine->Append(batch, layer, input(k, 2), input(v, 2)).ok()) return 1;
      if (rows > 1) continue;  // here a prompt attends densely, in the engine's own kernels
      auto output =
          wavekv::MutableTensorView::Dense(out.data(), wavekv::DType::kFloat32, rows, 8, 64);
      auto stats = engine->Attend(plan, layer, input(q, 8), output).value();
      std::printf("layer %d: %ld of %ld tokens read exactly, predicted error %.3f\n", layer,
                  stats.tokens_exact, stats.tokens_visible, stats.error_estimate_mean);
    }
    if (!engine->BuildSegments(sequence).ok() || !engine->WaitForBuilds(sequence).ok()) return 1;
  }
}
