// A decode step of one layer on contexts of 8K to 1M tokens: exact attention over all tokens, the
// zones (the default ones unless options say otherwise), and reading the same K and V bytes once,
// the floor of exact attention. With --device=cuda the engine's steps run on a GPU, queries and
// outputs lie in host memory and are copied by each step, and nothing but steps is timed
// (bench/cuda times them alone). Before timing, exact attention of one kv head is compared with
// naive attention in double precision, and the zones' error is measured against exact attention.
//
// The last lines, one a context, that of 128K tokens last:
//   decode tokens=.. stream_ms=.. dense_ms=.. wave_ms=.. ratio=.. rel_err_mean=.. bytes_ratio=..
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "bench/bench_main.h"
#include "bench/device_option.h"
#include "bench/stream_read.h"
#include "bench/synthetic_layer.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "wavekv/executor.h"

namespace wavekv::bench {
namespace {

struct Arguments {
  std::vector<int64_t> tokens = {8192, 32768, 131072, 524288, 1048576};
  std::vector<int64_t> threads = {0};  // one number; 0: one per processor
  std::vector<synthetic::Sharpness> heads = {synthetic::Sharpness::kMid};
  AttendOptions zones;
  Device device = Device::kCpu;
};

Arguments& TheArguments() {
  static Arguments arguments;
  return arguments;
}

int NumThreads() {
  const int64_t asked = TheArguments().threads[0];
  return static_cast<int>(asked > 0 ? asked : std::max(1u, std::thread::hardware_concurrency()));
}

// What the last lines say beside times.
struct Quality {
  double rel_err_mean = 0.0;
  double bytes_ratio = 0.0;
};
std::map<int64_t, Quality>& Qualities() {
  static std::map<int64_t, Quality> qualities;
  return qualities;
}

// A sealed context of one layer with the outputs of its queries.
class Context {
 public:
  static absl::StatusOr<std::unique_ptr<Context>> Create(int64_t num_tokens) {
    SyntheticLayerSpec spec;
    spec.num_tokens = num_tokens;
    spec.sharpness = TheArguments().heads;
    WAVEKV_ASSIGN_OR_RETURN(SyntheticLayer layer, SyntheticLayer::Create(spec));
    auto context = std::unique_ptr<Context>(new Context(std::move(layer)));
    EngineOptions options = context->layer_.Options(TheArguments().device);
    options.worker_threads = NumThreads();
    WAVEKV_ASSIGN_OR_RETURN(context->engine_, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(const Tenant tenant, context->engine_->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(context->sequence_, tenant.CreateSequence());
    WAVEKV_RETURN_IF_ERROR(context->layer_.AppendTo(*context->engine_, context->sequence_));
    WAVEKV_RETURN_IF_ERROR(context->engine_->BuildSegments(context->sequence_));
    WAVEKV_RETURN_IF_ERROR(context->engine_->WaitForBuilds(context->sequence_));
    WAVEKV_RETURN_IF_ERROR(context->Check());
    return context;
  }

  const SyntheticLayerSpec& spec() const { return layer_.spec(); }

  // One decode step after the other; the queries take turns.
  absl::Status Step(const AttendOptions& options) {
    WAVEKV_ASSIGN_OR_RETURN(const Plan plan, MakePlan(1, options));
    return Attend(plan, queries_at_++ % spec().num_queries, 1).status();
  }

 private:
  explicit Context(SyntheticLayer layer) : layer_(std::move(layer)) {
    output_.resize(layer_.queries().size());
  }

  absl::StatusOr<Plan> MakePlan(int32_t rows, const AttendOptions& options) {
    const int32_t cu_seqlens[] = {0, rows};
    return engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
  }

  absl::StatusOr<AttendStats> Attend(const Plan& plan, int64_t first_query, int64_t rows) {
    const int64_t row = int64_t{spec().num_q_heads()} * spec().head_dim;
    return engine_->Attend(
        plan, 0,
        TensorView::Dense(layer_.queries().data() + first_query * row, DType::kFloat32, rows,
                          spec().num_q_heads(), spec().head_dim),
        MutableTensorView::Dense(output_.data(), DType::kFloat32, rows, spec().num_q_heads(),
                                 spec().head_dim));
  }

  // All queries at their positions: rows of one causal step.
  absl::Status Check() {
    const auto rows = static_cast<int32_t>(spec().num_queries);
    WAVEKV_ASSIGN_OR_RETURN(const Plan exact, MakePlan(rows, AttendOptions::Exact()));
    WAVEKV_RETURN_IF_ERROR(Attend(exact, 0, rows).status());
    WAVEKV_RETURN_IF_ERROR(CheckExact());
    const std::vector<float> want = output_;
    WAVEKV_ASSIGN_OR_RETURN(const Plan zones, MakePlan(rows, TheArguments().zones));
    WAVEKV_ASSIGN_OR_RETURN(const AttendStats stats, Attend(zones, 0, rows));
    double error = 0.0;
    const size_t dim = spec().head_dim;
    for (size_t first = 0; first < want.size(); first += dim) {
      error += Distance(want.data() + first, output_.data() + first, dim);
    }
    Qualities()[spec().num_tokens] = {
        error / static_cast<double>(want.size() / dim),
        static_cast<double>(stats.bytes_read) / static_cast<double>(stats.bytes_dense)};
    return absl::OkStatus();
  }

  // |got - want| / |want|
  template <typename Want>
  static double Distance(const Want* want, const float* got, size_t dim) {
    double difference = 0.0;
    double length = 0.0;
    for (size_t d = 0; d < dim; ++d) {
      difference += std::pow(static_cast<double>(got[d]) - want[d], 2);
      length += std::pow(static_cast<double>(want[d]), 2);
    }
    return std::sqrt(difference / length);
  }

  // The first group's heads of the last query against naive attention in double precision.
  absl::Status CheckExact() {
    constexpr int64_t kChunk = 65536;
    const int dim = spec().head_dim;
    const int group = spec().gqa_group_size;
    const int64_t last = spec().num_queries - 1;
    const float* const queries = layer_.heads()[0].queries().data() + last * group * dim;
    // Sums relative to a running maximum, which a chunk may raise.
    std::vector<double> max(group, -1e300), mass(group), sum(static_cast<size_t>(group) * dim);
    std::vector<float> keys(kChunk * dim), values(kChunk * dim);
    for (int64_t begin = 0; begin < spec().num_tokens; begin += kChunk) {
      const int64_t count = std::min(kChunk, spec().num_tokens - begin);
      layer_.HeadRows(0, begin, count, keys.data(), values.data());
      for (int64_t token = 0; token < count; ++token) {
        for (int h = 0; h < group; ++h) {
          double logit = 0.0;
          for (int d = 0; d < dim; ++d) {
            logit += static_cast<double>(queries[h * dim + d]) * keys[token * dim + d];
          }
          logit /= std::sqrt(static_cast<double>(dim));
          if (logit > max[h]) {
            const double factor = std::exp(max[h] - logit);
            mass[h] *= factor;
            for (int d = 0; d < dim; ++d) sum[h * dim + d] *= factor;
            max[h] = logit;
          }
          const double weight = std::exp(logit - max[h]);
          mass[h] += weight;
          for (int d = 0; d < dim; ++d) sum[h * dim + d] += weight * values[token * dim + d];
        }
      }
    }
    const float* const got = output_.data() + last * spec().num_q_heads() * dim;
    for (int h = 0; h < group; ++h) {
      for (int d = 0; d < dim; ++d) sum[h * dim + d] /= mass[h];
      const double error = Distance(sum.data() + h * dim, got + h * dim, dim);
      if (!(error < 1e-4)) {
        return absl::InternalError(fmt::format(
            "exact attention of query head {} is off by {} from naive attention", h, error));
      }
    }
    return absl::OkStatus();
  }

  const SyntheticLayer layer_;
  std::unique_ptr<Engine> engine_;
  Sequence sequence_;
  std::vector<float> output_;
  int64_t queries_at_ = 0;
};

// The context of the benchmarks that run now; drawing and sealing it takes longer than they do.
Context* ContextOf(int64_t num_tokens, std::string* error) {
  static std::unique_ptr<Context> context;
  if (context == nullptr || context->spec().num_tokens != num_tokens) {
    context.reset();
    auto created = Context::Create(num_tokens);
    if (!created.ok()) {
      *error = created.status().ToString();
      return nullptr;
    }
    context = *std::move(created);
  }
  return context.get();
}

void Attend(benchmark::State& state, const AttendOptions& options) {
  std::string error;
  Context* const context = ContextOf(state.range(0), &error);
  if (context == nullptr) return state.SkipWithError(error.c_str());
  for (auto _ : state) {
    if (const absl::Status status = context->Step(options); !status.ok()) {
      return state.SkipWithError(status.ToString().c_str());
    }
  }
  const Quality& quality = Qualities()[state.range(0)];
  const bool exact = options.retrieval.ratio() == 1.0;
  const double bytes =
      static_cast<double>(context->spec().kv_bytes()) * (exact ? 1.0 : quality.bytes_ratio);
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<double>(state.iterations()) * bytes));
  if (!exact) state.counters["rel_err_mean"] = quality.rel_err_mean;
}

void BM_Dense(benchmark::State& state) { Attend(state, AttendOptions::Exact()); }
void BM_Wave(benchmark::State& state) { Attend(state, TheArguments().zones); }

// As many bytes as K and V have, in huge pages like theirs.
void BM_StreamRead(benchmark::State& state) {
  SyntheticLayerSpec spec;
  spec.num_tokens = state.range(0);
  const int64_t bytes = spec.kv_bytes();
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return state.SkipWithError("no memory for the stream read");
  madvise(data, bytes, MADV_HUGEPAGE);
  std::memset(data, 1, bytes);
  const std::unique_ptr<Executor> executor = MakeThreadPool(NumThreads());
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        StreamRead({static_cast<const std::byte*>(data), static_cast<size_t>(bytes)}, *executor));
  }
  munmap(data, bytes);
  state.SetBytesProcessed(state.iterations() * bytes);
}

