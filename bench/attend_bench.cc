// Exact attention on the CPU: a decode step over a long context, the same from scattered clusters,
// a prefill chunk; and how fast the same bytes can be read at all. The last lines, one for each
// group, type, head_dim and context, set a step's dense attention against reading its bytes:
//
//   dense group=8 dtype=bf16 head_dim=128 tokens=131072 dense_ms=.. stream_ms=.. ratio_to_stream=..
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/bench_main.h"
#include "bench/stream_read.h"
#include "cpu/cpu_backend.h"
#include "fmt/format.h"
#include "storage/float16.h"
#include "tests/testing/naive_attention.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace wavekv {
namespace {

// What the named arguments of a benchmark say.
struct Setup {
  int64_t tokens;
  int kv_heads;
  int head_dim;
  int gqa;
  DType dtype;

  Setup(int64_t num_tokens, int64_t num_kv_heads, int64_t dim, int64_t group, DType type)
      : tokens(num_tokens),
        kv_heads(static_cast<int>(num_kv_heads)),
        head_dim(static_cast<int>(dim)),
        gqa(static_cast<int>(group)),
        dtype(type) {}
  explicit Setup(const benchmark::State& state)
      : Setup(state.range(0), state.range(1), state.range(2), state.range(3),
              static_cast<DType>(state.range(4))) {}

  int64_t row_bytes() const { return head_dim * DTypeBytes(dtype); }
  int64_t head_bytes() const { return 2 * tokens * row_bytes(); }
  int64_t kv_bytes() const { return kv_heads * head_bytes(); }
  int num_queries() const { return kv_heads * gqa; }
};

const std::vector<std::string> kArgNames = {"tokens", "kv_heads", "head_dim", "gqa", "dtype"};

// Keys and values of one layer: per kv head K [tokens, head_dim], then V alike. Random numbers,
// which repeat every few megabytes: drawing them all would take longer than the benchmark.
class Layer {
 public:
  explicit Layer(const Setup& setup) : setup_(setup), bytes_(setup.kv_bytes()) {
    constexpr int64_t kHugePage = int64_t{1} << 21;
    const int64_t rounded = (bytes_ + kHugePage - 1) / kHugePage * kHugePage;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kHugePage, rounded)));
#if defined(__linux__)
    madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
    std::mt19937_64 engine(1);
    std::normal_distribution<float> gaussian;
    const int64_t pattern = std::min(bytes_, int64_t{3} << 20) / DTypeBytes(setup.dtype);
    for (int64_t i = 0; i < pattern; ++i) {
      StoreElement(data_.get(), setup.dtype, i, gaussian(engine));
    }
    const int64_t pattern_bytes = pattern * DTypeBytes(setup.dtype);
    for (int64_t at = pattern_bytes; at < bytes_; at += pattern_bytes) {
      std::memcpy(data_.get() + at, data_.get(), std::min(pattern_bytes, bytes_ - at));
    }
  }

  const std::byte* data() const { return data_.get(); }
  const std::byte* head(int kv_head) const { return data() + kv_head * setup_.head_bytes(); }

  // All tokens of a kv head.
  KvRange Dense(int kv_head) const {
    return {head(kv_head), head(kv_head) + setup_.head_bytes() / 2, setup_.tokens, 0};
  }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  const Setup setup_;
  const int64_t bytes_;
  std::unique_ptr<std::byte, Free> data_;
};

// One AttendRows call for all kv heads.
class Call {
 public:
  // Queries are of `query_type`, times the softmax scale.
  Call(const Setup& setup, int queries_per_head, DType query_type)
      : setup_(setup),
        num_queries_(queries_per_head),
        scale_(1.0f / std::sqrt(static_cast<float>(setup.head_dim))) {
    std::mt19937_64 engine(2);
    std::normal_distribution<float> gaussian;
    const int64_t count = int64_t{setup.kv_heads} * num_queries_ * setup.head_dim;
    queries_.resize(count);
    for (float& q : queries_) {
      std::byte element[sizeof(float)];
      StoreElement(element, query_type, 0, gaussian(engine));
      q = LoadElement(element, query_type, 0) * scale_;
    }
    output_.resize(count);
    lse_.resize(setup.kv_heads * num_queries_);
    ranges_.resize(setup.kv_heads);
  }

  std::vector<KvRange>& ranges(int kv_head) { return ranges_[kv_head]; }
  void set_visible_end(std::vector<int64_t> ends) { visible_end_ = std::move(ends); }

