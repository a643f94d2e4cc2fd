// Many threads on one engine: what the contract allows works, what it forbids is told.
#include <atomic>
#include <cmath>
#include <string>
#include <thread>
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

EngineOptions SmallOptions() {
  EngineOptions options;
  options.model.num_layers = 1;
  options.model.num_q_heads = 2;
  options.model.num_kv_heads = 1;
  options.model.head_dim_k = 16;
  options.model.head_dim_v = 16;
  options.model.kv_dtype = DType::kFloat32;
  options.index.segment_tokens = 256;
  options.index.update_tokens = 64;
  options.index.window_tokens = 16;
  options.arena_bytes = int64_t{64} << 20;
  options.worker_threads = 2;
  options.build_threads = 2;
  return options;
}

// What one thread needs to append to and ask a sequence.
class Client {
 public:
  Client(Engine& engine, Sequence sequence, uint64_t seed)
      : engine_(engine), sequence_(std::move(sequence)), random_(seed) {}

  absl::Status Append(int64_t rows) {
    const ModelSpec& model = engine_.options().model;
    const std::vector<float> keys = random_.Gaussians(rows * model.head_dim_k);
    const std::vector<float> values = random_.Gaussians(rows * model.head_dim_v);
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    const absl::Status status = engine_.Append(
        {{&sequence_, 1}, cu_seqlens}, 0,
        TensorView::Dense(keys.data(), DType::kFloat32, rows, 1, model.head_dim_k),
        TensorView::Dense(values.data(), DType::kFloat32, rows, 1, model.head_dim_v));
    if (status.ok()) expected_.Append(0, keys, values);
    return status;
  }

  // Asks with fresh queries; an OK answer at budget 1 must equal the model's if `compare`.
  absl::Status Attend(const AttendOptions& options, bool compare) {
    const ModelSpec& model = engine_.options().model;
    const std::vector<float> queries = random_.Gaussians(model.num_q_heads * model.head_dim_k);
    std::vector<float> output(model.num_q_heads * model.head_dim_v, NAN);
    const int32_t cu_seqlens[] = {0, 1};
    auto plan = engine_.MakePlan({{&sequence_, 1}, cu_seqlens}, options);
    if (!plan.ok()) return plan.status();
    auto stats = engine_.Attend(
        *plan, 0,
        TensorView::Dense(queries.data(), DType::kFloat32, 1, model.num_q_heads, model.head_dim_k),
        MutableTensorView::Dense(output.data(), DType::kFloat32, 1, model.num_q_heads,
                                 model.head_dim_v));
    if (!stats.ok()) return stats.status();
    for (float x : output) EXPECT_TRUE(std::isfinite(x));
    if (compare) {
      const NaiveAttentionState want = expected_.Attend(0, queries, 1);
      for (size_t i = 0; i < output.size(); ++i) EXPECT_NEAR(output[i], want.output[i], 1e-4);
    }
    return absl::OkStatus();
  }

  const Sequence& sequence() const { return sequence_; }
  Random& random() { return random_; }

 private:
  Engine& engine_;
  const Sequence sequence_;
  Random random_;
  ModelSequence expected_{engine_.options().model};
};

