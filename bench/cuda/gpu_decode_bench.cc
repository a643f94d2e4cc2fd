// Decode steps of an engine on a GPU, in the shape of Llama 3 8B's layers (32 query heads, 8 kv
// heads of 128 bf16 elements): microseconds of a layer by events on the device, for contexts of
// synthetic keys (bench/synthetic_layer.h), which all sequences and layers hold copies of.
//
//   step_wave, step_dense   append a token and attend, all layers in one CUDA graph, as an
//   inference
//                           engine runs it; with the default options, and exactly
//   step_wave/../retrieval:R/sketch:S
//                           with other budgets, in percent of the sealed tokens
//   call_wave, call_dense   Attend alone, called anew for each layer: where the processor is slower
//                           than the device, the device's time includes waiting for it
//   index_build             wall time until a prompt is sealed, appends and background builds
//
// Counted are the bytes that a layer's step must read (AttendStats), and their share of a plain
// copy's bytes per second in the same run. Caches are emptied before every round of layers. Before
// it is timed, each budget's error against exact attention is measured on the same data. The lines
// at the end say the same of each context:
//   gpu_decode batch=.. tokens=.. layers=.. dense_us=.. dense_floor_us=.. wave_us=..
//       wave_floor_us=.. ratio=.. rel_err_mean=.. bytes_ratio=.. call_wave_us=..
// floor: the time that a copy of that many bytes takes; ratio: dense / wave.
//
//   --device=cuda|emulated  emulated: on the CPU, only to see that the benchmark works
//   --smoke                 the smallest sizes
//   --batch=1,8,32          sequences of a step
//   --tokens=8192,...       of each sequence
//   --layers=N              at most; as many as memory and build_seconds allow
//   --build_seconds=N       what takes longer to build for a context is left out
//   --seconds=N             what has not begun by then is left out
//   --copy_mib, --milliseconds  as gpu_kernels_bench
//
// Without a GPU it says so ("no device: ...") and ends with exit code 0.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "api/engine_test_peer.h"
#include "bench/bench_main.h"
#include "bench/cuda/decode_context.h"
#include "bench/cuda/device_bench.h"
#include "cuda/emulator/emulated_gpu.h"
#include "cuda/gpu.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string device = "cuda";
  bool smoke = false;
  std::vector<int64_t> batches = {1, 8, 32};
  std::vector<int64_t> tokens = {8192, 32768, 122880};
  std::vector<int64_t> layers = {4};
  std::vector<int64_t> build_seconds = {10};
  std::vector<int64_t> seconds = {60};
  std::vector<int64_t> copy_mib = {1024};
  std::vector<int64_t> milliseconds = {150};
  DecodeShape shape;
};

// What fits: the layers and sequences of the engine for a context.
struct ContextPlan {
  int64_t tokens = 0;
  int layers = 0;
  std::vector<int64_t> batches;
};

struct Budgets {
  int retrieval_permille;
  int sketch_percent;
};
constexpr Budgets kSweep[] = {{5, 10}, {18, 10}, {50, 50}};

AttendOptions OptionsOf(const Budgets& budgets) {
  AttendOptions options;
  options.retrieval = Budget::Ratio(budgets.retrieval_permille / 1000.0);
  options.sketch = Budget::Ratio(budgets.sketch_percent / 100.0);
  return options;
}

std::string CaseName(const char* kind, int64_t batch, int64_t tokens) {
  return absl::StrCat(kind, "/batch:", batch, "/tokens:", tokens);
}

class DecodeBench {
 public:
  DecodeBench(const Settings& settings, std::shared_ptr<Gpu> gpu)
      : settings_(settings), gpu_(std::move(gpu)) {}

