// What sealing a segment costs for one kv head, and how good the result is; what sealing a whole
// layer takes on all processors; Faiss's own clustering of the same keys beside both.
//
// The last line: build tokens=.. kv_heads=.. wave_s=.. faiss_s=.. ratio=..
//   wave_s   from the first Append of the prompt's rows until all of it is sealed
//   faiss_s  faiss::Clustering of the same segments (10 iterations, 1 centroid for 16 tokens), each
//            thread one segment of one head at a time
//
// Counters: tokens/s of one thread; captured, the share of the attention mass in the retrieved 1.8
// % of the tokens; recall, of the 100 heaviest tokens; error, of the output with all other clusters
// estimated; share, of BM_SealSegment, the time of statistics and codes relative to clustering's.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/bench_main.h"
#include "bench/device_option.h"
#include "bench/synthetic_layer.h"
#include "cpu/cpu_backend.h"
#include "fmt/format.h"
#include "index/segment_builder.h"
#include "storage/cluster_index.h"
#include "storage/float16.h"
#include "tests/index/index_quality.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int64_t kNumTokens = 8192;
constexpr int kDim = 128;
constexpr KvShape kShape = {kDim, kDim, DType::kBFloat16};

std::vector<std::byte> RoundToBFloat16(std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(uint16_t));
  for (size_t i = 0; i < values.size(); ++i) {
    StoreElement(bytes.data(), DType::kBFloat16, i, values[i]);
    values[i] = LoadElement(bytes.data(), DType::kBFloat16, i);
  }
  return bytes;
}

// A segment as it is stored, and as fp32 to measure with.
struct Segment {
  Segment() : attention(kNumTokens, 64, kDim, 1) {
    keys = RoundToBFloat16(attention.keys);
    values = RoundToBFloat16(attention.values);
    rows = {keys.data(), values.data(), kNumTokens, 0, nullptr};
  }

  TextLikeAttention attention;
  std::vector<std::byte> keys;
  std::vector<std::byte> values;
  KvRange rows;
};

const Segment& TheSegment() {
  static const Segment segment;
  return segment;
}

void Report(benchmark::State& state, const Clustering& clustering) {
  const TextLikeAttention& attention = TheSegment().attention;
  const IndexQuality quality = MeasureIndexQuality(clustering, attention.keys, attention.values,
                                                   attention.queries, kDim, 0.018);
  state.counters["captured"] = quality.captured_mass;
  state.counters["recall"] = quality.recall_at_100;
  state.counters["error"] = quality.output_error;
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}

// Rows to sealed index.
ClusterIndexShape DefaultIndexShape(const Clustering& clustering) {
  const IndexOptions defaults;
  return IndexShape(clustering, kShape, defaults.statistics,
                    ResolveCodeBits(defaults.code_bits, kShape.head_dim_k));
}

// Into an extent of ClusterIndexBytes().
void WriteIndex(const Clustering& clustering, Backend& backend, std::byte* extent,
                benchmark::State& state) {
  const absl::Status status =
      WriteClusterIndex({&TheSegment().rows, 1}, clustering, backend,
                        FormatClusterIndex(extent, DefaultIndexShape(clustering), 0));
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
}

void BM_BuildSegment(benchmark::State& state) {
  const Segment& segment = TheSegment();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  const ClusteringOptions options = {.kmeans_iterations = static_cast<int>(state.range(0))};
  Clustering clustering;
  std::unique_ptr<std::byte, decltype(&std::free)> extent(nullptr, &std::free);
  for (auto _ : state) {
    auto result = ClusterRows({&segment.rows, 1}, kShape, options, 16, *backend);
    if (!result.ok()) {
      state.SkipWithError(result.status().ToString().c_str());
      return;
    }
    clustering = *std::move(result);
    if (extent == nullptr) {
      const int64_t num_bytes = ClusterIndexBytes(DefaultIndexShape(clustering));
      extent.reset(static_cast<std::byte*>(std::aligned_alloc(64, num_bytes)));
    }
    WriteIndex(clustering, *backend, extent.get(), state);
  }
  Report(state, clustering);
}
BENCHMARK(BM_BuildSegment)
    ->ArgName("iterations")
    ->DenseRange(0, 4)
    ->Arg(10)
    ->Unit(benchmark::kMillisecond);

