// A small engine and the calls that tests of its edges repeat.
#ifndef WAVEKV_TESTS_API_SMALL_ENGINE_H_
#define WAVEKV_TESTS_API_SMALL_ENGINE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "storage/status_macros.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

inline EngineOptions SmallEngineOptions() {
  EngineOptions options;
  options.model = {.num_layers = 2,
                   .num_q_heads = 4,
                   .num_kv_heads = 2,
                   .head_dim_k = 16,
                   .head_dim_v = 8,
                   .kv_dtype = DType::kFloat16};
  options.index.segment_tokens = 128;
  options.index.update_tokens = 64;
  options.index.window_tokens = 16;
  options.arena_bytes = 4 << 20;
  options.worker_threads = 1;
  return options;
}

inline std::unique_ptr<Engine> OpenEngine(const EngineOptions& options = SmallEngineOptions()) {
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

// Appends num_rows rows of random numbers to every layer; the same seed gives the same rows.
inline absl::Status AppendRandom(Engine& engine, const Sequence& sequence, int64_t num_rows,
                                 uint64_t seed) {
  const ModelSpec& model = engine.options().model;
  Random random(seed);
  const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const auto keys = random.Gaussians(num_rows * model.num_kv_heads * model.head_dim_k);
    const auto values = random.Gaussians(num_rows * model.num_kv_heads * model.head_dim_v);
    WAVEKV_RETURN_IF_ERROR(engine.Append({{&sequence, 1}, cu_seqlens}, layer,
                                         TensorView::Dense(keys.data(), DType::kFloat32, num_rows,
                                                           model.num_kv_heads, model.head_dim_k),
                                         TensorView::Dense(values.data(), DType::kFloat32, num_rows,
                                                           model.num_kv_heads, model.head_dim_v)));
  }
  return absl::OkStatus();
}

// What every layer answers to one fixed query: outputs, then log-sum-exps. Equal answers to it mean
// equal tokens.
inline absl::StatusOr<std::vector<float>> Digest(
    Engine& engine, const Sequence& sequence,
    const AttendOptions& options = AttendOptions::Exact()) {
  const ModelSpec& model = engine.options().model;
  const int32_t cu_seqlens[] = {0, 1};
  const auto queries = Random(77).Gaussians(model.num_q_heads * model.head_dim_k);
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine.MakePlan({{&sequence, 1}, cu_seqlens}, options));
  std::vector<float> digest;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    std::vector<float> output(model.num_q_heads * model.head_dim_v);
    std::vector<float> lse(model.num_q_heads);
    const auto stats = engine.Attend(
        plan, layer,
        TensorView::Dense(queries.data(), DType::kFloat32, 1, model.num_q_heads, model.head_dim_k),
        MutableTensorView::Dense(output.data(), DType::kFloat32, 1, model.num_q_heads,
                                 model.head_dim_v),
        PerHeadView::Dense(lse.data(), 1, model.num_q_heads));
    if (!stats.ok()) return stats.status();
    digest.insert(digest.end(), output.begin(), output.end());
    digest.insert(digest.end(), lse.begin(), lse.end());
  }
  return digest;
}

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_SMALL_ENGINE_H_