  absl::Status Prepare() {
    DeviceBenchOptions options;
    options.copy_bytes = settings_.copy_mib.back() << 20;
    options.seconds = static_cast<double>(settings_.milliseconds.back()) * 1e-3;
    WAVEKV_ASSIGN_OR_RETURN(bench_, DeviceBench::Create(gpu_, options));
    WAVEKV_ASSIGN_OR_RETURN(data_, DecodeData::Create(*bench_, settings_.shape));
    WAVEKV_ASSIGN_OR_RETURN(build_seconds_, MeasureBuild(*bench_, *data_));
    RegisterBuild();
    for (const int64_t tokens : settings_.tokens) {
      if (tokens > settings_.shape.num_tokens) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--tokens: expected at most ", settings_.shape.num_tokens, ", got ", tokens));
      }
      plans_.push_back(Fit(tokens));
      for (const int64_t batch : plans_.back().batches) RegisterSteps(plans_.back(), batch);
    }
    return absl::OkStatus();
  }

  void PrintLines(const Milliseconds& times) const {
    fmt::print("gpu_index_build tokens={} kv_heads={} wall_seconds={:.4f}\n",
               settings_.shape.num_tokens, settings_.shape.num_kv_heads, build_seconds_);
    for (const ContextPlan& plan : plans_) {
      for (const int64_t batch : plan.batches) PrintLine(times, plan, batch);
    }
    fmt::print("gpu_decode device=\"{}\" copy_gb_s={:.1f}\n", gpu_->info().name,
               bench_->copy_bytes_per_second() * 1e-9);
  }

 private:
  // Fewer layers first, then fewer sequences.
  ContextPlan Fit(int64_t tokens) const {
    constexpr int64_t kOtherBytes = int64_t{6} << 30;  // workspaces, staging, what is not ours
    int64_t memory = gpu_->info().memory_bytes;
    if (memory == 0) memory = int64_t{64} << 30;  // emulated, not said
    const int64_t room = memory - kOtherBytes - data_->bytes();
    const double token_seconds = build_seconds_ / static_cast<double>(settings_.shape.num_tokens);
    ContextPlan plan;
    plan.tokens = tokens;
    std::vector<int64_t> batches = settings_.batches;
    std::sort(batches.begin(), batches.end());
    for (const int64_t batch : batches) {
      int layers = static_cast<int>(settings_.layers.back());
      const auto fits = [&] {
        const double seconds = token_seconds * static_cast<double>(batch * tokens * layers);
        return DecodeContext::Options(settings_.shape, layers, batch, tokens).arena_bytes <= room &&
               seconds <= static_cast<double>(settings_.build_seconds.back());
      };
      while (layers > 1 && !fits()) --layers;
      if (!fits()) {
        fmt::print("left out: batch {} of {} tokens, for memory or the time to build it\n", batch,
                   tokens);
        continue;
      }
      plan.batches.push_back(batch);
      plan.layers = layers;
    }
    return plan;
  }

  void RegisterBuild() {
    const double seconds = build_seconds_;
    benchmark::RegisterBenchmark(
        absl::StrCat("index_build/tokens:", settings_.shape.num_tokens).c_str(),
        [seconds](benchmark::State& state) {
          for (auto _ : state) state.SetIterationTime(seconds);
        })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(1);
  }

  void RegisterSteps(const ContextPlan& plan, int64_t batch) {
    const AttendOptions wave, dense = AttendOptions::Exact();
    RegisterStep(CaseName("step_dense", batch, plan.tokens), plan, batch, dense, true);
    RegisterStep(CaseName("step_wave", batch, plan.tokens), plan, batch, wave, true);
    for (const Budgets& budgets : kSweep) {
      RegisterStep(
          fmt::format("{}/retrieval:{:.1f}/sketch:{}", CaseName("step_wave", batch, plan.tokens),
                      budgets.retrieval_permille / 10.0, budgets.sketch_percent),
          plan, batch, OptionsOf(budgets), true);
      if (settings_.smoke) break;
    }
    RegisterStep(CaseName("call_dense", batch, plan.tokens), plan, batch, dense, false);
    RegisterStep(CaseName("call_wave", batch, plan.tokens), plan, batch, wave, false);
  }

  void RegisterStep(const std::string& name, const ContextPlan& plan, int64_t batch,
                    const AttendOptions& options, bool captured) {
    const int64_t tokens = plan.tokens, batch_max = plan.batches.back();
    const int layers = plan.layers;
    bench_->Register(name, [=, this](DeviceArena&) -> absl::StatusOr<DeviceBench::Prepared> {
      if (Clock::now() - start_ > std::chrono::seconds(settings_.seconds.back())) {
        return absl::CancelledError("left out: --seconds is over");
      }
      WAVEKV_ASSIGN_OR_RETURN(DecodeContext* const context, ContextOf(tokens, layers, batch_max));
      WAVEKV_ASSIGN_OR_RETURN(const DecodeQuality quality, context->Measure(options, batch));
      WAVEKV_ASSIGN_OR_RETURN(
          DeviceBench::Prepared prepared,
          captured ? context->CaptureStep(options, batch) : context->CallAttend(options, batch));
      prepared.bytes = quality.bytes_read;
      prepared.counters["layers"] = layers;
      prepared.counters["rel_err_mean"] = quality.rel_err_mean;
      prepared.counters["bytes_ratio"] =
          static_cast<double>(quality.bytes_read) / static_cast<double>(quality.bytes_dense);
      prepared.counters["floor_us"] = FloorUs(quality.bytes_read);
      qualities_[name] = quality;
      return prepared;
    });
  }

  // One at a time: it takes most of the memory.
  absl::StatusOr<DecodeContext*> ContextOf(int64_t tokens, int layers, int64_t batch) {
    if (context_ == nullptr || context_->num_tokens() != tokens) {
      context_.reset();
      WAVEKV_ASSIGN_OR_RETURN(context_,
                              DecodeContext::Create(*bench_, *data_, layers, batch, tokens));
    }
    return context_.get();
  }

  double FloorUs(int64_t bytes) const {
    return 1e6 * static_cast<double>(bytes) / bench_->copy_bytes_per_second();
  }

  void PrintLine(const Milliseconds& times, const ContextPlan& plan, int64_t batch) const {
    const auto micros = [&](const char* kind) {
      const auto found =
          times.find(CaseName(kind, batch, plan.tokens) + "/iterations:1/manual_time");
      return found == times.end() ? 0.0 : found->second * 1e3;
    };
    const double dense = micros("step_dense"), wave = micros("step_wave");
    if (dense == 0.0 || wave == 0.0) return;  // filtered or left out
    const DecodeQuality& quality = qualities_.at(CaseName("step_wave", batch, plan.tokens));
    fmt::print(
        "gpu_decode batch={} tokens={} layers={} dense_us={:.1f} dense_floor_us={:.1f} "
        "wave_us={:.1f} wave_floor_us={:.1f} ratio={:.2f} rel_err_mean={:.4f} bytes_ratio={:.4f} "
        "call_wave_us={:.1f}\n",
        batch, plan.tokens, plan.layers, dense, FloorUs(quality.bytes_dense), wave,
        FloorUs(quality.bytes_read), dense / wave, quality.rel_err_mean,
        static_cast<double>(quality.bytes_read) / static_cast<double>(quality.bytes_dense),
        micros("call_wave"));
  }

  const Settings& settings_;
  const std::shared_ptr<Gpu> gpu_;
  const Clock::time_point start_ = Clock::now();
  std::unique_ptr<DeviceBench> bench_;
  std::unique_ptr<DecodeData> data_;
  double build_seconds_ = 0.0;
  std::vector<ContextPlan> plans_;
  std::map<std::string, DecodeQuality> qualities_;
  std::unique_ptr<DecodeContext> context_;
};

