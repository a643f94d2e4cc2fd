// Decode steps of one layer while another sequence's prompt is appended and sealed behind their
// back, beside the same steps with nothing else to do. A step is Append of one row and Attend with
// the default zones, on a sealed context. The other sequence has a thread of its own, which appends
// prompts chunk by chunk, waits until they are sealed, and removes them, one after the other.
//
// Counters: p50, p99 and maximum of a step; segments (of 8,192 tokens, mostly) sealed a second
// beside the steps, and beside nothing (`sealing`).
//
// The last line: interference quiet_p50_ms=.. quiet_p99_ms=.. busy_p50_ms=.. busy_p99_ms=..
// ratio=.., of busy_p99 to quiet_p50.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/bench_main.h"
#include "bench/synthetic_layer.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "wavekv/engine.h"

namespace wavekv::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Rows of one Append of the prompt.
constexpr int64_t kChunkRows = 2048;
// Of a prompt, in turn: a segment's.
constexpr int64_t kDistinctRows = 8192;
// Steps after which the sequence is cut back, so that its own tail is never sealed.
constexpr int64_t kStepsKept = 32;

struct Arguments {
  std::vector<int64_t> tokens = {32768};  // one number, as all of them
  std::vector<int64_t> prompt = {32768};
  std::vector<int64_t> steps = {2000};
  std::vector<int64_t> threads = {0};
  std::vector<int64_t> build_threads = {1};
};

Arguments& TheArguments() {
  static Arguments arguments;
  return arguments;
}

struct Percentiles {
  double p50_ms = 0.0;
  double p99_ms = 0.0;
};
std::map<std::string, Percentiles>& TheResults() {
  static std::map<std::string, Percentiles> results;
  return results;
}