  std::vector<AttendRowsTask> Tasks() {
    std::vector<AttendRowsTask> tasks;
    for (int head = 0; head < setup_.kv_heads; ++head) {
      const int64_t at = int64_t{head} * num_queries_;
      tasks.push_back({.queries = queries_.data() + at * setup_.head_dim,
                       .num_queries = num_queries_,
                       .query_scale = scale_,
                       .visible_end = visible_end_.empty() ? nullptr : visible_end_.data(),
                       .shape = {setup_.head_dim, setup_.head_dim, setup_.dtype},
                       .ranges = ranges_[head],
                       .output = output_.data() + at * setup_.head_dim,
                       .lse = lse_.data() + at});
    }
    return tasks;
  }

  // Whether the first queries of the first kv head agree with double precision.
  bool IsRight() const {
    const int checked = std::min(num_queries_, 4);
    testing::NaiveAttentionInput input = {.head_dim_k = setup_.head_dim,
                                          .head_dim_v = setup_.head_dim};
    input.queries.assign(queries_.begin(), queries_.begin() + checked * setup_.head_dim);
    if (!visible_end_.empty()) {
      input.visible_end.assign(visible_end_.begin(), visible_end_.begin() + checked);
    }
    for (const KvRange& range : ranges_[0]) {
      for (int64_t i = 0; i < range.num_tokens * setup_.head_dim; ++i) {
        input.keys.push_back(LoadElement(range.keys, setup_.dtype, i));
        input.values.push_back(LoadElement(range.values, setup_.dtype, i));
      }
    }
    const testing::NaiveAttentionState expected = testing::NaiveAttention(input);
    double worst = 0.0;
    for (size_t i = 0; i < expected.output.size(); ++i) {
      worst = std::max(worst, std::fabs(output_[i] - expected.output[i]));
    }
    for (size_t i = 0; i < expected.lse.size(); ++i) {
      worst = std::max(worst, std::fabs(lse_[i] - expected.lse[i]));
    }
    return worst < 1e-4;
  }

 private:
  const Setup setup_;
  const int num_queries_;  // per kv head
  const float scale_;
  std::vector<float> queries_, output_, lse_;
  std::vector<int64_t> visible_end_;
  std::vector<std::vector<KvRange>> ranges_;
};

// The options, as lists because that is how they are read.
std::vector<int64_t> g_threads = {std::max(1u, std::thread::hardware_concurrency())};
std::vector<int64_t> g_tokens = {8192, 131072};
std::vector<int64_t> g_groups = {1, 2, 4, 8, 16};
std::vector<int64_t> g_head_dims = {64, 128};

int NumThreads() { return static_cast<int>(g_threads[0]); }

// Checks once, then times.
void Run(benchmark::State& state, Call& call) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(NumThreads());
  const std::unique_ptr<Backend> backend = MakeCpuBackend(pool.get());
  const std::vector<AttendRowsTask> tasks = call.Tasks();
  if (!backend->AttendRows(tasks).ok() || !call.IsRight()) {
    state.SkipWithError("the result differs from the reference");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(backend->AttendRows(tasks).ok());
}

void DecodeDense(benchmark::State& state) {
  const Setup setup(state);
  const Layer layer(setup);
  Call call(setup, setup.gqa, setup.dtype);
  for (int head = 0; head < setup.kv_heads; ++head) call.ranges(head) = {layer.Dense(head)};
  Run(state, call);
  state.SetBytesProcessed(state.iterations() * setup.kv_bytes());
}

// Clusters of 16 tokens (K rows, then V rows) in random order, one in eight.
void DecodeClusters(benchmark::State& state) {
  constexpr int64_t kClusterTokens = 16;
  const Setup setup(state);
  const Layer layer(setup);
  Call call(setup, setup.gqa, setup.dtype);
  std::mt19937_64 engine(3);
  std::vector<int64_t> clusters(setup.tokens / kClusterTokens);
  const int64_t read = static_cast<int64_t>(clusters.size()) / 8;
  for (int head = 0; head < setup.kv_heads; ++head) {
    std::iota(clusters.begin(), clusters.end(), int64_t{0});
    std::shuffle(clusters.begin(), clusters.end(), engine);
    for (int64_t i = 0; i < read; ++i) {
      const std::byte* rows =
          layer.head(head) + clusters[i] * kClusterTokens * 2 * setup.row_bytes();
      call.ranges(head).push_back(
          {rows, rows + kClusterTokens * setup.row_bytes(), kClusterTokens, 0});
    }
  }
  Run(state, call);
  state.SetBytesProcessed(state.iterations() * setup.kv_heads * read * kClusterTokens * 2 *
                          setup.row_bytes());
}

