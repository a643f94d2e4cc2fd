// Calls that are wrong at the moment they come: while another one writes, when memory is short, as
// long as layers differ. Each is told so, and changes nothing.
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "api/engine_test_peer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/small_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using testing::AppendRandom;
using testing::Digest;
using ::testing::HasSubstr;
using testing::OpenEngine;
using testing::SmallEngineOptions;

constexpr int64_t kLength = 300;   // of `sequence`, sealed but for its end
constexpr int64_t kShortest = 20;  // tokens in every layer of `uneven`
// Of an append and of a step: enough work to be shared out, so that the executor is asked.
constexpr int32_t kManyRows = 4000;
constexpr int32_t kManyQueries = 100;

// Runs tasks in the calling thread; first, once, what was asked to intrude.
class IntrudingExecutor : public Executor {
 public:
  void IntrudeOnce(std::function<void()> intrusion) { intrusion_ = std::move(intrusion); }

  int num_workers() const override { return 1; }
  void ParallelFor(int64_t num_tasks, absl::FunctionRef<void(int64_t, int)> task) override {
    if (intrusion_ != nullptr) std::exchange(intrusion_, nullptr)();
    for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
  }

 private:
  std::function<void()> intrusion_;
};

class World {
 public:
  World() {
    EngineOptions options = SmallEngineOptions();
    options.executor = executor;
    engine = OpenEngine(options);
    tenant = *engine->OpenTenant("tenant");
    limited = *engine->OpenTenant("limited", {.host_bytes = 64 << 10, .max_sequences = 1});
    sequence = *tenant.CreateSequence();
    other = *tenant.CreateSequence();
    uneven = *tenant.CreateSequence();
    only = *limited.CreateSequence();
    EXPECT_TRUE(AppendRandom(*engine, sequence, kLength, 1).ok());
    EXPECT_TRUE(AppendRandom(*engine, other, 40, 2).ok());
    EXPECT_TRUE(AppendRandom(*engine, uneven, kShortest, 3).ok());
    EXPECT_TRUE(AppendRandom(*engine, only, 10, 4).ok());
    EXPECT_TRUE(AppendRows({&uneven, 1}).ok());
    EXPECT_TRUE(engine->BuildSegments(sequence).ok());
    EXPECT_TRUE(engine->WaitForBuilds(sequence).ok());
  }

  // Rows for each sequence, to layer 0 alone.
  absl::Status AppendRows(absl::Span<const Sequence> sequences, int32_t rows_each = 1) {
    const ModelSpec& model = engine->options().model;
    std::vector<int32_t> cu_seqlens = {0};
    while (cu_seqlens.size() <= sequences.size()) {
      cu_seqlens.push_back(cu_seqlens.back() + rows_each);
    }
    const int64_t rows = cu_seqlens.back();
    const std::vector<float> keys(rows * model.num_kv_heads * model.head_dim_k, 0.5f);
    const std::vector<float> values(rows * model.num_kv_heads * model.head_dim_v, 2.0f);
    return engine->Append(
        {sequences, cu_seqlens}, 0,
        TensorView::Dense(keys.data(), DType::kFloat32, rows, model.num_kv_heads, model.head_dim_k),
        TensorView::Dense(values.data(), DType::kFloat32, rows, model.num_kv_heads,
                          model.head_dim_v));
  }

  // What `call` answers while an append to `sequence` runs; the append itself is undone.
  absl::Status WhileAppending(const std::function<absl::Status()>& call) {
    absl::Status answer = absl::InternalError("the append did not ask its executor");
    executor->IntrudeOnce([&] { answer = call(); });
    EXPECT_TRUE(AppendRows({&sequence, 1}, kManyRows).ok());
    EXPECT_TRUE(tenant.Truncate(sequence, kLength).ok());
    AwaitBuilds();
    return answer;
  }

