// A decode step of one layer on contexts of 8K to 1M tokens: exact attention over all tokens, the
// zones (the default ones unless options say otherwise), and reading the same K and V bytes once,
// the floor of exact attention. Where the zones rank in two levels (AttendOptions::open below all),
// the same zones with flat ranking stand beside them. With --batch also steps of several sequences
// at once, with --budgets the zones with other budgets. With --device=cuda the engine's steps run
// on a GPU, queries and outputs lie in host memory and are copied by each step, and nothing but
// steps is timed (bench/cuda times them alone). Before timing, exact attention of one kv head is
// compared with naive attention in double precision, and the zones' error is measured against exact
// attention.
//
// The last lines, where there is something to say, times of one run each:
//   batch sequences=.. tokens=.. dense_ms=.. wave_ms=.. dense_ns_per_kib=.. wave_ns_per_kib=..
//     wave_ns_per_kib_read=.. rel_err_mean=.. bytes_ratio=..
//   crossover tokens=..: the smallest context from which on zones were faster than exact attention
//   scaling stream_exponent=.. dense_exponent=.. exponent=.. rel_err_mean=.. tokens_min=..
//     tokens_max=..: of contexts from 32K tokens on, by least squares over logarithms
//   scaling_flat exponent=.. rel_err_mean=.. tokens_min=.. tokens_max=..
//   decode_flat tokens=.. wave_ms=.. ratio=.. rel_err_mean=.. bytes_ratio=..
//   decode tokens=.. stream_ms=.. dense_ms=.. wave_ms=.. ratio=.. rel_err_mean=.. bytes_ratio=..
// one of each batch and context, and that of 128K tokens last.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "bench/bench_main.h"
#include "bench/decode_context.h"
#include "bench/device_option.h"
#include "bench/growth.h"
#include "bench/stream_read.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "wavekv/executor.h"

namespace wavekv::bench {
namespace {

// Contexts that growth is fitted over start here: shorter ones lie in caches.
constexpr int64_t kGrowthTokensMin = 32768;

constexpr int64_t kTokensMin = 1024;
constexpr int64_t kTokensMax = int64_t{1} << 30;

// Equal sequences of one step.
struct Batch {
  int64_t sequences = 1;
  int64_t tokens = 0;