// Its second half alone: permuting the rows and computing the statistics.
void BM_WriteClusterIndex(benchmark::State& state) {
  const Segment& segment = TheSegment();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  const Clustering clustering = *ClusterRows({&segment.rows, 1}, kShape, {}, 16, *backend);
  std::unique_ptr<std::byte, decltype(&std::free)> extent(
      static_cast<std::byte*>(
          std::aligned_alloc(64, ClusterIndexBytes(DefaultIndexShape(clustering)))),
      &std::free);
  for (auto _ : state) {
    WriteIndex(clustering, *backend, extent.get(), state);
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}
BENCHMARK(BM_WriteClusterIndex)->Unit(benchmark::kMillisecond);

// Both halves in turn, as sealing runs them. share: of the second, its statistics and codes, in the
// time of the first.
void BM_SealSegment(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  const Segment& segment = TheSegment();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  std::unique_ptr<std::byte, decltype(&std::free)> extent(nullptr, &std::free);
  std::chrono::duration<double, std::milli> clustering_time{0}, writing_time{0};
  for (auto _ : state) {
    const auto start = Clock::now();
    const Clustering clustering = *ClusterRows({&segment.rows, 1}, kShape, {}, 16, *backend);
    clustering_time += Clock::now() - start;
    if (extent == nullptr) {
      const int64_t num_bytes = ClusterIndexBytes(DefaultIndexShape(clustering));
      extent.reset(static_cast<std::byte*>(std::aligned_alloc(64, num_bytes)));
      std::memset(extent.get(), 0, num_bytes);  // page faults are not what is measured
    }
    const auto clustered = Clock::now();
    WriteIndex(clustering, *backend, extent.get(), state);
    writing_time += Clock::now() - clustered;
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["cluster_ms"] = clustering_time.count() / iterations;
  state.counters["write_ms"] = writing_time.count() / iterations;
  state.counters["share"] = writing_time / clustering_time;
}
BENCHMARK(BM_SealSegment)->Unit(benchmark::kMillisecond);

// Clustering alone, without statistics or permutation, by Faiss.
void BM_FaissClustering(benchmark::State& state) {
  const Segment& segment = TheSegment();
  Clustering clustering;
  for (auto _ : state) {
    clustering = ClusterByFaiss(segment.attention.keys, kDim, kNumTokens / 16,
                                static_cast<int>(state.range(0)), 1);
  }
  Report(state, clustering);
}
BENCHMARK(BM_FaissClustering)
    ->ArgName("iterations")
    ->Arg(4)
    ->Arg(10)
    ->Unit(benchmark::kMillisecond);

// A prompt of 8 mid heads that is appended in one go and sealed.
struct Prompt {
  static const Prompt* Get(int64_t num_tokens, std::string* error) {
    static std::unique_ptr<Prompt> prompt;
    if (prompt != nullptr && prompt->layer.spec().num_tokens == num_tokens) return prompt.get();
    bench::SyntheticLayerSpec spec;
    spec.num_tokens = num_tokens;
    spec.num_queries = 1;
    auto layer = bench::SyntheticLayer::Create(spec);
    if (!layer.ok()) {
      *error = layer.status().ToString();
      return nullptr;
    }
    prompt = std::make_unique<Prompt>(Prompt{*std::move(layer), {}});
    prompt->rows = prompt->layer.Rows(0, num_tokens);
    return prompt.get();
  }

  bench::SyntheticLayer layer;
  bench::LayerRows rows;
};

Device& EngineDevice() {
  static Device device = Device::kCpu;
  return device;
}

void BM_BuildLayer(benchmark::State& state) {
  std::string error;
  const Prompt* const prompt = Prompt::Get(state.range(0), &error);
  if (prompt == nullptr) return state.SkipWithError(error.c_str());
  EngineOptions options = prompt->layer.Options(EngineDevice());
  if (options.device == Device::kCuda) {
    options.build_threads = 2;  // one prepares while the device works for the other
    options.gpu.staging_bytes += prompt->layer.spec().kv_bytes();  // it is appended at once
  }
  const auto engine = Engine::Open(options);
  if (!engine.ok()) return state.SkipWithError(engine.status().ToString().c_str());
  const Tenant tenant = *(*engine)->OpenTenant("bench");
  for (auto _ : state) {
    const Sequence sequence = *tenant.CreateSequence();
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(state.range(0))};
    absl::Status status =
        (*engine)->Append({{&sequence, 1}, cu_seqlens}, 0,
                          ViewOf(prompt->rows.keys, prompt->layer.spec(), state.range(0)),
                          ViewOf(prompt->rows.values, prompt->layer.spec(), state.range(0)));
    if (status.ok()) status = (*engine)->BuildSegments(sequence);
    if (status.ok()) status = (*engine)->WaitForBuilds(sequence);
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
    state.PauseTiming();
    (void)tenant.Remove(sequence);
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) * prompt->layer.spec().num_kv_heads);
}

