// Decode steps of one layer whose sealed rows lie in a file, with a cache for a part of them, next
// to (a) everything in DRAM, (b) every row from the file in each step, (c) everything in a mapped
// file under a memory limit, left to the kernel. Steps ask consecutive queries: --warm_queries that
// fill the cache, then --queries that are timed; their outputs are compared bit by bit.
//
// The share of DRAM is that of the KV bytes: the cache's slots and the memory for reads in flight.
// Indexes lie in DRAM besides, in all cases.
//
// The last line:
//   buffer tokens=.. dram_pct=10 warm_ms=.. resident_ms=.. uncached_ms=.. mmap_ms=.. hit_ratio=..
//   overhead_pct=..
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/engine_test_peer.h"
#include "bench/bench_main.h"
#include "bench/memory_pressure.h"
#include "bench/synthetic_layer.h"
#include "buffer/temporary_file.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::vector<int64_t> tokens = {131072};
  std::vector<int64_t> dram_pct = {100, 25, 10, 5};
  std::vector<int64_t> warm_queries = {32};
  std::vector<int64_t> queries = {64};
  std::vector<int64_t> block_tokens = {0};
  std::string directory;
  std::string replacement = "lru";
  Zones zones = Zones::kSketch;
};

Arguments& TheArguments() {
  static Arguments arguments;
  return arguments;
}

double MillisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A sealed context in an engine, and the next query to ask.
class Context {
 public:
  static absl::StatusOr<std::unique_ptr<Context>> Create(const SyntheticLayer& layer,
                                                         const EngineOptions& options) {
    auto context = std::unique_ptr<Context>(new Context(layer));
    WAVEKV_ASSIGN_OR_RETURN(context->engine_, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(context->tenant_, context->engine_->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(context->sequence_, context->tenant_.CreateSequence());
    WAVEKV_RETURN_IF_ERROR(layer.AppendTo(*context->engine_, context->sequence_));
    WAVEKV_RETURN_IF_ERROR(context->engine_->BuildSegments(context->sequence_));
    WAVEKV_RETURN_IF_ERROR(context->engine_->WaitForBuilds(context->sequence_));
    return context;
  }

  Engine& engine() { return *engine_; }
  Tenant& tenant() { return tenant_; }
  const std::vector<float>& output() const { return output_; }

  // Answers query `query` of the layer; milliseconds.
  absl::StatusOr<double> Step(int64_t query) {
    const SyntheticLayerSpec& spec = layer_.spec();
    const int32_t cu_seqlens[] = {0, 1};
    AttendOptions options;
    options.zones = TheArguments().zones;
    const int64_t row = int64_t{spec.num_q_heads()} * spec.head_dim;
    const auto begin = Clock::now();
    WAVEKV_ASSIGN_OR_RETURN(const Plan plan,
                            engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options));
    WAVEKV_ASSIGN_OR_RETURN(
        stats_,
        engine_->Attend(plan, 0,
                        TensorView::Dense(layer_.queries().data() + query * row, DType::kFloat32, 1,
                                          spec.num_q_heads(), spec.head_dim),
                        MutableTensorView::Dense(output_.data(), DType::kFloat32, 1,
                                                 spec.num_q_heads(), spec.head_dim)));
    return MillisecondsSince(begin);
  }

  const AttendStats& stats() const { return stats_; }

 private:
  explicit Context(const SyntheticLayer& layer) : layer_(layer) {
    output_.resize(int64_t{layer.spec().num_q_heads()} * layer.spec().head_dim);
  }

  const SyntheticLayer& layer_;
  std::unique_ptr<Engine> engine_;
  Tenant tenant_;
  Sequence sequence_;
  std::vector<float> output_;
  AttendStats stats_;
};

// What a run of steps gave.
struct Run {
  double cold_ms = 0.0;  // the first step
  std::vector<double> warm_ms;
  int64_t hits = 0;  // of the timed steps
  int64_t misses = 0;
  int64_t bytes_read = 0;