TEST(EngineConcurrencyTest, SequencesOfManyThreadsDoNotDisturbEachOther) {
  auto engine = *Engine::Open(SmallOptions());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Tenant tenant = *engine->OpenTenant("tenant" + std::to_string(t));
      for (int round = 0; round < 4; ++round) {
        Client client(*engine, *tenant.CreateSequence(), 100 * t + round);
        for (int step = 0; step < 30; ++step) {
          const int64_t rows =
              client.random().Integer(0, 3) == 0 ? client.random().Integer(1, 150) : 1;
          ASSERT_TRUE(client.Append(rows).ok());
          ASSERT_TRUE(client.Attend(AttendOptions::Exact(), /*compare=*/true).ok());
          ASSERT_TRUE(client.Attend({}, /*compare=*/false).ok());
        }
        ASSERT_TRUE(tenant.Remove(client.sequence()).ok());
      }
      ASSERT_TRUE(engine->CloseTenant(tenant).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(engine->stats().tenants, 0);
}

TEST(EngineConcurrencyTest, ReadersGoOnWhileTheWriterAppendsTruncatesAndSeals) {
  auto engine = *Engine::Open(SmallOptions());
  Tenant tenant = *engine->OpenTenant("tenant");
  Client writer(*engine, *tenant.CreateSequence(), 1);
  ASSERT_TRUE(writer.Append(400).ok());
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      Client reader(*engine, writer.sequence(), 50 + t);
      while (!stop) {
        ASSERT_TRUE(reader.Attend(t == 0 ? AttendOptions::Exact() : AttendOptions(), false).ok());
        auto child = tenant.Fork(writer.sequence());
        ASSERT_TRUE(child.ok()) << child.status();
        ASSERT_TRUE(tenant.Remove(*child).ok());
      }
    });
  }
  for (int step = 0; step < 150; ++step) {
    ASSERT_TRUE(writer.Append(writer.random().Integer(1, 40)).ok());
    const int64_t length = writer.sequence().length();
    if (step % 7 == 0) {
      ASSERT_TRUE(tenant.Truncate(writer.sequence(), length - length / 5).ok());
    }
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

TEST(EngineConcurrencyTest, ASecondWriterIsToldAndChangesNothing) {
  auto engine = *Engine::Open(SmallOptions());
  Tenant tenant = *engine->OpenTenant("tenant");
  const Sequence sequence = *tenant.CreateSequence();
  std::atomic<int64_t> appended{0};
  std::atomic<int64_t> aborted{0};
  std::vector<std::thread> writers;
  for (int t = 0; t < 4; ++t) {
    writers.emplace_back([&, t] {
      Client client(*engine, sequence, t);
      for (int step = 0; step < 300; ++step) {
        const absl::Status status = client.Append(3);
        if (status.ok()) {
          appended += 3;
        } else {
          ASSERT_TRUE(absl::IsAborted(status)) << status;
          ++aborted;
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(sequence.length(), appended);
  EXPECT_EQ(appended / 3 + aborted, 4 * 300);
}

TEST(EngineConcurrencyTest, RemovalAndClosingEndOtherCallsCleanly) {
  auto engine = *Engine::Open(SmallOptions());
  for (int round = 0; round < 10; ++round) {
    Tenant tenant = *engine->OpenTenant("tenant");
    const Sequence sequence = *tenant.CreateSequence();
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        Client client(*engine, sequence, 10 * round + t);
        for (int step = 0; step < 60; ++step) {
          const absl::Status status = t == 0 ? client.Append(20) : client.Attend({}, false);
          // ABORTED: the removal itself is the other writer, for a moment.
          ASSERT_TRUE(status.ok() || absl::IsNotFound(status) || absl::IsAborted(status)) << status;
        }
      });
    }
    threads.emplace_back([&] {
      absl::SleepFor(absl::Milliseconds(2));
      if (round % 2 == 0) {
        ASSERT_TRUE(engine->CloseTenant(tenant).ok());
      } else {
        // The writer may hold it just now; its callers try again.
        absl::Status status = absl::AbortedError("");
        while (absl::IsAborted(status)) status = tenant.Remove(sequence);
        ASSERT_TRUE(status.ok()) << status;
      }
    });
    for (std::thread& thread : threads) thread.join();
    EXPECT_FALSE(sequence.valid());
    if (round % 2 == 1) {
      ASSERT_TRUE(engine->CloseTenant(tenant).ok());
    }
  }
  while (engine->stats().segments_pending > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(engine->stats().arena_bytes_used, 0);
}

TEST(EngineConcurrencyTest, OneCallAtATimePerPlan) {
  auto engine = *Engine::Open(SmallOptions());
  Tenant tenant = *engine->OpenTenant("tenant");
  Client client(*engine, *tenant.CreateSequence(), 1);
  ASSERT_TRUE(client.Append(2000).ok());
  const ModelSpec& model = engine->options().model;
  const std::vector<float> queries(model.num_q_heads * model.head_dim_k, 0.5f);
  const int32_t cu_seqlens[] = {0, 1};
  const Plan plan = *engine->MakePlan({{&client.sequence(), 1}, cu_seqlens});
  std::atomic<int> answered{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      std::vector<float> output(model.num_q_heads * model.head_dim_v);
      for (int step = 0; step < 100; ++step) {
        const absl::Status status =
            engine
                ->Attend(plan, 0,
                         TensorView::Dense(queries.data(), DType::kFloat32, 1, model.num_q_heads,
                                           model.head_dim_k),
                         MutableTensorView::Dense(output.data(), DType::kFloat32, 1,
                                                  model.num_q_heads, model.head_dim_v))
                .status();
        if (status.ok()) ++answered;
        ASSERT_TRUE(status.ok() || absl::IsAborted(status)) << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(answered, 0);
}

// Builds make room for steps, and go on all the same.
TEST(EngineConcurrencyTest, SegmentsAreSealedWhileStepsFollowOneAnother) {
  auto engine = Engine::Open(SmallOptions());
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto tenant = (*engine)->OpenTenant("tenant");
  ASSERT_TRUE(tenant.ok()) << tenant.status();
  Client decoding(**engine, *tenant->CreateSequence(), 1);
  Client prompt(**engine, *tenant->CreateSequence(), 2);
  ASSERT_TRUE(decoding.Append(1000).ok());
  std::atomic<bool> done{false};
  std::thread steps([&] {
    while (!done.load()) {
      EXPECT_TRUE(decoding.Attend(AttendOptions::Exact(), /*compare=*/false).ok());
    }
  });
  EXPECT_TRUE(prompt.Append(4096).ok());
  EXPECT_TRUE((*engine)->BuildSegments(prompt.sequence()).ok());
  const absl::Status sealed = (*engine)->WaitForBuilds(prompt.sequence());
  EXPECT_TRUE(sealed.ok()) << sealed;
  done.store(true);
  steps.join();
  EXPECT_TRUE(prompt.Attend(AttendOptions::Exact(), /*compare=*/true).ok());
}

}  // namespace
}  // namespace wavekv