  auto operator<=>(const Batch&) const = default;
};

struct Arguments {
  std::vector<int64_t> tokens;  // none given: the default ones, and default batches
  std::optional<std::vector<Batch>> batches;
  std::vector<int64_t> threads = {0};  // one number, as all below; 0: one per processor
  std::vector<int64_t> group = {4};
  DType kv_dtype = DType::kBFloat16;
  std::vector<synthetic::Sharpness> heads = {synthetic::Sharpness::kMid};
  AttendOptions zones;
  std::vector<std::pair<double, double>> budgets;  // retrieval and sketch
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

SyntheticLayerSpec SpecOf(int64_t num_tokens) {
  SyntheticLayerSpec spec;
  spec.num_tokens = num_tokens;
  spec.gqa_group_size = static_cast<int>(TheArguments().group[0]);
  spec.kv_dtype = TheArguments().kv_dtype;
  spec.sharpness = TheArguments().heads;
  return spec;
}

bool RanksFlat(const AttendOptions& options) {
  return options.open.is_ratio() && options.open.ratio() >= 1.0;
}

// What is timed of a batch.
struct Variant {
  std::string name;
  AttendOptions options;
};
constexpr char kDense[] = "dense";
constexpr char kWave[] = "wave";
constexpr char kFlat[] = "wave_flat";

std::vector<Variant> Variants() {
  const Arguments& arguments = TheArguments();
  std::vector<Variant> variants = {{kDense, AttendOptions::Exact()}, {kWave, arguments.zones}};
  if (!RanksFlat(arguments.zones)) {
    variants.push_back({kFlat, arguments.zones});
    variants.back().options.open = Budget::All();
  }
  for (const auto& [retrieval, sketch] : arguments.budgets) {
    variants.push_back(
        {fmt::format("wave/retrieval:{}/sketch:{}", retrieval, sketch), arguments.zones});
    variants.back().options.retrieval = Budget::Ratio(retrieval);
    variants.back().options.sketch = Budget::Ratio(sketch);
  }
  return variants;
}

// Of what ran, by name of the variant.
std::map<std::pair<std::string, Batch>, StepQuality>& Qualities() {
  static std::map<std::pair<std::string, Batch>, StepQuality> qualities;
  return qualities;
}

// The context of the benchmarks that run now; drawing and sealing it takes longer than they do.
DecodeContext* ContextOf(const Batch& batch, std::string* error) {
  static std::unique_ptr<DecodeContext> context;
  if (context == nullptr || context->spec().num_tokens != batch.tokens ||
      context->num_sequences() != batch.sequences) {
    context.reset();
    auto created = DecodeContext::Create(SpecOf(batch.tokens), static_cast<int>(batch.sequences),
                                         NumThreads(), TheArguments().device);
    if (!created.ok()) {
      *error = created.status().ToString();
      return nullptr;
    }
    context = *std::move(created);
  }
  return context.get();
}

absl::Status RunSteps(benchmark::State& state, DecodeContext& context, const Batch& batch,
                      const Variant& variant) {
  StepQuality quality = {0.0, 1.0};
  if (variant.name != kDense) {
    auto measured = Qualities().find({variant.name, batch});
    if (measured == Qualities().end()) {
      WAVEKV_ASSIGN_OR_RETURN(quality, context.Measure(variant.options));
      measured = Qualities().insert({{variant.name, batch}, quality}).first;
    }
    quality = measured->second;
    state.counters["rel_err_mean"] = quality.rel_err_mean;
    state.counters["bytes_ratio"] = quality.bytes_ratio;
  }
  for (auto _ : state) WAVEKV_RETURN_IF_ERROR(context.Step(variant.options));
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<double>(state.iterations()) *
                                               static_cast<double>(context.kv_bytes()) *
                                               quality.bytes_ratio));
  return absl::OkStatus();
}

void BM_Steps(benchmark::State& state, const Batch& batch, const Variant& variant) {
  std::string error;
  DecodeContext* const context = ContextOf(batch, &error);
  if (context == nullptr) return state.SkipWithError(error.c_str());
  const absl::Status status = RunSteps(state, *context, batch, variant);
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
}

// As many bytes as K and V have, in huge pages like theirs.
void BM_StreamRead(benchmark::State& state, int64_t num_tokens) {
  const int64_t bytes = SpecOf(num_tokens).kv_bytes();
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

// Of a benchmark.
std::string NameOf(const std::string& what, const Batch& batch) {
  return batch.sequences == 1
             ? fmt::format("{}/tokens:{}", what, batch.tokens)
             : fmt::format("{}/sequences:{}/tokens:{}", what, batch.sequences, batch.tokens);
}

// Into the JSON, so that a file says what it is of.
void DescribeRun() {
  const Arguments& arguments = TheArguments();
  const SyntheticLayerSpec spec = SpecOf(0);
  const char* const dtype = spec.kv_dtype == DType::kFloat32   ? "fp32"
                            : spec.kv_dtype == DType::kFloat16 ? "fp16"
                                                               : "bf16";
  std::vector<absl::string_view> heads;
  for (const synthetic::Sharpness sharpness : arguments.heads) {
    heads.push_back(synthetic::SharpnessName(sharpness));
  }
  benchmark::AddCustomContext(
      "layer", fmt::format("{} query heads, {} kv heads ({}), head_dim {}, {}", spec.num_q_heads(),
                           spec.num_kv_heads, absl::StrJoin(heads, ", "), spec.head_dim, dtype));
  benchmark::AddCustomContext("threads", fmt::format("{}", NumThreads()));
}

absl::Status Register() {
  Arguments& arguments = TheArguments();
  WAVEKV_RETURN_IF_ERROR(CheckDevice(arguments.device));
  DescribeRun();
  if (arguments.tokens.empty()) {
    arguments.tokens = {8192, 32768, 131072, 524288, 1048576};
    if (!arguments.batches) arguments.batches = {{8, 32768}, {1, 262144}};
  }
  // A context that is asked for twice runs once.
  std::vector<Batch> batches;
  const auto add = [&](const Batch& batch) {
    if (std::find(batches.begin(), batches.end(), batch) == batches.end()) batches.push_back(batch);
  };
  for (const int64_t tokens : arguments.tokens) add({1, tokens});
  for (const Batch& batch : arguments.batches.value_or(std::vector<Batch>())) add(batch);
  for (const Batch& batch : batches) {
    const auto show = [](benchmark::internal::Benchmark* benchmark) {
      benchmark->UseRealTime()->Unit(benchmark::kMillisecond);
    };
    // No floor of a GPU, which reads memory of its own.
    if (batch.sequences == 1 && arguments.device != Device::kCuda) {
      show(benchmark::RegisterBenchmark(NameOf("stream", batch).c_str(), &BM_StreamRead,
                                        batch.tokens));
    }
    for (const Variant& variant : Variants()) {
      show(benchmark::RegisterBenchmark(NameOf(variant.name, batch).c_str(), &BM_Steps, batch,
                                        variant));
    }
  }
  return absl::OkStatus();
}

// What ran, by its name.
class Times {
 public:
  explicit Times(const Milliseconds& times) : times_(times) {}

  // 0: filtered out.
  double Of(const std::string& what, const Batch& batch) const {
    const auto found = times_.find(NameOf(what, batch) + "/real_time");
    return found == times_.end() ? 0.0 : found->second;
  }
  // Of steps of one sequence, with contexts of tokens_min at least.
  TimesByTokens All(const std::string& what, int64_t tokens_min) const {
    TimesByTokens all;
    for (const int64_t tokens : TheArguments().tokens) {
      const double time = Of(what, {1, tokens});
      if (tokens >= tokens_min && time > 0.0) all[tokens] = time;
    }
    return all;
  }

 private:
  const Milliseconds& times_;
};

void PrintBatches(const Times& times) {
  for (const Batch& batch : TheArguments().batches.value_or(std::vector<Batch>())) {
    const double dense = times.Of(kDense, batch);
    const double wave = times.Of(kWave, batch);
    if (dense == 0.0 || wave == 0.0) continue;
    const StepQuality& quality = Qualities()[{kWave, batch}];
    const double kib =
        static_cast<double>(SpecOf(batch.tokens).kv_bytes() * batch.sequences) / 1024;
    fmt::print(
        "batch sequences={} tokens={} dense_ms={:.3f} wave_ms={:.3f} dense_ns_per_kib={:.2f} "
        "wave_ns_per_kib={:.2f} wave_ns_per_kib_read={:.2f} rel_err_mean={:.4f} "
        "bytes_ratio={:.4f}\n",
        batch.sequences, batch.tokens, dense, wave, dense * 1e6 / kib, wave * 1e6 / kib,
        wave * 1e6 / kib / quality.bytes_ratio, quality.rel_err_mean, quality.bytes_ratio);
  }
}

void PrintGrowth(const Times& times) {
  const auto exponent = [&](const std::string& what) {
    return GrowthExponent(times.All(what, kGrowthTokensMin)).value_or(0.0);
  };
  for (const std::string name : {kWave, kFlat}) {
    const TimesByTokens contexts = times.All(name, kGrowthTokensMin);
    if (contexts.size() < 2) continue;
    double error = 0.0;
    for (const auto& [tokens, time] : contexts) {
      error += Qualities()[{name, {1, tokens}}].rel_err_mean;
    }
    fmt::print("scaling{} exponent={:.3f} rel_err_mean={:.4f} tokens_min={} tokens_max={}\n",
               name == kFlat ? "_flat"
                             : fmt::format(" stream_exponent={:.3f} dense_exponent={:.3f}",
                                           exponent("stream"), exponent(kDense)),
               exponent(name), error / static_cast<double>(contexts.size()),
               contexts.begin()->first, contexts.rbegin()->first);
  }
}

void PrintSteps(const Times& times) {
  // The one that figures of different machines are compared by comes last.
  std::vector<int64_t> order = TheArguments().tokens;
  std::stable_partition(order.begin(), order.end(),
                        [](int64_t tokens) { return tokens != 131072; });
  for (const std::string name : {kFlat, kWave}) {
    for (const int64_t tokens : order) {
      const Batch batch = {1, tokens};
      const double dense = times.Of(kDense, batch);
      const double wave = times.Of(name, batch);
      if (dense == 0.0 || wave == 0.0) continue;  // filtered out
      const StepQuality& quality = Qualities()[{name, batch}];
      fmt::print("decode{} wave_ms={:.3f} ratio={:.2f} rel_err_mean={:.4f} bytes_ratio={:.4f}\n",
                 name == kFlat ? fmt::format("_flat tokens={}", tokens)
                               : fmt::format(" tokens={} stream_ms={:.3f} dense_ms={:.3f}", tokens,
                                             times.Of("stream", batch), dense),
                 wave, dense / wave, quality.rel_err_mean, quality.bytes_ratio);
    }
  }
}

void PrintLines(const Milliseconds& milliseconds) {
  const Times times(milliseconds);
  PrintBatches(times);
  const TimesByTokens dense = times.All(kDense, 0);
  TimesByTokens wave = times.All(kWave, 0);
  for (auto& [tokens, time] : wave) {
    // The same work: which took less is chance.
    const bool same = Qualities()[{kWave, {1, tokens}}].bytes_ratio >= 1.0;
    if (same && dense.count(tokens) > 0) time = dense.at(tokens);
  }
  if (const auto tokens = Crossover(dense, wave)) {
    fmt::print("crossover tokens={}\n", *tokens);
  }
  PrintGrowth(times);
  PrintSteps(times);
}

// "8x32768,1x262144"
bool ParseBatches(const std::string& value) {
  std::vector<Batch>& batches = TheArguments().batches.emplace();
  if (value.empty()) return true;
  for (const absl::string_view text : absl::StrSplit(value, ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(text, 'x');
    Batch batch;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &batch.sequences) ||
        !absl::SimpleAtoi(parts[1], &batch.tokens) || batch.sequences < 1 ||
        batch.sequences > 4096 || batch.tokens < kTokensMin || batch.tokens > kTokensMax) {
      return false;
    }
    batches.push_back(batch);
  }
  return true;
}

// "0.005/0.05,0.01/0.1"
bool ParseBudgets(const std::string& value) {
  std::vector<std::pair<double, double>>& budgets = TheArguments().budgets;
  budgets.clear();
  for (const absl::string_view text : absl::StrSplit(value, ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(text, '/');
    double shares[2];
    if (parts.size() != 2) return false;
    for (int i = 0; i < 2; ++i) {
      if (!absl::SimpleAtod(parts[i], &shares[i]) || !(shares[i] >= 0.0 && shares[i] <= 1.0)) {
        return false;
      }
    }
    budgets.emplace_back(shares[0], shares[1]);
  }
  return true;
}

bool ParseDType(const std::string& name) {
  DType& dtype = TheArguments().kv_dtype;
  if (name == "bf16" || name == "fp16") {
    dtype = name == "bf16" ? DType::kBFloat16 : DType::kFloat16;
  } else if (name == "fp32") {
    dtype = DType::kFloat32;
  } else {
    return false;
  }
  return true;
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
  return BenchMain(
      argc, argv,
      {NumbersOption("tokens", "context lengths, comma-separated (8192 to 1048576)", kTokensMin,
                     kTokensMax, &arguments.tokens),
       {"batch",
        "steps of several sequences, as 8x32768,1x262144 (the default, unless --tokens "
        "is given: none)",
        &ParseBatches},
       NumbersOption("group", "query heads of a kv head", 1, 64, &arguments.group),
       {"dtype", "of keys and values: bf16 (default), fp16 or fp32", &ParseDType},
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
       {"budgets", "also these, retrieval/sketch, beside those above: 0.005/0.05,0.01/0.1",
        &ParseBudgets},
       ShareOption("open", "share of the tokens whose super-clusters are opened",
                   &arguments.zones.open),
       {"exact-below", "sealed tokens below which zones attend exactly (-1: the engine's default)",
        [&](const std::string& value) {
          return absl::SimpleAtoi(value, &arguments.zones.exact_below_tokens) &&
                 ValidateAttendOptions(arguments.zones).ok();
        }},
       {"target-error", "read as little as it takes, 0: what the budgets say",
        [&](const std::string& value) {
          return absl::SimpleAtod(value, &arguments.zones.target_error) &&
                 ValidateAttendOptions(arguments.zones).ok();
        }}},
      &Register, &PrintLines);
}