  double warm_median_ms() const { return Median(warm_ms); }
  double hit_ratio() const {
    return hits + misses == 0 ? 1.0
                              : static_cast<double>(hits) / static_cast<double>(hits + misses);
  }
};

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Create() {
    const Arguments& arguments = TheArguments();
    SyntheticLayerSpec spec;
    spec.num_tokens = arguments.tokens[0];
    spec.num_queries = arguments.warm_queries[0] + arguments.queries[0];
    WAVEKV_ASSIGN_OR_RETURN(SyntheticLayer layer, SyntheticLayer::Create(spec));
    auto bench = std::unique_ptr<Bench>(new Bench(std::move(layer)));
    EngineOptions options = bench->layer_.Options();
    WAVEKV_ASSIGN_OR_RETURN(bench->resident_, Context::Create(bench->layer_, options));
    options.tiers.directory = arguments.directory;
    options.tiers.block_tokens = arguments.block_tokens[0];
    options.tiers.replacement = arguments.replacement;
    options.tiers.prefault_threads = 2;
    // Room for everything at 100 %.
    options.tiers.cache_bytes = bench->kv_bytes() + bench->kv_bytes() / 16 + (int64_t{8} << 20);
    options.arena_bytes = ArenaBytesFor(options, spec.num_tokens);
    WAVEKV_ASSIGN_OR_RETURN(bench->tiered_, Context::Create(bench->layer_, options));
    return bench;
  }

  int64_t kv_bytes() const { return layer_.spec().kv_bytes(); }
  int64_t num_queries() const { return TheArguments().queries[0]; }

  // Steps of the engine with all in DRAM and of that with all in its cache take turns, so that both
  // see the machine alike.
  absl::Status RunResident() {
    WAVEKV_RETURN_IF_ERROR(SetCacheBytes(0));
    WAVEKV_RETURN_IF_ERROR(FillCache());
    resident_run_ = {};
    cached_run_ = {};
    std::vector<double> ratios;
    for (int64_t i = 0; i < num_queries(); ++i) {
      const int64_t query = TheArguments().warm_queries[0] + i;
      // Once beforehand, so that what follows finds all of its blocks.
      WAVEKV_RETURN_IF_ERROR(tiered_->Step(query).status());
      EngineTestPeer::WaitUntilAdmitted(tiered_->engine());
      WAVEKV_RETURN_IF_ERROR(resident_->Step(query).status());
      double resident_ms = 0.0, cached_ms = 0.0;
      constexpr int kTurns = 3;
      for (int turn = 0; turn < kTurns; ++turn) {
        WAVEKV_ASSIGN_OR_RETURN(const double in_arena, resident_->Step(query));
        WAVEKV_ASSIGN_OR_RETURN(const double in_cache, tiered_->Step(query));
        resident_ms = turn == 0 ? in_arena : std::min(resident_ms, in_arena);
        cached_ms = turn == 0 ? in_cache : std::min(cached_ms, in_cache);
      }
      resident_run_.warm_ms.push_back(resident_ms);
      cached_run_.warm_ms.push_back(cached_ms);
      ratios.push_back(cached_ms / resident_ms);
      WAVEKV_RETURN_IF_ERROR(Compare());
    }
    overhead_pct_ = (Median(ratios) - 1.0) * 100.0;
    return absl::OkStatus();
  }

  absl::StatusOr<Run> RunTiered(int64_t cache_bytes) {
    WAVEKV_RETURN_IF_ERROR(SetCacheBytes(cache_bytes));
    EngineTestPeer::EmptyCache(tiered_->engine());
    Run run;
    const int64_t num_warm = TheArguments().warm_queries[0];
    for (int64_t query = 0; query < num_warm + num_queries(); ++query) {
      WAVEKV_ASSIGN_OR_RETURN(const double ms, tiered_->Step(query));
      if (query == 0) run.cold_ms = ms;
      if (query < num_warm) continue;
      run.warm_ms.push_back(ms);
      run.hits += tiered_->stats().blocks_hit;
      run.misses += tiered_->stats().blocks_missed;
      run.bytes_read += tiered_->stats().tier_bytes_read;
      if (query % 16 == 0) {
        WAVEKV_RETURN_IF_ERROR(resident_->Step(query).status());
        WAVEKV_RETURN_IF_ERROR(Compare());
      }
    }
    return run;
  }