void BM_FaissLayer(benchmark::State& state) {
  std::string error;
  const Prompt* const prompt = Prompt::Get(state.range(0), &error);
  if (prompt == nullptr) return state.SkipWithError(error.c_str());
  const int num_heads = prompt->layer.spec().num_kv_heads;
  const int64_t segments = (state.range(0) + kNumTokens - 1) / kNumTokens;
  for (auto _ : state) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i = next++; i < segments * num_heads; i = next++) {
        const int64_t first = i / num_heads * kNumTokens;
        const int64_t count = std::min(kNumTokens, state.range(0) - first);
        const float* const keys =
            prompt->rows.keys.data() + (i % num_heads * state.range(0) + first) * kDim;
        benchmark::DoNotOptimize(ClusterByFaiss({keys, static_cast<size_t>(count * kDim)}, kDim,
                                                std::max<int64_t>(1, count / 16), 10, 1));
      }
    };
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
      threads.emplace_back(work);
    }
    for (std::thread& thread : threads) thread.join();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) * num_heads);
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) {
  std::vector<int64_t> tokens = {131072};
  return wavekv::bench::BenchMain(
      argc, argv,
      {wavekv::bench::NumbersOption("tokens", "length of the layer's prompt", 2048,
                                    int64_t{1} << 24, &tokens),
       wavekv::bench::DeviceOption(&wavekv::EngineDevice())},
      [&] {
        const absl::Status status = wavekv::bench::CheckDevice(wavekv::EngineDevice());
        if (!status.ok()) return status;
        for (const auto& [name, run] : {std::pair{"layer", &wavekv::BM_BuildLayer},
                                        {"faiss_layer", &wavekv::BM_FaissLayer}}) {
          benchmark::RegisterBenchmark(name, run)
              ->ArgName("tokens")
              ->Arg(tokens[0])
              ->UseRealTime()
              ->Unit(benchmark::kSecond);
        }
        return status;
      },
      [&](const wavekv::bench::Milliseconds& times) {
        const auto seconds = [&](const char* name) {
          const auto found = times.find(fmt::format("{}/tokens:{}/real_time", name, tokens[0]));
          return found == times.end() ? 0.0 : found->second / 1e3;
        };
        const double wave = seconds("layer");
        const double faiss = seconds("faiss_layer");
        if (wave == 0.0 || faiss == 0.0) return;  // filtered out
        fmt::print("build tokens={} kv_heads=8 wave_s={:.3f} faiss_s={:.3f} ratio={:.2f}\n",
                   tokens[0], wave, faiss, faiss / wave);
      });
}
