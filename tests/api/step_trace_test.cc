// EngineOptions::trace_path and Engine::WriteTrace.
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "api/step_observer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/api/small_engine.h"

namespace wavekv {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string TemporaryPath(const std::string& name) { return ::testing::TempDir() + "/" + name; }

Json ReadJson(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const Json json = Json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << text.str();
  return json;
}

// Opens an engine, appends, seals, attends and retrieves; what it answered.
std::vector<float> RunSteps(const EngineOptions& options, const std::string& midway = "") {
  auto engine = testing::OpenEngine(options);
  const Tenant tenant = *engine->OpenTenant("one");
  const Sequence sequence = *tenant.CreateSequence();
  EXPECT_TRUE(testing::AppendRandom(*engine, sequence, 400, 1).ok());
  EXPECT_TRUE(engine->BuildSegments(sequence).ok());
  EXPECT_TRUE(engine->WaitForBuilds(sequence).ok());
  const auto digest = testing::Digest(*engine, sequence, AttendOptions());
  const int32_t cu_seqlens[] = {0, 1};
  const ModelSpec& model = options.model;
  const std::vector<float> query =
      testing::Random(5).Gaussians(model.num_q_heads * model.head_dim_k);
  const Plan plan = *engine->MakePlan({{&sequence, 1}, cu_seqlens});
  EXPECT_TRUE(engine
                  ->Retrieve(plan, 0,
                             TensorView::Dense(query.data(), DType::kFloat32, 1, model.num_q_heads,
                                               model.head_dim_k))
                  .ok());
  EXPECT_TRUE(digest.ok()) << digest.status();
  if (!midway.empty()) {
    EXPECT_TRUE(engine->WriteTrace(midway).ok());
  }
  return *digest;
}

TEST(StepTraceTest, HoldsNestedPhasesThatATracingPageLoads) {
  EngineOptions options = testing::SmallEngineOptions();
  options.trace_path = TemporaryPath("steps.json");
  RunSteps(options);
  const Json trace = ReadJson(options.trace_path);
  EXPECT_EQ(trace["otherData"]["dropped_events"], 0);

  std::map<std::string, int> count;
  std::vector<Json> calls;
  std::set<int64_t> build_threads, call_threads;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] == "M") continue;
    EXPECT_EQ(event["ph"], "X");
    EXPECT_GE(event["ts"].get<double>(), 0.0);
    EXPECT_GE(event["dur"].get<double>(), 0.0);
    EXPECT_TRUE(event["pid"].is_number_integer());
    const std::string name = event["name"];
    ++count[name];
    if (name == "attend" || name == "retrieve") calls.push_back(event);
    (name == "build" ? build_threads : call_threads).insert(event["tid"].get<int64_t>());
    if (name == "build") {
      EXPECT_EQ(event["args"]["tokens"].get<int64_t>() % 64, 0);
    }
  }
  EXPECT_EQ(count["append"], 2);
  EXPECT_EQ(count["attend"], 2);
  EXPECT_EQ(count["retrieve"], 1);
  EXPECT_EQ(count["store"], 2);
  for (const char* phase : {"pin", "load"}) EXPECT_EQ(count[phase], 3) << phase;
  // Of a call, or of each kv head that its thread answers alone.
  for (const char* phase : {"read", "estimate", "merge"}) EXPECT_GE(count[phase], 2) << phase;
  EXPECT_GE(count["rank"], 3);
  EXPECT_GT(count["build"], 0);
  EXPECT_EQ(call_threads.size(), 1u);
  for (const int64_t thread : build_threads) EXPECT_FALSE(call_threads.contains(thread));

  // Phases lie within the call of their layer. Times are cut to nanoseconds.
  for (const Json& event : trace["traceEvents"]) {
    const std::string name = event["name"];
    if (event["ph"] == "M" || name == "append" || name == "build") continue;
    if (name == "attend" || name == "retrieve") continue;
    const int layer = event["args"]["layer"];
    EXPECT_EQ(event["args"]["rows"], 1);
    bool within = false;
    for (const Json& call : calls) {
      const double begin = call["ts"].get<double>() - 0.002;
      const double end = begin + call["dur"].get<double>() + 0.004;
      within = within || (call["args"]["layer"] == layer && event["ts"].get<double>() >= begin &&
                          event["ts"].get<double>() + event["dur"].get<double>() <= end);
    }
    EXPECT_TRUE(within) << event;
  }
}

TEST(StepTraceTest, AnswersAreTheSameWithIt) {
  EngineOptions options = testing::SmallEngineOptions();
  const std::vector<float> without = RunSteps(options);
  options.trace_path = TemporaryPath("same.json");
  EXPECT_EQ(RunSteps(options), without);
}

TEST(StepTraceTest, CanBeWrittenWhileTheEngineRuns) {
  EngineOptions options = testing::SmallEngineOptions();
  options.trace_path = TemporaryPath("end.json");
  const std::string midway = TemporaryPath("midway.json");
  RunSteps(options, midway);
  EXPECT_EQ(ReadJson(midway)["traceEvents"].size(),
            ReadJson(options.trace_path)["traceEvents"].size());
}

TEST(StepTraceTest, AFileThatCannotBeWrittenIsRefusedAtOpen) {
  EngineOptions options = testing::SmallEngineOptions();
  options.trace_path = "/nonexistent/folder/trace.json";
  const auto engine = Engine::Open(options);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("trace_path: cannot write"));
}

TEST(StepTraceTest, WithoutATracePathThereIsNothingToWrite) {
  const auto engine = testing::OpenEngine();
  const absl::Status status = engine->WriteTrace(TemporaryPath("none.json"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("trace_path"));
}

TEST(StepTraceTest, APathThatCannotBeWrittenLaterIsRefused) {
  EngineOptions options = testing::SmallEngineOptions();
  options.trace_path = TemporaryPath("later.json");
  const auto engine = testing::OpenEngine(options);
  EXPECT_EQ(engine->WriteTrace("/nonexistent/folder/x").code(), absl::StatusCode::kInvalidArgument);
}

TEST(StepTraceTest, TheNewestEventsAreKeptAndTheOthersCounted) {
  const std::string path = TemporaryPath("ring.json");
  const auto observer = *StepObserver::Create(path);
  const auto begin = StepObserver::Clock::now();
  for (int64_t i = 0; i < StepObserver::kEventsMax + 10; ++i) {
    observer->Record(Phase::kAppend, begin, begin + std::chrono::nanoseconds(1000), 0, i);
  }
  ASSERT_TRUE(observer->WriteTrace(path).ok());
  const Json trace = ReadJson(path);
  EXPECT_EQ(trace["otherData"]["dropped_events"], 10);
  ASSERT_EQ(trace["traceEvents"].size(), StepObserver::kEventsMax + 1);  // with the name
  EXPECT_EQ(trace["traceEvents"][1]["args"]["rows"], 10);
  EXPECT_EQ(trace["traceEvents"].back()["args"]["rows"], StepObserver::kEventsMax + 9);
  EXPECT_NEAR(observer->seconds(Phase::kAppend), (StepObserver::kEventsMax + 10) * 1e-6, 1e-9);
}

}  // namespace
}  // namespace wavekv