  // What `call` answers while `plan` is in use.
  absl::Status WhileAttending(const Plan& plan, const std::function<absl::Status()>& call) {
    absl::Status answer = absl::InternalError("the step did not ask its executor");
    executor->IntrudeOnce([&] { answer = call(); });
    EXPECT_TRUE(Attend(plan).ok());
    return answer;
  }

  absl::Status Attend(const Plan& plan) {
    const ModelSpec& model = engine->options().model;
    const int64_t rows = plan.num_rows();
    const std::vector<float> queries(rows * model.num_q_heads * model.head_dim_k, 0.5f);
    std::vector<float> output(rows * model.num_q_heads * model.head_dim_v);
    return engine
        ->Attend(plan, 0,
                 TensorView::Dense(queries.data(), DType::kFloat32, rows, model.num_q_heads,
                                   model.head_dim_k),
                 MutableTensorView::Dense(output.data(), DType::kFloat32, rows, model.num_q_heads,
                                          model.head_dim_v))
        .status();
  }
  absl::Status Retrieve(const Plan& plan) {
    const ModelSpec& model = engine->options().model;
    const int64_t rows = plan.num_rows();
    const std::vector<float> queries(rows * model.num_q_heads * model.head_dim_k, 0.5f);
    return engine
        ->Retrieve(plan, 0,
                   TensorView::Dense(queries.data(), DType::kFloat32, rows, model.num_q_heads,
                                     model.head_dim_k))
        .status();
  }
  Plan PlanOf(const Sequence& one) {
    const int32_t cu_seqlens[] = {0, kManyQueries};
    return *engine->MakePlan({{&one, 1}, cu_seqlens}, AttendOptions::Exact());
  }

  // What `call` answers while the arena refuses every allocation.
  absl::Status WithoutMemory(const std::function<absl::Status()>& call) {
    EngineTestPeer::FailAllocations(*engine, 0, 1 << 20);
    absl::Status answer = call();
    EngineTestPeer::FailAllocations(*engine, 0, 0);
    return answer;
  }

  // What `call` answers about a sequence whose segments are cut while builds are paused; the
  // sequence is gone afterwards.
  absl::Status WithPendingSegments(const std::function<absl::Status(const Sequence&)>& call) {
    EngineTestPeer::PauseBuilds(*engine, true);
    const Sequence pending = *tenant.CreateSequence();
    EXPECT_TRUE(AppendRandom(*engine, pending, 200, 7).ok());
    EXPECT_GT(engine->stats().segments_pending, 0);
    absl::Status answer = call(pending);
    EXPECT_TRUE(tenant.Remove(pending).ok());
    EngineTestPeer::PauseBuilds(*engine, false);
    AwaitBuilds();
    return answer;
  }

  void AwaitBuilds() {
    while (engine->stats().segments_pending > 0) absl::SleepFor(absl::Milliseconds(1));
  }

  // Everything a refused call must leave alone.
  std::string State() {
    std::string state;
    for (const Tenant& one : {tenant, limited}) {
      const auto stats = one.stats();
      EXPECT_TRUE(stats.ok()) << stats.status();
      state += std::to_string(stats->sequences) + " sequences of " +
               std::to_string(stats->host_bytes_used) + " bytes, " +
               std::to_string(stats->evicted_sequences_total) + " evicted\n";
    }
    for (const Sequence& one : {sequence, other, uneven, only}) {
      const auto text = engine->Describe(one);
      EXPECT_TRUE(text.ok()) << text.status();
      state += std::to_string(one.length()) + " tokens\n" + *text;
      for (const AttendOptions& options : {AttendOptions(), AttendOptions::Exact()}) {
        const auto digest = Digest(*engine, one, options);
        EXPECT_TRUE(digest.ok()) << digest.status();
        for (const float value : *digest) state += std::to_string(value) + " ";
      }
    }
    const EngineStats stats = engine->stats();
    return state + std::to_string(stats.tenants) + " tenants, " +
           std::to_string(stats.arena_bytes_used) + " bytes used, " +
           std::to_string(stats.segments_sealed) + " segments sealed, " +
           std::to_string(stats.segments_pending) + " pending";
  }