absl::Status Register() {
  WAVEKV_RETURN_IF_ERROR(CheckDevice(TheArguments().device));
  for (const int64_t tokens : TheArguments().tokens) {
    for (const auto& [name, run] :
         {std::pair{"stream", &BM_StreamRead}, {"dense", &BM_Dense}, {"wave", &BM_Wave}}) {
      // No floor of a GPU, which reads memory of its own.
      if (run == &BM_StreamRead && TheArguments().device == Device::kCuda) continue;
      benchmark::RegisterBenchmark(name, run)->ArgName("tokens")->Arg(tokens)->UseRealTime()->Unit(
          benchmark::kMillisecond);
    }
  }
  return absl::OkStatus();
}

void PrintLines(const Milliseconds& times) {
  // The one that figures of different machines are compared by comes last.
  std::vector<int64_t> order = TheArguments().tokens;
  std::stable_partition(order.begin(), order.end(),
                        [](int64_t tokens) { return tokens != 131072; });
  for (const int64_t tokens : order) {
    const auto time = [&](const char* name) {
      const auto found = times.find(fmt::format("{}/tokens:{}/real_time", name, tokens));
      return found == times.end() ? 0.0 : found->second;
    };
    const double dense = time("dense");
    const double wave = time("wave");
    if (dense == 0.0 || wave == 0.0) continue;  // filtered out
    const Quality& quality = Qualities()[tokens];
    fmt::print(
        "decode tokens={} stream_ms={:.3f} dense_ms={:.3f} wave_ms={:.3f} ratio={:.2f} "
        "rel_err_mean={:.4f} bytes_ratio={:.4f}\n",
        tokens, time("stream"), dense, wave, dense / wave, quality.rel_err_mean,
        quality.bytes_ratio);
  }
}