// The last 512 rows of a context of `tokens`, causal.
void PrefillChunk(benchmark::State& state) {
  constexpr int64_t kChunk = 512;
  const Setup setup(state);
  const Layer layer(setup);
  Call call(setup, static_cast<int>(kChunk) * setup.gqa, setup.dtype);
  std::vector<int64_t> visible_end;
  for (int64_t row = 0; row < kChunk; ++row) {
    visible_end.insert(visible_end.end(), setup.gqa, setup.tokens - kChunk + row + 1);
  }
  const double visible =
      static_cast<double>(std::accumulate(visible_end.begin(), visible_end.end(), int64_t{0}));
  call.set_visible_end(std::move(visible_end));
  for (int head = 0; head < setup.kv_heads; ++head) call.ranges(head) = {layer.Dense(head)};
  Run(state, call);
  state.counters["flops"] = benchmark::Counter(visible * setup.kv_heads * 4 * setup.head_dim,
                                               benchmark::Counter::kIsIterationInvariantRate);
}

// Reads the bytes of DecodeDense with the same threads and adds them up.
void StreamRead(benchmark::State& state) {
  const Setup setup(state);
  const Layer layer(setup);
  const std::unique_ptr<Executor> pool = MakeThreadPool(NumThreads());
  const absl::Span<const std::byte> bytes(layer.data(), setup.kv_bytes());
  for (auto _ : state) benchmark::DoNotOptimize(bench::StreamRead(bytes, *pool));
  state.SetBytesProcessed(state.iterations() * setup.kv_bytes());
}

// As many bytes as a tenth of those, in pieces at random places.
void RandomRead(benchmark::State& state) {
  const Setup setup(state);
  const Layer layer(setup);
  const int64_t piece_bytes = state.range(5), num_pieces = setup.kv_bytes() / 10 / piece_bytes;
  const std::unique_ptr<Executor> pool = MakeThreadPool(NumThreads());
  const absl::Span<const std::byte> bytes(layer.data(), setup.kv_bytes());
  for (auto _ : state) {
    benchmark::DoNotOptimize(bench::RandomRead(bytes, num_pieces, piece_bytes, *pool));
  }
  state.SetBytesProcessed(state.iterations() * num_pieces * piece_bytes);
}

// ---- dense attention beside reading the same bytes ----

// What was measured of a cell of the table: seconds of the fastest repetition.
struct DenseCell {
  Setup setup;
  double dense = std::numeric_limits<double>::infinity();
  double stream = std::numeric_limits<double>::infinity();
};

double SecondsOf(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// All kv heads over all tokens, in pieces as a step cuts them, and reads of the same bytes between:
// whatever else the machine does meets both.
void Dense(benchmark::State& state, DenseCell& cell) {
  constexpr int64_t kPieceTokens = 1024;
  const Setup& setup = cell.setup;
  const Layer layer(setup);
  const std::unique_ptr<Executor> pool = MakeThreadPool(NumThreads());
  const std::unique_ptr<Backend> backend = MakeCpuBackend(pool.get());
  const int64_t num_pieces = (setup.tokens + kPieceTokens - 1) / kPieceTokens;
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<AttendRowsTask> tasks;
  for (int64_t piece = 0; piece < num_pieces; ++piece) {
    calls.push_back(std::make_unique<Call>(setup, setup.gqa, setup.dtype));
    for (int head = 0; head < setup.kv_heads; ++head) {
      const int64_t begin = piece * kPieceTokens;
      KvRange range = layer.Dense(head);
      range.keys += begin * setup.row_bytes();
      range.values += begin * setup.row_bytes();
      range.num_tokens = std::min(kPieceTokens, setup.tokens - begin);
      calls.back()->ranges(head) = {range};
    }
    const std::vector<AttendRowsTask> of_piece = calls.back()->Tasks();
    tasks.insert(tasks.end(), of_piece.begin(), of_piece.end());
  }
  // A head after the other.
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) {
    return a.ranges[0].keys < b.ranges[0].keys;
  });
  if (!backend->AttendRows(tasks).ok() || !calls[0]->IsRight()) {
    state.SkipWithError("the result differs from the reference");
    return;
  }
  const absl::Span<const std::byte> bytes(layer.data(), setup.kv_bytes());
  for (auto _ : state) {
    const double dense =
        SecondsOf([&] { benchmark::DoNotOptimize(backend->AttendRows(tasks).ok()); });
    cell.dense = std::min(cell.dense, dense);
    cell.stream = std::min(
        cell.stream, SecondsOf([&] { benchmark::DoNotOptimize(bench::StreamRead(bytes, *pool)); }));
    state.SetIterationTime(dense);
  }
  state.SetBytesProcessed(state.iterations() * setup.kv_bytes());
  state.counters["ratio_to_stream"] = cell.dense / cell.stream;
}

std::vector<DenseCell>& DenseCells() {
  static auto& cells = *new std::vector<DenseCell>;
  return cells;
}