  // The engine whose arena holds everything, after the arena has become a mapping of a file.
  // advice: MADV_NORMAL, or MADV_RANDOM, which keeps the kernel from reading ahead.
  absl::StatusOr<Run> RunMapped(int64_t dram_pct, int advice) {
    const absl::Span<std::byte> arena = EngineTestPeer::ArenaMemory(resident_->engine());
    if (mapped_ == nullptr) {
      WAVEKV_ASSIGN_OR_RETURN(TemporaryFile file,
                              TemporaryFile::Create(TheArguments().directory, /*unnamed=*/true));
      mapped_ = std::make_unique<TemporaryFile>(std::move(file));
      for (size_t done = 0; done < arena.size();) {
        const ssize_t written =
            pwrite(mapped_->fd(), arena.data() + done,
                   std::min<size_t>(arena.size() - done, 1 << 24), static_cast<off_t>(done));
        if (written <= 0) return absl::UnavailableError("cannot write the file to be mapped");
        done += static_cast<size_t>(written);
      }
      fsync(mapped_->fd());
      if (mmap(arena.data(), arena.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               mapped_->fd(), 0) == MAP_FAILED) {
        return absl::ResourceExhaustedError("cannot map the file");
      }
    }
    const int64_t index_bytes = resident_->engine().stats().arena_bytes_used - kv_bytes();
    WAVEKV_ASSIGN_OR_RETURN(
        const auto pressure,
        MemoryPressure::Create(kv_bytes() * dram_pct / 100 + std::max<int64_t>(0, index_bytes) +
                               (int64_t{4} << 20)));
    madvise(arena.data(), arena.size(), advice);
    madvise(arena.data(), arena.size(), MADV_DONTNEED);
    posix_fadvise(mapped_->fd(), 0, 0, POSIX_FADV_DONTNEED);
    // A kernel that reads ahead what it has to drop again takes seconds for a step: then a few
    // steps say enough.
    constexpr double kMostMs = 20e3;
    Run run;
    double spent_ms = 0.0;
    for (int64_t query = 0; query < num_queries() && (spent_ms < kMostMs || query < 3); ++query) {
      WAVEKV_ASSIGN_OR_RETURN(const double ms, resident_->Step(query));
      spent_ms += ms;
      if (query == 0) run.cold_ms = ms;
      if (query > 0) run.warm_ms.push_back(ms);
    }
    return run;
  }

  // What of dram_pct of the KV bytes is left for slots beside the memory for reads.
  int64_t SlotBytes(int64_t dram_pct) {
    return std::max<int64_t>(1,
                             kv_bytes() * dram_pct / 100 - tiered_->engine().stats().staging_bytes);
  }

  const Run& resident_run() const { return resident_run_; }
  const Run& cached_run() const { return cached_run_; }
  double overhead_pct() const { return overhead_pct_; }
  std::map<std::string, Run>& runs() { return runs_; }

 private:
  explicit Bench(SyntheticLayer layer) : layer_(std::move(layer)) {}

  absl::Status SetCacheBytes(int64_t bytes) {
    EngineTestPeer::WaitUntilAdmitted(tiered_->engine());
    TenantQuota quota;
    quota.cache_bytes = bytes;
    return tiered_->tenant().SetQuota(quota);
  }

  // All rows are read once.
  absl::Status FillCache() {
    for (int64_t query = 0; query < TheArguments().warm_queries[0]; ++query) {
      WAVEKV_RETURN_IF_ERROR(tiered_->Step(query).status());
    }
    EngineTestPeer::WaitUntilAdmitted(tiered_->engine());
    return absl::OkStatus();
  }

  absl::Status Compare() {
    if (resident_->output() == tiered_->output()) return absl::OkStatus();
    return absl::InternalError("an output differs from that with everything in DRAM");
  }

  const SyntheticLayer layer_;
  std::unique_ptr<Context> resident_;
  std::unique_ptr<Context> tiered_;
  std::unique_ptr<TemporaryFile> mapped_;
  Run resident_run_;
  Run cached_run_;
  double overhead_pct_ = 0.0;
  std::map<std::string, Run> runs_;
};

std::unique_ptr<Bench>& TheBench() {
  static std::unique_ptr<Bench> bench;
  return bench;
}

// Shows a run that has been made, a step an iteration.
void Show(benchmark::State& state, const absl::StatusOr<Run>& run, const std::string& name) {
  if (!run.ok()) {
    state.SkipWithError(run.status().ToString().c_str());
    return;
  }
  size_t i = 0;
  for (auto _ : state) state.SetIterationTime(run->warm_ms[i++ % run->warm_ms.size()] / 1e3);
  state.counters["median_ms"] = run->warm_median_ms();
  if (run->cold_ms > 0.0) state.counters["cold_ms"] = run->cold_ms;
  if (run->hits + run->misses > 0) {
    const auto steps = static_cast<double>(run->warm_ms.size());
    state.counters["hit_ratio"] = run->hit_ratio();
    state.counters["reads"] = static_cast<double>(run->misses) / steps;
    state.counters["read_MiB"] = static_cast<double>(run->bytes_read) / steps / (1 << 20);
  }
  TheBench()->runs()[name] = *run;
}