class World {
 public:
  static absl::StatusOr<std::unique_ptr<World>> Create() {
    const Arguments& arguments = TheArguments();
    SyntheticLayerSpec spec;
    spec.num_tokens = std::max(arguments.tokens[0], kChunkRows);
    WAVEKV_ASSIGN_OR_RETURN(SyntheticLayer layer, SyntheticLayer::Create(spec));
    auto world = std::unique_ptr<World>(new World(std::move(layer)));
    EngineOptions options = world->layer_.Options();
    options.worker_threads = static_cast<int>(arguments.threads[0]);
    options.build_threads = static_cast<int>(arguments.build_threads[0]);
    options.arena_bytes = ArenaBytesFor(options, spec.num_tokens + arguments.prompt[0], 2);
    WAVEKV_ASSIGN_OR_RETURN(world->engine_, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(world->tenant_, world->engine_->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(world->sequence_, world->tenant_.CreateSequence());
    WAVEKV_RETURN_IF_ERROR(world->layer_.AppendTo(*world->engine_, world->sequence_));
    WAVEKV_RETURN_IF_ERROR(world->engine_->BuildSegments(world->sequence_));
    WAVEKV_RETURN_IF_ERROR(world->engine_->WaitForBuilds(world->sequence_));
    world->rows_ = world->layer_.Rows(0, std::min(kDistinctRows, spec.num_tokens));
    world->length_ = world->sequence_.length();
    const int32_t cu_seqlens[] = {0, 1};
    WAVEKV_ASSIGN_OR_RETURN(world->plan_,
                            world->engine_->MakePlan({{&world->sequence_, 1}, cu_seqlens}));
    // What has not been touched before is not what is measured.
    WAVEKV_RETURN_IF_ERROR(world->SealPrompt(nullptr));
    return world;
  }

  absl::Status Step() {
    const int32_t cu_seqlens[] = {0, 1};
    WAVEKV_RETURN_IF_ERROR(engine_->Append({{&sequence_, 1}, cu_seqlens}, 0, Rows(rows_.keys, 0, 1),
                                           Rows(rows_.values, 0, 1)));
    const SyntheticLayerSpec& spec = layer_.spec();
    const int64_t query = num_steps_ % spec.num_queries;
    return engine_
        ->Attend(
            plan_, 0,
            TensorView::Dense(layer_.queries().data() + query * spec.num_q_heads() * spec.head_dim,
                              DType::kFloat32, 1, spec.num_q_heads(), spec.head_dim),
            MutableTensorView::Dense(output_.data(), DType::kFloat32, 1, spec.num_q_heads(),
                                     spec.head_dim))
        .status();
  }

  // Between steps.
  absl::Status CutBack() {
    if (++num_steps_ % kStepsKept != 0) return absl::OkStatus();
    return tenant_.Truncate(sequence_, length_);
  }

  // Appends a prompt, waits until it is sealed and removes it.
  absl::Status SealPrompt(const std::atomic<bool>* stop) {
    WAVEKV_ASSIGN_OR_RETURN(const Sequence sequence, tenant_.CreateSequence());
    const int64_t prompt = TheArguments().prompt[0];
    absl::Status status;
    for (int64_t begin = 0; begin < prompt && status.ok(); begin += kChunkRows) {
      if (stop != nullptr && stop->load()) break;
      const int64_t rows = std::min(kChunkRows, prompt - begin);
      const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
      status = engine_->Append({{&sequence, 1}, cu_seqlens}, 0, Rows(rows_.keys, begin, rows),
                               Rows(rows_.values, begin, rows));
    }
    if (status.ok()) status = engine_->BuildSegments(sequence);
    while (status.ok()) {
      status = engine_->WaitForBuilds(sequence, absl::Milliseconds(100));
      if (!absl::IsDeadlineExceeded(status)) break;
      status = absl::OkStatus();
      if (stop != nullptr && stop->load()) break;
    }
    const absl::Status removed = tenant_.Remove(sequence);
    return status.ok() ? removed : status;
  }

  // Ever, by all sequences.
  int64_t sealed_segments() const { return engine_->stats().segments_sealed_total; }

 private:
  explicit World(SyntheticLayer layer) : layer_(std::move(layer)) {
    output_.resize(int64_t{layer_.spec().num_q_heads()} * layer_.spec().head_dim);
  }

  // Rows of a prompt from `begin` on, a multiple of kChunkRows.
  TensorView Rows(const std::vector<float>& rows, int64_t begin, int64_t num_rows) const {
    TensorView view = ViewOf(rows, layer_.spec(), rows_.num_rows);
    const int64_t first = begin % (rows_.num_rows / kChunkRows * kChunkRows);
    view.data = rows.data() + first * layer_.spec().head_dim;
    view.num_rows = num_rows;
    return view;
  }

  const SyntheticLayer layer_;
  std::unique_ptr<Engine> engine_;
  Tenant tenant_;
  Sequence sequence_;
  int64_t length_ = 0;
  Plan plan_;
  LayerRows rows_;
  std::vector<float> output_;
  int64_t num_steps_ = 0;
};

World* TheWorld(std::string* error) {
  static const absl::StatusOr<std::unique_ptr<World>> world = World::Create();
  if (!world.ok()) *error = world.status().ToString();
  return world.ok() ? world->get() : nullptr;
}

absl::Status RunSteps(benchmark::State& state, World& world, const std::string& name) {
  std::vector<double> times_ms;
  for (auto _ : state) {
    const auto begin = Clock::now();
    WAVEKV_RETURN_IF_ERROR(world.Step());
    const std::chrono::duration<double> took = Clock::now() - begin;
    state.SetIterationTime(took.count());
    times_ms.push_back(took.count() * 1e3);
    WAVEKV_RETURN_IF_ERROR(world.CutBack());
  }
  std::sort(times_ms.begin(), times_ms.end());
  const auto at = [&](double share) {
    return times_ms[static_cast<size_t>(share * static_cast<double>(times_ms.size() - 1))];
  };
  TheResults()[name] = {at(0.50), at(0.99)};
  state.counters["p50_ms"] = at(0.50);
  state.counters["p99_ms"] = at(0.99);
  state.counters["max_ms"] = times_ms.back();
  return absl::OkStatus();
}

absl::Status RunBusySteps(benchmark::State& state, World& world) {
  std::atomic<bool> stop{false};
  absl::Status sealed;
  const int64_t sealed_before = world.sealed_segments();
  const auto begin = Clock::now();
  std::thread sealing([&] {
    while (!stop.load() && sealed.ok()) sealed = world.SealPrompt(&stop);
  });
  const absl::Status stepped = RunSteps(state, world, "busy");
  const std::chrono::duration<double> took = Clock::now() - begin;
  state.counters["segments/s"] =
      static_cast<double>(world.sealed_segments() - sealed_before) / took.count();
  stop.store(true);
  sealing.join();
  WAVEKV_RETURN_IF_ERROR(stepped);
  return sealed;
}

void Finish(benchmark::State& state, const absl::Status& status) {
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
}

void BM_Quiet(benchmark::State& state) {
  std::string error;
  World* const world = TheWorld(&error);
  if (world == nullptr) return state.SkipWithError(error.c_str());
  Finish(state, RunSteps(state, *world, "quiet"));
}

void BM_Busy(benchmark::State& state) {
  std::string error;
  World* const world = TheWorld(&error);
  if (world == nullptr) return state.SkipWithError(error.c_str());
  Finish(state, RunBusySteps(state, *world));
}

// Prompts one after the other, without steps.
void BM_Sealing(benchmark::State& state) {
  std::string error;
  World* const world = TheWorld(&error);
  if (world == nullptr) return state.SkipWithError(error.c_str());
  const int64_t sealed_before = world->sealed_segments();
  for (auto _ : state) {
    if (const absl::Status status = world->SealPrompt(nullptr); !status.ok()) {
      return Finish(state, status);
    }
  }
  state.counters["segments/s"] = benchmark::Counter(
      static_cast<double>(world->sealed_segments() - sealed_before), benchmark::Counter::kIsRate);
}

absl::Status Register() {
  const int64_t steps = TheArguments().steps[0];
  for (const auto& [name, run] : {std::pair{"quiet", &BM_Quiet}, {"busy", &BM_Busy}}) {
    benchmark::RegisterBenchmark(name, run)->Iterations(steps)->UseManualTime()->Unit(
        benchmark::kMillisecond);
  }
  benchmark::RegisterBenchmark("sealing", &BM_Sealing)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  return absl::OkStatus();
}

void PrintLine(const Milliseconds&) {
  const Percentiles quiet = TheResults()["quiet"];
  const Percentiles busy = TheResults()["busy"];
  if (quiet.p50_ms == 0.0 || busy.p50_ms == 0.0) return;  // filtered out
  fmt::print(
      "interference quiet_p50_ms={:.3f} quiet_p99_ms={:.3f} busy_p50_ms={:.3f} busy_p99_ms={:.3f} "
      "ratio={:.2f}\n",
      quiet.p50_ms, quiet.p99_ms, busy.p50_ms, busy.p99_ms, busy.p99_ms / quiet.p50_ms);
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments& arguments = TheArguments();
  return BenchMain(
      argc, argv,
      {NumbersOption("tokens", "context of the steps", 2048, int64_t{1} << 24, &arguments.tokens),
       NumbersOption("prompt", "tokens of a prompt that is sealed meanwhile", 2048,
                     int64_t{1} << 24, &arguments.prompt),
       NumbersOption("steps", "that are timed", 1, int64_t{1} << 30, &arguments.steps),
       NumbersOption("threads", "0: one per processor", 0, 4096, &arguments.threads),
       NumbersOption("build_threads", "that seal", 1, 4096, &arguments.build_threads)},
      &Register, &PrintLine);
}