absl::Status RegisterDense() {
  constexpr int kKvHeads = 8;
  std::vector<DenseCell>& cells = DenseCells();
  for (int64_t tokens : g_tokens) {
    for (int64_t head_dim : g_head_dims) {
      if (head_dim % kHeadDimStep != 0) {
        return absl::InvalidArgumentError(
            fmt::format("--head_dims: multiples of {}, got {}", kHeadDimStep, head_dim));
      }
      for (DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
        for (int64_t group : g_groups) {
          cells.push_back({Setup(tokens, kKvHeads, head_dim, group, dtype)});
        }
      }
    }
  }
  for (DenseCell& cell : cells) {
    const Setup& setup = cell.setup;
    const std::string name = fmt::format("Dense/group:{}/dtype:{}/head_dim:{}/tokens:{}", setup.gqa,
                                         DTypeName(setup.dtype), setup.head_dim, setup.tokens);
    benchmark::RegisterBenchmark(name.c_str(),
                                 [&cell](benchmark::State& state) { Dense(state, cell); })
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
  return absl::OkStatus();
}

void PrintDense() {
  for (const DenseCell& cell : DenseCells()) {
    if (!std::isfinite(cell.dense)) continue;  // filtered out
    fmt::print(
        "dense group={} dtype={} head_dim={} tokens={} dense_ms={:.3f} stream_ms={:.3f} "
        "ratio_to_stream={:.3f}\n",
        cell.setup.gqa, DTypeName(cell.setup.dtype), cell.setup.head_dim, cell.setup.tokens,
        cell.dense * 1e3, cell.stream * 1e3, cell.dense / cell.stream);
  }
}

constexpr int64_t kBf16 = static_cast<int64_t>(DType::kBFloat16);
constexpr int64_t kFp16 = static_cast<int64_t>(DType::kFloat16);
constexpr int64_t kFp32 = static_cast<int64_t>(DType::kFloat32);

// Contexts far beyond any cache.
void DecodeArgs(benchmark::internal::Benchmark* bench) {
  bench->ArgNames(kArgNames)->Unit(benchmark::kMillisecond)->UseRealTime();
  for (int64_t gqa : {1, 4, 8}) bench->Args({131072, 8, 128, gqa, kBf16});
  for (int64_t head_dim : {64, 80}) bench->Args({131072, 8, head_dim, 4, kBf16});
  bench->Args({131072, 8, 128, 4, kFp16});
  bench->Args({65536, 8, 128, 4, kFp32});
}

// One head in the second-level cache, on one thread: what the arithmetic alone costs.
void CachedArgs(benchmark::internal::Benchmark* bench) {
  bench->ArgNames(kArgNames)->Unit(benchmark::kMicrosecond)->UseRealTime();
  for (int64_t gqa : {1, 4, 16}) bench->Args({512, 1, 128, gqa, kBf16});
  for (int64_t head_dim : {40, 64, 80}) bench->Args({512, 1, head_dim, 4, kBf16});
  for (int64_t dtype : {kFp16, kFp32}) bench->Args({512, 1, 128, 4, dtype});
}

void PrefillArgs(benchmark::internal::Benchmark* bench) {
  bench->ArgNames(kArgNames)->Unit(benchmark::kMillisecond)->UseRealTime();
  for (int64_t head_dim : {64, 80, 128}) bench->Args({8192, 2, head_dim, 4, kBf16});
  bench->Args({8192, 2, 128, 1, kFp32});
}

BENCHMARK(StreamRead)
    ->ArgNames(kArgNames)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->Args({131072, 8, 128, 4, kBf16});
BENCHMARK(RandomRead)
    ->ArgNames({"tokens", "kv_heads", "head_dim", "gqa", "dtype", "piece_bytes"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->Args({131072, 8, 128, 4, kBf16, 64})
    ->Args({131072, 8, 128, 4, kBf16, 256})
    ->Args({131072, 8, 128, 4, kBf16, 4096});
BENCHMARK(DecodeDense)->Apply(DecodeArgs)->Apply(CachedArgs);
BENCHMARK(DecodeClusters)->Apply(DecodeArgs);
BENCHMARK(PrefillChunk)->Apply(PrefillArgs);

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) {
  using wavekv::bench::NumbersOption;
  constexpr int64_t kMaxTokens = int64_t{1} << 24;
  return wavekv::bench::BenchMain(
      argc, argv,
      {NumbersOption("tokens", "contexts of Dense", 1, kMaxTokens, &wavekv::g_tokens),
       NumbersOption("groups", "query heads per kv head of Dense", 1, 64, &wavekv::g_groups),
       NumbersOption("head_dims", "head_dims of Dense", 8, 512, &wavekv::g_head_dims),
       NumbersOption("threads", "of everything, a number", 1, 1024, &wavekv::g_threads)},
      wavekv::RegisterDense, [](const wavekv::bench::Milliseconds&) { wavekv::PrintDense(); });
}
