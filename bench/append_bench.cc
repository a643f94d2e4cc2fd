// Storing rows: a decode row, through all layers, and chunks of a prompt, beside copying the same
// bytes with memcpy. Nothing is sealed meanwhile, since segments are longer than what is appended,
// and all memory has been touched before: what sealing and first touches take belongs to no Append.
//
// The last line, of the largest chunk:
//   append decode_us=.. copy_us=.. prefill_gbs=.. memcpy_gbs=..
//   decode_us    one row of 8 kv heads, head_dim 128, bf16, of one layer; chunks of 64 rows are
//                allocated in it
//   copy_us      its 4 KiB alone, a memcpy for the key and for the value of each head
//   prefill_gbs  bytes of a chunk's rows a second; bytes are counted once
//   memcpy_gbs   the same bytes by memcpy, each worker an equal share
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/bench_main.h"
#include "fmt/format.h"
#include "storage/float16.h"
#include "storage/layer_cache.h"
#include "storage/status_macros.h"
#include "wavekv/engine.h"
#include "wavekv/executor.h"

namespace wavekv::bench {
namespace {

constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int64_t kRowBytes = kHeadDim * sizeof(uint16_t);  // of one head's key or value
constexpr int64_t kTokenBytes = int64_t{2} * kKvHeads * kRowBytes;
// As in a step of a model: between two rows of a layer come those of all others.
constexpr int kDecodeLayers = 32;
// Tokens of a layer after which it is cut back.
constexpr int64_t kDecodeTokens = 1024;
// Layers that chunks go to in turn, so that caches do not hold what is written.
constexpr int kPrefillLayers = 4;

struct Arguments {
  std::vector<int64_t> threads = {0};  // one number; 0: one per processor
  std::vector<int64_t> rows = {2048, 8192};
};

Arguments& TheArguments() {
  static Arguments arguments;
  return arguments;
}

int NumThreads() {
  const int64_t asked = TheArguments().threads[0];
  return static_cast<int>(asked > 0 ? asked : std::max(1u, std::thread::hardware_concurrency()));
}

// Rows of a layer as a model gives them: [num_rows, kv heads, head_dim], bf16.
class Rows {
 public:
  explicit Rows(int64_t num_rows) : num_rows_(num_rows) {
    std::mt19937_64 engine(1);
    std::normal_distribution<float> gaussian;
    for (std::vector<uint16_t>* tensor : {&keys_, &values_}) {
      tensor->resize(num_rows * kKvHeads * kHeadDim);
      // Numbers do not matter, and drawing them takes longer than copying them.
      const auto drawn = std::min<int64_t>(static_cast<int64_t>(tensor->size()), 1 << 16);
      for (int64_t i = 0; i < drawn; ++i) (*tensor)[i] = Float32ToBFloat16(gaussian(engine));
      for (size_t i = drawn; i < tensor->size(); ++i) (*tensor)[i] = (*tensor)[i - drawn];
    }
  }

  int64_t num_rows() const { return num_rows_; }
  const std::vector<uint16_t>& keys() const { return keys_; }
  const std::vector<uint16_t>& values() const { return values_; }
  TensorView KeyView() const { return View(keys_); }
  TensorView ValueView() const { return View(values_); }

 private:
  TensorView View(const std::vector<uint16_t>& tensor) const {
    return TensorView::Dense(tensor.data(), DType::kBFloat16, num_rows_, kKvHeads, kHeadDim);
  }

  const int64_t num_rows_;
  std::vector<uint16_t> keys_, values_;
};

// An engine with one sequence.
class World {
 public:
  static absl::StatusOr<std::unique_ptr<World>> Create(int num_layers, int64_t num_tokens) {
    auto world = std::unique_ptr<World>(new World);
    EngineOptions options;
    options.model = {.num_layers = num_layers,
                     .num_q_heads = kKvHeads,
                     .num_kv_heads = kKvHeads,
                     .head_dim_k = kHeadDim,
                     .kv_dtype = DType::kBFloat16};
    options.index.segment_tokens = options.index.update_tokens = 65536;
    options.worker_threads = NumThreads();
    // The chunks that are begun, and the sinks.
    options.arena_bytes = num_layers * (num_tokens + 3 * kChunkTokens) * kTokenBytes;
    WAVEKV_ASSIGN_OR_RETURN(world->engine_, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(world->tenant_, world->engine_->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(world->sequence_, world->tenant_.CreateSequence());
    return world;
  }

  absl::Status Append(int layer, const Rows& rows) {
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows.num_rows())};
    return engine_->Append({{&sequence_, 1}, cu_seqlens}, layer, rows.KeyView(), rows.ValueView());
  }
  absl::Status Truncate(int64_t tokens) { return tenant_.Truncate(sequence_, tokens); }