void Register(const std::string& name, std::function<absl::StatusOr<Run>()> run) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [name, run = std::move(run)](benchmark::State& state) { Show(state, run(), name); })
      ->Iterations(TheArguments().queries[0])
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

absl::Status RegisterAll() {
  WAVEKV_ASSIGN_OR_RETURN(TheBench(), Bench::Create());
  Bench& bench = *TheBench();
  Register("resident", [&]() -> absl::StatusOr<Run> {
    WAVEKV_RETURN_IF_ERROR(bench.RunResident());
    return bench.resident_run();
  });
  Register("all_in_cache", [&]() -> absl::StatusOr<Run> { return bench.cached_run(); });
  for (const int64_t pct : TheArguments().dram_pct) {
    Register(fmt::format("tiers/dram_pct:{}", pct),
             [&bench, pct] { return bench.RunTiered(bench.SlotBytes(pct)); });
  }
  Register("uncached", [&] { return bench.RunTiered(1); });
  if (const auto pressure = MemoryPressure::Create(int64_t{1} << 60); !pressure.ok()) {
    fmt::print("mapped files are not measured: {}\n", std::string(pressure.status().message()));
    return absl::OkStatus();
  }
  // Last: it changes the resident engine's memory for good.
  for (const int64_t pct : TheArguments().dram_pct) {
    if (pct >= 100) continue;
    Register(fmt::format("mmap/dram_pct:{}", pct),
             [&bench, pct] { return bench.RunMapped(pct, MADV_NORMAL); });
    Register(fmt::format("mmap_random/dram_pct:{}", pct),
             [&bench, pct] { return bench.RunMapped(pct, MADV_RANDOM); });
  }
  return absl::OkStatus();
}

void PrintLines(const Milliseconds&) {
  Bench& bench = *TheBench();
  std::vector<int64_t> order = TheArguments().dram_pct;
  std::stable_partition(order.begin(), order.end(), [](int64_t pct) { return pct != 10; });
  for (const int64_t pct : order) {
    const Run& tiers = bench.runs()[fmt::format("tiers/dram_pct:{}", pct)];
    if (tiers.warm_ms.empty()) continue;  // filtered out
    // What the better of the two takes.
    double mmap_ms = 0.0;
    for (const char* name : {"mmap", "mmap_random"}) {
      const double ms = bench.runs()[fmt::format("{}/dram_pct:{}", name, pct)].warm_median_ms();
      if (ms > 0.0 && (mmap_ms == 0.0 || ms < mmap_ms)) mmap_ms = ms;
    }
    fmt::print(
        "buffer tokens={} dram_pct={} warm_ms={:.3f} resident_ms={:.3f} uncached_ms={:.3f} "
        "mmap_ms={:.3f} hit_ratio={:.3f} overhead_pct={:.1f}\n",
        TheArguments().tokens[0], pct, tiers.warm_median_ms(),
        bench.runs()["resident"].warm_median_ms(), bench.runs()["uncached"].warm_median_ms(),
        mmap_ms, tiers.hit_ratio(), bench.overhead_pct());
  }
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments& arguments = TheArguments();
  const char* const temporary = std::getenv("TMPDIR");
  arguments.directory = temporary == nullptr ? "/tmp" : temporary;
  const int result = BenchMain(
      argc, argv,
      {NumbersOption("tokens", "length of the context", 2048, int64_t{1} << 30, &arguments.tokens),
       NumbersOption("dram_pct", "DRAM for rows in percent of the KV bytes, comma-separated", 1,
                     100, &arguments.dram_pct),
       NumbersOption("warm_queries", "steps that fill the cache", 1, 4096, &arguments.warm_queries),
       NumbersOption("queries", "steps that are timed", 1, 4096, &arguments.queries),
       NumbersOption("block_tokens", "tokens of a block, 0: as many as fit 2 KiB", 0, 65536,
                     &arguments.block_tokens),
       {"directory", "a folder on the device that holds the files",
        [&](const std::string& value) {
          arguments.directory = value;
          return !value.empty();
        }},
       {"replacement", "lru, slru or s3fifo",
        [&](const std::string& value) {
          arguments.replacement = value;
          return value == "lru" || value == "slru" || value == "s3fifo";
        }},
       {"zones", "sketch (default) or clusters",
        [&](const std::string& value) {
          arguments.zones = value == "clusters" ? wavekv::Zones::kClusters : wavekv::Zones::kSketch;
          return value == "sketch" || value == "clusters";
        }}},
      &RegisterAll, &PrintLines);
  TheBench().reset();
  return result;
}
