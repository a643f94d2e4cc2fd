// The operations on a GPU, each by itself: microseconds of a launch, the bytes that it has to move,
// and what share that is of the bytes per second of a plain copy on the same device (counter
// copy_share). Each checks a result before it is timed. Launches go round several copies of the
// data, so that none finds its own in a cache.
//
//   --device=cuda|emulated  emulated: on the CPU, only to see that the benchmark works
//   --batch=1,8,32          sequences of a step
//   --tokens=8192,...       tokens of each sequence; what does not fit in memory is left out
//   --copy_mib=N            bytes that are copied for comparison
//   --cold_mib=N            what is read before anything is read again
//   --milliseconds=N        how long each benchmark is timed
//
// Without a GPU it says so ("no device: ...") and ends with exit code 0.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/bench_main.h"
#include "bench/cuda/attention_benchmarks.h"
#include "bench/cuda/device_bench.h"
#include "cuda/emulator/emulated_gpu.h"
#include "cuda/gpu.h"
#include "cuda/merge_states.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

struct Settings {
  std::string device = "cuda";
  std::vector<int64_t> batches = {1, 8, 32};
  std::vector<int64_t> tokens = {8192, 32768, 122880};
  std::vector<int64_t> copy_mib = {1024};
  std::vector<int64_t> cold_mib = {256};
  std::vector<int64_t> milliseconds = {300};
};

// The states of the splits of 8 kv heads with 4 queries of 128 elements each.
class Merges {
 public:
  Merges(DeviceBench& bench, int64_t batch, int num_states)
      : bench_(bench), num_tasks_(batch * 8), num_states_(num_states) {}

  absl::StatusOr<DeviceBench::Prepared> Prepare(DeviceArena& arena) {
    constexpr int64_t kStateFloats = int64_t{kQueries} * (kHeadDim + 1);
    DeviceBench::Prepared prepared;
    const int64_t states_bytes =
        num_tasks_ * num_states_ * kStateFloats * static_cast<int64_t>(sizeof(float));
    prepared.bytes = states_bytes + num_tasks_ * kStateFloats * static_cast<int64_t>(sizeof(float));
    prepared.num_layers = bench_.NumLayers(prepared.bytes, prepared.bytes);
    std::mt19937_64 engine(1);
    std::normal_distribution<float> gaussian;
    std::vector<float> numbers(static_cast<size_t>(num_tasks_ * num_states_ * kStateFloats));
    for (float& number : numbers) number = gaussian(engine);
    const int64_t outputs = num_tasks_ * num_states_ * kQueries * kHeadDim;
    for (int layer = 0; layer < prepared.num_layers; ++layer) {
      WAVEKV_ASSIGN_OR_RETURN(const float* const output, arena.Upload(numbers));
      WAVEKV_ASSIGN_OR_RETURN(float* const merged,
                              arena.Allocate<float>(num_tasks_ * kStateFloats));
      std::vector<AttentionState> states;
      for (int64_t i = 0; i < num_tasks_ * num_states_; ++i) {
        states.push_back({output + i * kQueries * kHeadDim, output + outputs + i * kQueries});
      }
      WAVEKV_ASSIGN_OR_RETURN(const AttentionState* const on_device, arena.Upload(states));
      std::vector<MergeStatesTask> tasks;
      for (int64_t i = 0; i < num_tasks_; ++i) {
        MergeStatesTask task;
        task.states =
            absl::MakeConstSpan(on_device + i * num_states_, static_cast<size_t>(num_states_));
        task.num_queries = kQueries;
        task.head_dim_v = kHeadDim;
        task.output = merged + i * kStateFloats;
        task.lse = task.output + kQueries * kHeadDim;
        tasks.push_back(task);
      }
      merged_.push_back(merged);
      WAVEKV_ASSIGN_OR_RETURN(const MergeStatesTask* const device_tasks, arena.Upload(tasks));
      tasks_.push_back(device_tasks);
    }
    WAVEKV_RETURN_IF_ERROR(Launch(0));
    WAVEKV_RETURN_IF_ERROR(Check(numbers));
    prepared.launch = [this](int layer) { return Launch(layer); };
    return prepared;
  }

 private:
  static constexpr int kQueries = 4;
  static constexpr int kHeadDim = 128;

  absl::Status Launch(int layer) {
    TaskBounds bounds;
    bounds.num_queries = kQueries;
    return bench_.operations().merge_states({tasks_[layer], num_tasks_}, bounds, bench_.stream());
  }

  // The last task's queries, in double precision.
  absl::Status Check(const std::vector<float>& numbers) {
    const int64_t task = num_tasks_ - 1;
    constexpr int64_t kStateFloats = int64_t{kQueries} * (kHeadDim + 1);
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> got,
                            bench_.Download(merged_[0] + task * kStateFloats, kStateFloats));
    const int64_t outputs = num_tasks_ * num_states_ * kQueries * kHeadDim;
    for (int q = 0; q < kQueries; ++q) {
      double mass = 0.0, worst = 0.0;
      std::vector<double> sums(kHeadDim);
      for (int64_t s = task * num_states_; s < (task + 1) * num_states_; ++s) {
        const double weight = std::exp(double{numbers[outputs + s * kQueries + q]});
        mass += weight;
        for (int d = 0; d < kHeadDim; ++d) {
          sums[d] += weight * numbers[(s * kQueries + q) * kHeadDim + d];
        }
      }
      for (int d = 0; d < kHeadDim; ++d) {
        worst = std::fmax(worst, std::fabs(got[q * kHeadDim + d] - sums[d] / mass));
      }
      worst = std::fmax(worst, std::fabs(got[kQueries * kHeadDim + q] - std::log(mass)));
      if (!(worst < 1e-4)) return absl::InternalError(absl::StrCat("wrong by ", worst));
    }
    return absl::OkStatus();
  }

  DeviceBench& bench_;
  const int64_t num_tasks_;
  const int num_states_;
  std::vector<const MergeStatesTask*> tasks_;  // [layers]
  std::vector<float*> merged_;                 // [layers]
};

