// A small engine whose sealed rows lie in a file, its twin that keeps all in the arena, and the
// questions that both are asked.
#ifndef WAVEKV_TESTS_API_TIERED_ENGINE_H_
#define WAVEKV_TESTS_API_TIERED_ENGINE_H_

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "storage/status_macros.h"
#include "tests/api/small_engine.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// Rows of SmallEngineOptions have 48 bytes, 10 to a block of one sector.
inline constexpr int64_t kTierBlockTokens = 10;
inline constexpr int64_t kTierBlockBytes = 512;

inline EngineOptions ResidentOptions() {
  EngineOptions options = SmallEngineOptions();
  options.arena_bytes = 64 << 20;
  return options;
}

inline EngineOptions TieredOptions(int64_t cache_bytes) {
  EngineOptions options = ResidentOptions();
  options.tiers.directory = ::testing::TempDir();
  options.tiers.cache_bytes = cache_bytes;
  options.tiers.block_tokens = kTierBlockTokens;
  return options;
}

// What Open asks for at least, as its message says.
inline int64_t SmallestCacheBytes(EngineOptions options) {
  options.tiers.cache_bytes = 1;
  const std::string message(Engine::Open(options).status().message());
  const std::string before = "cache_bytes must be at least ";
  const size_t at = message.find(before);
  int64_t bytes = 0;
  if (at == std::string::npos ||
      !absl::SimpleAtoi(
          message.substr(at + before.size(), message.find(',', at) - at - before.size()), &bytes)) {
    ADD_FAILURE() << message;
  }
  return bytes;
}

inline std::vector<AttendOptions> WaysToAttend() {
  std::vector<AttendOptions> ways = {AttendOptions(), AttendOptions::Clusters(),
                                     AttendOptions::Paper(), AttendOptions::Exact()};
  AttendOptions target;
  target.target_error = 0.05;
  ways.push_back(target);
  AttendOptions much;
  much.retrieval = Budget::Ratio(0.3);
  much.sketch = Budget::Ratio(0.6);
  ways.push_back(much);
  return ways;
}

struct TierAnswer {
  std::vector<float> numbers;  // outputs, then log-sum-exps
  AttendStats stats;
};

// The plan's answer to random queries.
inline absl::StatusOr<TierAnswer> Ask(Engine& engine, const Plan& plan, int layer,
                                      uint64_t seed = 77) {
  const ModelSpec& model = engine.options().model;
  const int64_t rows = plan.num_rows();
  const auto queries = Random(seed).Gaussians(rows * model.num_q_heads * model.head_dim_k);
  TierAnswer answer;
  answer.numbers.resize(rows * model.num_q_heads * (model.head_dim_v + 1));
  WAVEKV_ASSIGN_OR_RETURN(
      answer.stats,
      engine.Attend(
          plan, layer,
          TensorView::Dense(queries.data(), DType::kFloat32, rows, model.num_q_heads,
                            model.head_dim_k),
          MutableTensorView::Dense(answer.numbers.data(), DType::kFloat32, rows, model.num_q_heads,
                                   model.head_dim_v),
          PerHeadView::Dense(answer.numbers.data() + rows * model.num_q_heads * model.head_dim_v,
                             rows, model.num_q_heads)));
  return answer;
}

inline absl::StatusOr<TierAnswer> Ask(Engine& engine, absl::Span<const Sequence> sequences,
                                      absl::Span<const int32_t> cu_seqlens,
                                      const AttendOptions& options, int layer = 0,
                                      uint64_t seed = 77) {
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine.MakePlan({sequences, cu_seqlens}, options));
  return Ask(engine, plan, layer, seed);
}

// One row of the newest token.
inline absl::StatusOr<TierAnswer> Ask(Engine& engine, const Sequence& sequence,
                                      const AttendOptions& options, int layer = 0) {
  const int32_t cu_seqlens[] = {0, 1};
  return Ask(engine, {&sequence, 1}, cu_seqlens, options, layer);
}

// |a - b| / |b|.
inline double RelativeDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

// One sequence, as far sealed as it can be.
struct FilledEngine {
  std::unique_ptr<Engine> engine;
  Tenant tenant;
  Sequence sequence;
};

inline Sequence AddSequence(Engine& engine, const Tenant& tenant, int64_t num_tokens,
                            uint64_t seed = 1) {
  Sequence sequence = *tenant.CreateSequence();
  EXPECT_TRUE(AppendRandom(engine, sequence, num_tokens, seed).ok());
  EXPECT_TRUE(engine.BuildSegments(sequence).ok());
  const absl::Status built = engine.WaitForBuilds(sequence);
  EXPECT_TRUE(built.ok()) << built;
  return sequence;
}

inline FilledEngine Fill(const EngineOptions& options, int64_t num_tokens,
                         const TenantQuota& quota = {}) {
  FilledEngine filled;
  filled.engine = OpenEngine(options);
  filled.tenant = *filled.engine->OpenTenant("alice", quota);
  filled.sequence = AddSequence(*filled.engine, filled.tenant, num_tokens);
  return filled;
}

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_TIERED_ENGINE_H_
