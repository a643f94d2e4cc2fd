// Random operations on an engine and on the simplest model of it, compared after every step.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/model_sequence.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::ModelSequence;
using ::wavekv::testing::NaiveAttentionState;
using ::wavekv::testing::Random;

constexpr int kTenants = 3;
constexpr size_t kSequencesMax = 10;
constexpr int64_t kLengthMax = 900;

// Small enough that a few hundred operations cut, seal, fork and exhaust everything.
EngineOptions TinyOptions() {
  EngineOptions options;
  options.model.num_layers = 2;
  options.model.num_q_heads = 2;
  options.model.num_kv_heads = 1;
  options.model.head_dim_k = 16;
  options.model.head_dim_v = 8;
  options.model.kv_dtype = DType::kBFloat16;
  options.index.segment_tokens = 256;
  options.index.update_tokens = 64;
  options.index.window_tokens = 16;
  options.arena_bytes = int64_t{640} << 10;
  options.worker_threads = 1;
  return options;
}

struct LiveSequence {
  Sequence handle;
  int tenant;
  ModelSequence model;
};

class RandomWorld {
 public:
  explicit RandomWorld(uint64_t seed) : random_(seed) {
    auto engine = Engine::Open(TinyOptions());
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    model_ = engine_->options().model;
    for (int i = 0; i < kTenants; ++i) {
      TenantQuota quota;
      quota.host_bytes = int64_t{320} << 10;
      auto tenant = engine_->OpenTenant("tenant" + std::to_string(i), quota);
      EXPECT_TRUE(tenant.ok()) << tenant.status();
      tenants_.push_back(*tenant);
    }
  }

  void Step() {
    const int64_t dice = random_.Integer(0, 99);
    if (live_.empty() || dice < 6) {
      Create();
    } else if (dice < 45) {
      Append();
    } else if (dice < 53) {
      Fork();
    } else if (dice < 63) {
      Truncate();
    } else if (dice < 69) {
      Remove();
    } else if (dice < 72) {
      (void)engine_->BuildSegments(Pick().handle);
    } else if (dice < 74) {
      (void)engine_->WaitForBuilds(Pick().handle);
    } else if (dice < 77) {
      UseStaleHandle();
    } else {
      Attend();
    }
    CheckAccounting();
  }

  int64_t attended() const { return attended_; }
  int64_t refused() const { return refused_; }
  int64_t sealed() const { return engine_->stats().segments_sealed_total; }

  void RemoveEverything() {
    for (const LiveSequence& sequence : live_) {
      EXPECT_TRUE(tenants_[sequence.tenant].Remove(sequence.handle).ok());
    }
    live_.clear();
    // A build that runs now may hold its segment a moment longer.
    while (engine_->stats().segments_pending > 0) absl::SleepFor(absl::Milliseconds(1));
    EXPECT_EQ(engine_->stats().arena_bytes_used, 0);
    EXPECT_EQ(engine_->stats().segments_sealed, 0);
  }

 private:
  LiveSequence& Pick() { return live_[random_.Integer(0, static_cast<int64_t>(live_.size()) - 1)]; }

  // A full quota is an answer too; it must leave everything as it was, which later steps check.
  bool Accepted(const absl::Status& status) {
    if (absl::IsResourceExhausted(status)) {
      ++refused_;
      return false;
    }
    EXPECT_TRUE(status.ok()) << status;
    return status.ok();
  }

  void Create() {
    if (live_.size() >= kSequencesMax) return Remove();
    const int tenant = static_cast<int>(random_.Integer(0, kTenants - 1));
    auto sequence = tenants_[tenant].CreateSequence();
    if (Accepted(sequence.status())) live_.push_back({*sequence, tenant, ModelSequence(model_)});
  }