void RegisterCopy(DeviceBench& bench, int64_t bytes) {
  bench.Register(
      "copy", [&bench, bytes](DeviceArena& arena) -> absl::StatusOr<DeviceBench::Prepared> {
        WAVEKV_ASSIGN_OR_RETURN(std::byte* const source, arena.Allocate<std::byte>(bytes));
        WAVEKV_ASSIGN_OR_RETURN(std::byte* const target, arena.Allocate<std::byte>(bytes));
        WAVEKV_RETURN_IF_ERROR(bench.gpu().Fill(source, 1, bytes, bench.stream()));
        DeviceBench::Prepared prepared;
        prepared.bytes = 2 * bytes;
        prepared.launch = [&bench, source, target, bytes](int) {
          return bench.gpu().Copy(target, source, bytes, bench.stream());
        };
        return prepared;
      });
}

void RegisterMerges(DeviceBench& bench, const std::vector<int64_t>& batches) {
  for (const int64_t batch : batches) {
    for (const int num_states : {2, 16}) {
      bench.Register(
          absl::StrCat("merge_states/batch:", batch, "/states:", num_states),
          [&bench, batch, num_states](DeviceArena& arena) -> absl::StatusOr<DeviceBench::Prepared> {
            auto merges = std::make_shared<Merges>(bench, batch, num_states);
            WAVEKV_ASSIGN_OR_RETURN(DeviceBench::Prepared prepared, merges->Prepare(arena));
            prepared.owner = std::move(merges);
            return prepared;
          });
    }
  }
}

absl::StatusOr<std::shared_ptr<Gpu>> OpenDevice(const std::string& device) {
  if (device == "emulated") return MakeEmulatedGpu();
  return OpenGpu(0);
}

int Main(int argc, char** argv) {
  Settings settings;
  std::shared_ptr<Gpu> gpu;
  std::unique_ptr<DeviceBench> bench;
  const std::vector<Option> options = {
      {"device", "cuda or emulated",
       [&](const std::string& value) {
         settings.device = value;
         return value == "cuda" || value == "emulated";
       }},
      NumbersOption("batch", "sequences of a step", 1, 1 << 12, &settings.batches),
      NumbersOption("tokens", "tokens of each sequence", 64, 1 << 24, &settings.tokens),
      NumbersOption("copy_mib", "bytes of the copy", 1, 1 << 16, &settings.copy_mib),
      NumbersOption("cold_mib", "read before anything is read again", 1, 1 << 16,
                    &settings.cold_mib),
      NumbersOption("milliseconds", "how long each benchmark is timed", 1, 1 << 16,
                    &settings.milliseconds)};
  const auto prepare = [&]() -> absl::Status {
    absl::StatusOr<std::shared_ptr<Gpu>> opened = OpenDevice(settings.device);
    if (absl::IsUnavailable(opened.status()) || absl::IsUnimplemented(opened.status())) {
      fmt::print("no device: {}\n", std::string(opened.status().message()));
      std::fflush(stdout);
      std::exit(0);  // nothing to measure is no failure
    }
    WAVEKV_ASSIGN_OR_RETURN(gpu, std::move(opened));
    DeviceBenchOptions bench_options;
    bench_options.copy_bytes = settings.copy_mib.back() << 20;
    bench_options.cold_bytes = settings.cold_mib.back() << 20;
    bench_options.seconds = static_cast<double>(settings.milliseconds.back()) * 1e-3;
    WAVEKV_ASSIGN_OR_RETURN(bench, DeviceBench::Create(gpu, bench_options));
    benchmark::AddCustomContext("device", gpu->info().name);
    RegisterCopy(*bench, bench_options.copy_bytes);
    RegisterMerges(*bench, settings.batches);
    RegisterAttention(*bench, settings.batches, settings.tokens);
    return absl::OkStatus();
  };
  const auto finish = [&](const Milliseconds&) {
    std::string line = fmt::format("gpu_kernels device=\"{}\" copy_gb_s={:.1f}", gpu->info().name,
                                   bench->copy_bytes_per_second() * 1e-9);
    // Of the largest shapes, which run last.
    for (const char* name : {"merge_states", "attend_dense", "attend_sparse"}) {
      const double share = bench->LastShare(name);
      if (share >= 0.0) line += fmt::format(" {}_pct={:.1f}", name, share * 100.0);
    }
    fmt::print("{}\n", line);
  };
  return BenchMain(argc, argv, options, prepare, finish);
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) { return wavekv::bench::Main(argc, argv); }