  const std::shared_ptr<IntrudingExecutor> executor = std::make_shared<IntrudingExecutor>();
  std::unique_ptr<Engine> engine;
  Tenant tenant, limited;
  Sequence sequence, other, uneven, only;
};

struct BadMoment {
  std::string name;
  absl::StatusCode code;
  std::string fragment;  // of the message
  std::function<absl::Status(World&)> call;
};

void PrintTo(const BadMoment& bad, std::ostream* out) { *out << bad.name; }

std::vector<BadMoment> SecondWriters() {
  std::vector<BadMoment> table;
  const auto add = [&](const char* name, std::function<absl::Status(World&)> call) {
    table.push_back({name, absl::StatusCode::kAborted, "another call is writing to it",
                     [call](World& w) { return w.WhileAppending([&] { return call(w); }); }});
  };
  add("AppendWhileAnotherAppends", [](World& w) { return w.AppendRows({&w.sequence, 1}); });
  add("AppendToABatchWithABusySequence", [](World& w) {
    const Sequence batch[] = {w.other, w.sequence};
    return w.AppendRows(batch);
  });
  add("TruncateWhileAnotherAppends",
      [](World& w) { return w.tenant.Truncate(w.sequence, kLength - 1); });
  add("TruncateToNothingWhileAnotherAppends",
      [](World& w) { return w.tenant.Truncate(w.sequence, 0); });
  add("RemoveWhileAnotherAppends", [](World& w) { return w.tenant.Remove(w.sequence); });
  add("BuildSegmentsWhileAnotherAppends",
      [](World& w) { return w.engine->BuildSegments(w.sequence); });
  return table;
}

std::vector<BadMoment> BusyPlans() {
  std::vector<BadMoment> table;
  const auto add = [&](const char* name,
                       std::function<absl::Status(World&, const Plan& plan)> call) {
    table.push_back(
        {name, absl::StatusCode::kAborted, "plan: another call is using it", [call](World& w) {
           const Plan plan = w.PlanOf(w.sequence);
           return w.WhileAttending(plan, [&] { return call(w, plan); });
         }});
  };
  add("AttendOfABusyPlan", [](World& w, const Plan& plan) { return w.Attend(plan); });
  add("RetrieveOfABusyPlan", [](World& w, const Plan& plan) { return w.Retrieve(plan); });
  return table;
}

std::vector<BadMoment> ShortOfMemory() {
  std::vector<BadMoment> table;
  const auto add = [&](const char* name, const char* fragment,
                       std::function<absl::Status(World&)> call) {
    table.push_back({name, absl::StatusCode::kResourceExhausted, fragment, std::move(call)});
  };
  constexpr char kArena[] = "arena of host memory: requested";
  add("AppendToAFullArena", kArena, [](World& w) {
    return w.WithoutMemory([&] { return AppendRandom(*w.engine, w.other, 70, 8); });
  });
  add("AppendToAnEmptySequenceInAFullArena", kArena, [](World& w) {
    const Sequence empty = *w.tenant.CreateSequence();
    const absl::Status status = w.WithoutMemory([&] { return w.AppendRows({&empty, 1}); });
    EXPECT_EQ(empty.length(), 0);
    EXPECT_TRUE(w.tenant.Remove(empty).ok());
    return status;
  });
  add("ForkThroughASealedSegmentInAFullArena", kArena, [](World& w) {
    return w.WithoutMemory([&] { return w.tenant.Fork(w.sequence, 100).status(); });
  });
  add("TruncateThroughASealedSegmentInAFullArena", kArena,
      [](World& w) { return w.WithoutMemory([&] { return w.tenant.Truncate(w.sequence, 100); }); });
  add("AppendBeyondTheQuotaOfBytes", "quota 65536",
      [](World& w) { return AppendRandom(*w.engine, w.only, 2000, 9); });
  add("CreateBeyondTheQuotaOfSequences",
      "tenant quota of sequences: requested 1, available 0, quota 1",
      [](World& w) { return w.limited.CreateSequence().status(); });
  add("ForkBeyondTheQuotaOfSequences",
      "tenant quota of sequences: requested 1, available 0, quota 1",
      [](World& w) { return w.limited.Fork(w.only).status(); });
  add("WaitForBuildsThatFoundNoMemory", "could not be sealed for want of memory", [](World& w) {
    return w.WithPendingSegments([&](const Sequence& pending) {
      return w.WithoutMemory([&] {
        EngineTestPeer::PauseBuilds(*w.engine, false);
        return w.engine->WaitForBuilds(pending);
      });
    });
  });
  return table;
}