  void Append() {
    // A ragged batch over up to three sequences; the layers of each may be left uneven for a while.
    std::vector<LiveSequence*> chosen;
    for (int i = 0; i < 3; ++i) {
      LiveSequence* one = &Pick();
      const bool again = std::find(chosen.begin(), chosen.end(), one) != chosen.end();
      if (!again && one->model.length(0) < kLengthMax) chosen.push_back(one);
    }
    std::vector<Sequence> handles;
    std::vector<int32_t> cu_seqlens = {0};
    const bool decoding = random_.Integer(0, 2) > 0;
    for (const LiveSequence* one : chosen) {
      handles.push_back(one->handle);
      cu_seqlens.push_back(cu_seqlens.back() +
                           static_cast<int32_t>(decoding ? 1 : random_.Integer(0, 200)));
    }
    const int64_t rows = cu_seqlens.back();
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      const std::vector<float> keys =
          random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_k);
      const std::vector<float> values =
          random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_v);
      const absl::Status status =
          engine_->Append({handles, cu_seqlens}, layer,
                          TensorView::Dense(keys.data(), DType::kFloat32, rows, model_.num_kv_heads,
                                            model_.head_dim_k),
                          TensorView::Dense(values.data(), DType::kFloat32, rows,
                                            model_.num_kv_heads, model_.head_dim_v));
      if (!Accepted(status)) {
        // Even the layers out again, as an engine would.
        for (size_t i = 0; i < chosen.size(); ++i) Even(*chosen[i]);
        return;
      }
      for (size_t i = 0; i < chosen.size(); ++i) {
        const auto part = [&](const std::vector<float>& all, int64_t width) {
          return std::vector<float>(all.begin() + cu_seqlens[i] * width,
                                    all.begin() + cu_seqlens[i + 1] * width);
        };
        chosen[i]->model.Append(layer, part(keys, model_.num_kv_heads * model_.head_dim_k),
                                part(values, model_.num_kv_heads * model_.head_dim_v));
      }
    }
  }

  void Even(LiveSequence& sequence) {
    const int64_t length = sequence.handle.length();
    const absl::Status status = tenants_[sequence.tenant].Truncate(sequence.handle, length);
    if (status.ok()) {
      sequence.model.Truncate(length);
    } else {
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      RemoveOne(&sequence - live_.data());
    }
  }

  void Fork() {
    if (live_.size() >= kSequencesMax) return Remove();
    const LiveSequence& parent = Pick();
    const int64_t prefix = random_.Integer(0, parent.model.length(0));
    auto child = tenants_[parent.tenant].Fork(parent.handle, prefix);
    if (!Accepted(child.status())) return;
    LiveSequence forked = {*child, parent.tenant, parent.model};
    forked.model.Truncate(prefix);
    live_.push_back(std::move(forked));
  }

  void Truncate() {
    LiveSequence& sequence = Pick();
    const int64_t length = sequence.model.length(0);
    const int64_t drop = random_.Integer(0, random_.Integer(0, 3) == 0 ? length : length / 8);
    if (Accepted(tenants_[sequence.tenant].Truncate(sequence.handle, length - drop))) {
      sequence.model.Truncate(length - drop);
    }
  }

  void Remove() { RemoveOne(random_.Integer(0, static_cast<int64_t>(live_.size()) - 1)); }

  void RemoveOne(size_t at) {
    stale_ = live_[at].handle;
    stale_tenant_ = live_[at].tenant;
    EXPECT_TRUE(tenants_[stale_tenant_].Remove(stale_).ok());
    live_.erase(live_.begin() + static_cast<int64_t>(at));
  }

  void UseStaleHandle() {
    EXPECT_TRUE(absl::IsNotFound(tenants_[stale_tenant_].Truncate(stale_, 0)));
    EXPECT_TRUE(absl::IsNotFound(tenants_[stale_tenant_].Fork(stale_).status()));
    // A living sequence of another tenant is no better.
    const LiveSequence& other = Pick();
    EXPECT_TRUE(absl::IsNotFound(tenants_[(other.tenant + 1) % kTenants].Remove(other.handle)));
  }

  void Attend() {
    const LiveSequence& sequence = Pick();
    const int layer = static_cast<int>(random_.Integer(0, model_.num_layers - 1));
    const auto rows = static_cast<int32_t>(random_.Integer(0, 4) == 0 ? random_.Integer(1, 20) : 1);
    const std::vector<float> queries =
        random_.Gaussians(rows * model_.num_q_heads * model_.head_dim_k, 2.0f);
    const NaiveAttentionState want = sequence.model.Attend(layer, queries, rows);

    AttendOptions options = AttendOptions::Exact();
    const bool exact = random_.Integer(0, 1) == 0;
    if (!exact) {
      options.retrieval = random_.Integer(0, 1) == 0 ? Budget::Tokens(random_.Integer(0, 300))
                                                     : Budget::Ratio(0.01 * random_.Integer(0, 30));
      options.estimation = Budget::Ratio(0.1 * random_.Integer(0, 10));
      if (random_.Integer(0, 1) == 0) options.mass = MassEstimate::kLowerBound;
    }
    const int32_t cu_seqlens[] = {0, rows};
    auto plan = engine_->MakePlan({{&sequence.handle, 1}, cu_seqlens}, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    std::vector<float> output(want.output.size(), NAN);
    std::vector<float> lse(want.lse.size(), NAN);
    auto stats = engine_->Attend(*plan, layer,
                                 TensorView::Dense(queries.data(), DType::kFloat32, rows,
                                                   model_.num_q_heads, model_.head_dim_k),
                                 MutableTensorView::Dense(output.data(), DType::kFloat32, rows,
                                                          model_.num_q_heads, model_.head_dim_v),
                                 LseView::Dense(lse.data(), rows, model_.num_q_heads));
    ASSERT_TRUE(stats.ok()) << stats.status();
    ++attended_;
    EXPECT_EQ(stats->tokens_exact + stats->tokens_estimated, stats->tokens_visible);
    for (size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(want.lse[i])) {
        EXPECT_EQ(lse[i], want.lse[i]);
      } else if (exact || stats->tokens_estimated == 0) {
        EXPECT_NEAR(lse[i], want.lse[i], 1e-4);
      } else {
        // Jensen: the bound misses mass, and never invents it.
        EXPECT_TRUE(std::isfinite(lse[i]));
        if (options.mass == MassEstimate::kLowerBound) {
          EXPECT_LE(lse[i], want.lse[i] + 1e-4);
        }
      }
    }
    for (size_t i = 0; i < output.size(); ++i) {
      if (exact || stats->tokens_estimated == 0) {
        ASSERT_NEAR(output[i], want.output[i], 1e-4);
      } else {
        ASSERT_TRUE(std::isfinite(output[i]));
      }
    }
  }

  void CheckAccounting() {
    int64_t used = 0;
    int64_t sequences = 0;
    // Builds come and go between two readings; without any the sums must agree.
    const bool quiet_before = engine_->stats().segments_pending == 0;
    for (const Tenant& tenant : tenants_) {
      const TenantStats stats = *tenant.stats();
      used += stats.host_bytes_used;
      sequences += stats.sequences;
      EXPECT_LE(stats.host_bytes_used, stats.host_bytes_quota);
    }
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.arena_bytes_used + stats.arena_bytes_free, stats.arena_bytes);
    EXPECT_EQ(sequences, static_cast<int64_t>(live_.size()));
    EXPECT_EQ(stats.sequences, sequences);
    if (quiet_before && stats.segments_pending == 0) {
      EXPECT_EQ(stats.arena_bytes_used, used);
    }
    for (const LiveSequence& sequence : live_) {
      EXPECT_EQ(sequence.handle.length(), sequence.model.length(0));
    }
  }

  Random random_;
  std::unique_ptr<Engine> engine_;
  ModelSpec model_;
  std::vector<Tenant> tenants_;
  std::vector<LiveSequence> live_;
  Sequence stale_;
  int stale_tenant_ = 0;
  int64_t attended_ = 0;
  int64_t refused_ = 0;
};

// Sanitizers are ten times slower and look for other things.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int64_t kOperations = 4000;
#else
constexpr int64_t kOperations = 25000;
#endif

// WAVEKV_MODEL_OPS and WAVEKV_MODEL_SEED run longer, or one failure again.
int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

TEST(EngineModelTest, RandomOperationsEqualTheModel) {
  const int64_t ops = FromEnvironment("WAVEKV_MODEL_OPS", kOperations);
  const int64_t seed = FromEnvironment("WAVEKV_MODEL_SEED", 1);
  SCOPED_TRACE(::testing::Message() << "WAVEKV_MODEL_SEED=" << seed);
  RandomWorld world(static_cast<uint64_t>(seed));
  for (int64_t op = 0; op < ops; ++op) {
    SCOPED_TRACE(::testing::Message() << "operation " << op);
    world.Step();
    if (::testing::Test::HasFailure()) break;
  }
  // The walk went where it was meant to.
  EXPECT_GT(world.attended(), ops / 8);
  EXPECT_GT(world.sealed(), ops / 100);
  EXPECT_GT(world.refused(), 0);
  world.RemoveEverything();
}

}  // namespace
}  // namespace wavekv