bool ParseZones(const std::string& name) {
  AttendOptions& zones = TheArguments().zones;
  if (name == "paper") {
    zones.zones = Zones::kPaper;  // takes the lower bound of masses by itself
  } else if (name == "clusters" || name == "sketch") {
    zones.zones = name == "sketch" ? Zones::kSketch : Zones::kClusters;
  } else {
    return false;
  }
  return true;
}

// What a zone takes, as a share.
Option ShareOption(const char* name, const char* help, Budget* budget) {
  return {name, help, [budget](const std::string& value) {
            double share = 0.0;
            if (!absl::SimpleAtod(value, &share) || !(share >= 0.0 && share <= 1.0)) return false;
            *budget = Budget::Ratio(share);
            return true;
          }};
}

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments& arguments = TheArguments();
  return BenchMain(argc, argv,
                   {NumbersOption("tokens", "context lengths, comma-separated", 2048,
                                  int64_t{1} << 30, &arguments.tokens),
                    NumbersOption("threads", "0: one per processor", 0, 4096, &arguments.threads),
                    DeviceOption(&arguments.device),
                    {"heads", "kinds of kv heads in turn: sharp, mid, flat, comma-separated",
                     [&](const std::string& value) {
                       arguments.heads.clear();
                       for (const absl::string_view name : absl::StrSplit(value, ',')) {
                         const auto kind = wavekv::synthetic::ParseSharpness(name);
                         if (!kind.ok()) return false;
                         arguments.heads.push_back(*kind);
                       }
                       return true;
                     }},
                    {"zones", "sketch (default), clusters or paper", &ParseZones},
                    ShareOption("retrieval", "share read exactly", &arguments.zones.retrieval),
                    ShareOption("sketch", "share of the sketch zone", &arguments.zones.sketch),
                    ShareOption("open", "share of the tokens whose super-clusters are opened",
                                &arguments.zones.open),
                    {"target-error", "read as little as it takes, 0: what the budgets say",
                     [&](const std::string& value) {
                       return absl::SimpleAtod(value, &arguments.zones.target_error) &&
                              ValidateAttendOptions(arguments.zones).ok();
                     }}},
                   &Register, &PrintLines);
}