std::vector<BadMoment> Others() {
  return {
      {"WaitForBuildsBeyondItsTimeout", absl::StatusCode::kDeadlineExceeded, "timeout: sequence",
       [](World& w) {
         return w.WithPendingSegments([&](const Sequence& pending) {
           return w.engine->WaitForBuilds(pending, absl::Milliseconds(2));
         });
       }},
      {"WaitForBuildsWithoutATimeout", absl::StatusCode::kDeadlineExceeded, "pending segments",
       [](World& w) {
         return w.WithPendingSegments([&](const Sequence& pending) {
           return w.engine->WaitForBuilds(pending, absl::ZeroDuration());
         });
       }},
      {"ForkAllOfUnevenLayers", absl::StatusCode::kFailedPrecondition,
       "layers must be equally long to fork all tokens, but layer 0 has 21 and the shortest 20",
       [](World& w) { return w.tenant.Fork(w.uneven).status(); }},
      {"ForkBeyondTheShortestLayer", absl::StatusCode::kOutOfRange,
       "prefix_tokens must be in [0, 20]",
       [](World& w) { return w.tenant.Fork(w.uneven, kShortest + 1).status(); }},
      {"TruncateBeyondTheShortestLayer", absl::StatusCode::kOutOfRange,
       "new_length must be in [0, 20]",
       [](World& w) { return w.tenant.Truncate(w.uneven, kShortest + 1); }},
      {"AttendOfAPlanWhoseTenantIsClosed", absl::StatusCode::kNotFound, "no such sequence",
       [](World& w) {
         Tenant closing = *w.engine->OpenTenant("closing");
         const Plan plan = w.PlanOf(*closing.CreateSequence());
         EXPECT_TRUE(w.engine->CloseTenant(closing).ok());
         return w.Attend(plan);
       }},
      {"RetrieveOfAPlanWhoseSequenceIsRemoved", absl::StatusCode::kNotFound, "no such sequence",
       [](World& w) {
         const Sequence gone = *w.tenant.CreateSequence();
         const Plan plan = w.PlanOf(gone);
         EXPECT_TRUE(w.tenant.Remove(gone).ok());
         return w.Retrieve(plan);
       }},
  };
}

std::vector<BadMoment> BadMoments() {
  std::vector<BadMoment> table;
  for (const auto& part : {SecondWriters(), BusyPlans(), ShortOfMemory(), Others()}) {
    table.insert(table.end(), part.begin(), part.end());
  }
  return table;
}

// One world for all: what a bad call changed would fail the next one too.
class BadMomentTest : public ::testing::TestWithParam<BadMoment> {
 protected:
  static void SetUpTestSuite() { world_ = std::make_unique<World>(); }
  static void TearDownTestSuite() { world_.reset(); }

  static std::unique_ptr<World> world_;
};

std::unique_ptr<World> BadMomentTest::world_;

TEST_P(BadMomentTest, IsNamedAndChangesNothing) {
  World& world = *world_;
  const std::string before = world.State();
  const absl::Status status = GetParam().call(world);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().fragment));
  EXPECT_EQ(world.State(), before);
  const absl::Status audit = EngineTestPeer::Audit(*world.engine);
  EXPECT_TRUE(audit.ok()) << audit;
}

INSTANTIATE_TEST_SUITE_P(Api, BadMomentTest, ::testing::ValuesIn(BadMoments()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace wavekv