 private:
  World() = default;

  std::unique_ptr<Engine> engine_;
  Tenant tenant_;
  Sequence sequence_;
};

// Memory like the arena's, touched.
class TouchedMemory {
 public:
  explicit TouchedMemory(int64_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (data_ == MAP_FAILED) return;
    madvise(data_, bytes_, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes_);
  }
  ~TouchedMemory() {
    if (data_ != MAP_FAILED) munmap(data_, bytes_);
  }
  TouchedMemory(const TouchedMemory&) = delete;
  TouchedMemory& operator=(const TouchedMemory&) = delete;

  std::byte* data() const { return data_ == MAP_FAILED ? nullptr : static_cast<std::byte*>(data_); }

 private:
  const int64_t bytes_;
  void* const data_;
};

// An iteration is a row through all layers.
absl::Status RunDecode(benchmark::State& state) {
  WAVEKV_ASSIGN_OR_RETURN(const auto world, World::Create(kDecodeLayers, kDecodeTokens));
  for (int layer = 0; layer < kDecodeLayers; ++layer) {
    WAVEKV_RETURN_IF_ERROR(world->Append(layer, Rows(kDecodeTokens)));
  }
  WAVEKV_RETURN_IF_ERROR(world->Truncate(0));
  const Rows row(1);
  int64_t length = 0;
  for (auto _ : state) {
    for (int layer = 0; layer < kDecodeLayers; ++layer) {
      WAVEKV_RETURN_IF_ERROR(world->Append(layer, row));
    }
    if (++length == kDecodeTokens) {
      state.PauseTiming();
      WAVEKV_RETURN_IF_ERROR(world->Truncate(0));
      length = 0;
      state.ResumeTiming();
    }
  }
  state.SetItemsProcessed(state.iterations() * kDecodeLayers);
  return absl::OkStatus();
}

// The copies that a row is, from a tensor to rows that lie as those of chunks.
absl::Status RunDecodeCopy(benchmark::State& state) {
  const int64_t layer_bytes = kDecodeTokens * kTokenBytes;
  const TouchedMemory memory(kDecodeLayers * layer_bytes);
  if (memory.data() == nullptr) return absl::ResourceExhaustedError("no memory to copy to");
  const Rows rows(1);
  int64_t length = 0;
  for (auto _ : state) {
    for (int layer = 0; layer < kDecodeLayers; ++layer) {
      std::byte* const chunk =
          memory.data() + layer * layer_bytes + length / kChunkTokens * kChunkTokens * kTokenBytes;
      for (int head = 0; head < kKvHeads; ++head) {
        std::byte* const key =
            chunk + head * 2 * kChunkTokens * kRowBytes + length % kChunkTokens * kRowBytes;
        std::memcpy(key, rows.keys().data() + head * kHeadDim, kRowBytes);
        std::memcpy(key + kChunkTokens * kRowBytes, rows.values().data() + head * kHeadDim,
                    kRowBytes);
      }
    }
    benchmark::ClobberMemory();
    length = (length + 1) % kDecodeTokens;
  }
  state.SetItemsProcessed(state.iterations() * kDecodeLayers);
  return absl::OkStatus();
}

absl::Status RunPrefill(benchmark::State& state) {
  const Rows rows(state.range(0));
  WAVEKV_ASSIGN_OR_RETURN(const auto world, World::Create(kPrefillLayers, rows.num_rows()));
  for (int layer = 0; layer < kPrefillLayers; ++layer) {
    WAVEKV_RETURN_IF_ERROR(world->Append(layer, rows));
  }
  WAVEKV_RETURN_IF_ERROR(world->Truncate(0));
  int layer = 0;
  for (auto _ : state) {
    WAVEKV_RETURN_IF_ERROR(world->Append(layer, rows));
    if (++layer == kPrefillLayers) {
      state.PauseTiming();
      WAVEKV_RETURN_IF_ERROR(world->Truncate(0));
      layer = 0;
      state.ResumeTiming();
    }
  }
  state.SetBytesProcessed(state.iterations() * rows.num_rows() * kTokenBytes);
  return absl::OkStatus();
}

absl::Status RunMemcpy(benchmark::State& state) {
  const Rows rows(state.range(0));
  const int64_t tensor_bytes = rows.num_rows() * kTokenBytes / 2;
  const TouchedMemory memory(kPrefillLayers * 2 * tensor_bytes);
  if (memory.data() == nullptr) return absl::ResourceExhaustedError("no memory to copy to");
  const std::unique_ptr<Executor> executor = MakeThreadPool(NumThreads());
  const int64_t num_workers = executor->num_workers();
  int layer = 0;
  for (auto _ : state) {
    std::byte* const target = memory.data() + layer * 2 * tensor_bytes;
    executor->ParallelFor(num_workers, [&](int64_t share, int) {
      const int64_t begin = share * tensor_bytes / num_workers;
      const int64_t count = (share + 1) * tensor_bytes / num_workers - begin;
      const auto copy = [&](const std::vector<uint16_t>& tensor, std::byte* to) {
        std::memcpy(to + begin, reinterpret_cast<const std::byte*>(tensor.data()) + begin, count);
      };
      copy(rows.keys(), target);
      copy(rows.values(), target + tensor_bytes);
    });
    benchmark::ClobberMemory();
    layer = (layer + 1) % kPrefillLayers;
  }
  state.SetBytesProcessed(state.iterations() * 2 * tensor_bytes);
  return absl::OkStatus();
}

template <absl::Status (*kRun)(benchmark::State&)>
void Run(benchmark::State& state) {
  const absl::Status status = kRun(state);
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
}

absl::Status Register() {
  for (const auto& [name, run] :
       {std::pair{"decode", &Run<RunDecode>}, {"decode_copy", &Run<RunDecodeCopy>}}) {
    benchmark::RegisterBenchmark(name, run)->UseRealTime()->Unit(benchmark::kMicrosecond);
  }
  for (const int64_t rows : TheArguments().rows) {
    for (const auto& [name, run] :
         {std::pair{"prefill", &Run<RunPrefill>}, {"memcpy", &Run<RunMemcpy>}}) {
      benchmark::RegisterBenchmark(name, run)->ArgName("rows")->Arg(rows)->UseRealTime()->Unit(
          benchmark::kMicrosecond);
    }
  }
  return absl::OkStatus();
}

void PrintLine(const Milliseconds& times) {
  const auto time = [&](const std::string& name) {
    const auto found = times.find(name + "/real_time");
    return found == times.end() ? 0.0 : found->second;
  };
  const std::vector<int64_t>& chunks = TheArguments().rows;
  const int64_t rows = *std::max_element(chunks.begin(), chunks.end());
  const auto gbs = [&](const char* name) {
    return static_cast<double>(rows * kTokenBytes) /
           (time(fmt::format("{}/rows:{}", name, rows)) * 1e6);
  };
  const auto us = [&](const char* name) { return time(name) * 1e3 / kDecodeLayers; };
  if (us("decode") == 0.0 || us("decode_copy") == 0.0 || times.size() < 4) return;  // filtered out
  fmt::print("append decode_us={:.3f} copy_us={:.3f} prefill_gbs={:.1f} memcpy_gbs={:.1f}\n",
             us("decode"), us("decode_copy"), gbs("prefill"), gbs("memcpy"));
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments& arguments = TheArguments();
  return BenchMain(
      argc, argv,
      {NumbersOption("rows", "of a prompt's chunk, comma-separated", 1, 32768, &arguments.rows),
       NumbersOption("threads", "0: one per processor", 0, 4096, &arguments.threads)},
      &Register, &PrintLine);
}