// Two sealed segments of 128 tokens, two kv heads.
void MakeSmall(Settings& settings) {
  settings.batches = {2};
  settings.tokens = {384};
  settings.layers = {2};
  settings.build_seconds = {1000};
  settings.seconds = {1000};
  settings.copy_mib = {1};
  settings.milliseconds = {1};
  settings.shape.num_kv_heads = 2;
  settings.shape.head_dim = 64;
  settings.shape.num_tokens = 1040;
  settings.shape.num_queries = 2;
  settings.shape.index.segment_tokens = 256;
  settings.shape.index.update_tokens = 128;
}

int Main(int argc, char** argv) {
  Settings settings;
  std::unique_ptr<DecodeBench> bench;
  const std::vector<Option> options = {
      {"device", "cuda or emulated",
       [&](const std::string& value) {
         settings.device = value;
         return value == "cuda" || value == "emulated";
       }},
      {"smoke", "the smallest sizes; options behind it change them",
       [&](const std::string& value) {
         settings.smoke = true;
         MakeSmall(settings);
         return value.empty();
       }},
      NumbersOption("batch", "sequences of a step", 1, kBatchMax, &settings.batches),
      NumbersOption("tokens", "tokens of each sequence", 128, 131072, &settings.tokens),
      NumbersOption("layers", "at most", 1, 1024, &settings.layers),
      NumbersOption("build_seconds", "what takes longer to build is left out", 1, 1 << 20,
                    &settings.build_seconds),
      NumbersOption("seconds", "what has not begun by then is left out", 1, 1 << 20,
                    &settings.seconds),
      NumbersOption("copy_mib", "bytes of the copy", 1, 1 << 16, &settings.copy_mib),
      NumbersOption("milliseconds", "how long each benchmark is timed", 1, 1 << 16,
                    &settings.milliseconds)};
  const auto prepare = [&]() -> absl::Status {
    absl::StatusOr<std::shared_ptr<Gpu>> gpu =
        settings.device == "emulated" ? MakeEmulatedGpu() : OpenGpu(0);
    if (absl::IsUnavailable(gpu.status()) || absl::IsUnimplemented(gpu.status())) {
      fmt::print("no device: {}\n", std::string(gpu.status().message()));
      std::fflush(stdout);
      std::exit(0);  // nothing to measure is no failure
    }
    WAVEKV_RETURN_IF_ERROR(gpu.status());
    // Engines take the same one.
    EngineTestPeer::UseGpu(*gpu);
    benchmark::AddCustomContext("device", (*gpu)->info().name);
    bench = std::make_unique<DecodeBench>(settings, *std::move(gpu));
    return bench->Prepare();
  };
  const int code = BenchMain(argc, argv, options, prepare,
                             [&](const Milliseconds& times) { bench->PrintLines(times); });
  bench.reset();
  EngineTestPeer::UseGpu(nullptr);
  return code;
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) { return wavekv::bench::Main(argc, argv); }
