// What the retrieval zone finds for its budget, on a recorded trace and on synthetic heads: recall
// of the 100 tokens of most mass, captured mass, error of the output, bytes read. The time is that
// of one Retrieve: ranking all clusters for one query of one kv head.
//
// The last lines, one a source at the default budget: sharp, mid and flat heads, then the trace:
//   recall tokens=.. heads=.. bytes_ratio=.. recall100=.. mass=.. rel_err_mean=.. rel_err_p95=..
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "bench/bench_main.h"
#include "bench/device_option.h"
#include "bench/head_source.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tools/trace/trace_eval.h"

namespace wavekv::bench {
namespace {

constexpr int64_t kNumQueries = 16;  // of synthetic heads

struct Arguments {
  std::string trace = "tests/testdata/traces/tinylm_8k.safetensors";
  std::vector<int64_t> tokens = {32768};
  std::vector<double> retrieval = {0.005, 0.01, 0.018, 0.05, 0.1};
  Device device = Device::kCpu;
};

AttendOptions BudgetOf(double retrieval) {
  AttendOptions options;
  options.retrieval = Budget::Ratio(retrieval);
  return options;
}

// The first head of a source, sealed, and its first query.
class Retrieval {
 public:
  static absl::StatusOr<std::unique_ptr<Retrieval>> Create(const TraceHead& head, Device device) {
    auto retrieval = std::make_unique<Retrieval>();
    const auto dim = static_cast<int>(head.head_dim_k);
    const auto group = static_cast<int>(head.queries.row_elements / dim);
    const auto dim_v = static_cast<int>(head.values.row_elements);
    const int64_t tokens = head.keys.num_rows;
    EngineOptions options;
    options.model = {.num_layers = 1,
                     .num_q_heads = group,
                     .num_kv_heads = 1,
                     .head_dim_k = dim,
                     .head_dim_v = dim_v};
    options.device = device;
    options.arena_bytes = ArenaBytesFor(options, tokens);
    // All rows are appended at once.
    options.gpu.staging_bytes += tokens * options.model.token_bytes();
    WAVEKV_ASSIGN_OR_RETURN(retrieval->engine, Engine::Open(options));
    WAVEKV_ASSIGN_OR_RETURN(const Tenant tenant, retrieval->engine->OpenTenant("bench"));
    WAVEKV_ASSIGN_OR_RETURN(retrieval->sequence, tenant.CreateSequence());
    std::vector<float> keys(tokens * dim), values(tokens * dim_v);
    WAVEKV_RETURN_IF_ERROR(LoadRows(head.keys, 0, tokens, dim, dim, keys.data()));
    WAVEKV_RETURN_IF_ERROR(LoadRows(head.values, 0, tokens, dim_v, dim_v, values.data()));
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(tokens)};
    WAVEKV_RETURN_IF_ERROR(retrieval->engine->Append(
        {{&retrieval->sequence, 1}, cu_seqlens}, 0,
        TensorView::Dense(keys.data(), DType::kFloat32, tokens, 1, dim),
        TensorView::Dense(values.data(), DType::kFloat32, tokens, 1, dim_v)));
    WAVEKV_RETURN_IF_ERROR(retrieval->engine->BuildSegments(retrieval->sequence));
    WAVEKV_RETURN_IF_ERROR(retrieval->engine->WaitForBuilds(retrieval->sequence));
    retrieval->query.resize(static_cast<size_t>(group) * dim);
    WAVEKV_RETURN_IF_ERROR(LoadRows(head.queries, 0, 1, dim, dim, retrieval->query.data()));
    retrieval->view = TensorView::Dense(retrieval->query.data(), DType::kFloat32, 1, group, dim);
    return retrieval;
  }

  std::unique_ptr<Engine> engine;
  Sequence sequence;
  std::vector<float> query;
  TensorView view;
};

struct Measured {
  TraceSummary summary;
  size_t num_heads = 0;
  int64_t num_tokens = 0;
};

// All budgets of a source; the truth is computed once for them.
absl::StatusOr<std::vector<Measured>> Evaluate(const HeadSource& source,
                                               const std::vector<double>& retrieval,
                                               Device device) {
  TraceEvalOptions options;
  options.device = device;
  options.budgets.clear();
  for (const double ratio : retrieval) options.budgets.push_back(BudgetOf(ratio));
  options.queries = source.queries;
  options.kv_dtype = DType::kBFloat16;
  std::vector<TraceSamples> all(retrieval.size());
  for (const TraceHead& head : source.heads) {
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<TraceSamples> samples, EvaluateHead(head, options));
    for (size_t i = 0; i < all.size(); ++i) all[i].Append(samples[i]);
  }
  std::vector<Measured> measured;
  for (const TraceSamples& samples : all) {
    measured.push_back({Summarize(samples), source.heads.size(), source.heads[0].keys.num_rows});
  }
  return measured;
}

void RunRetrieve(benchmark::State& state, Retrieval& retrieval, double ratio,
                 const TraceSummary& summary) {
  const int32_t cu_seqlens[] = {0, 1};
  const auto plan =
      retrieval.engine->MakePlan({{&retrieval.sequence, 1}, cu_seqlens}, BudgetOf(ratio));
  if (!plan.ok()) return state.SkipWithError(plan.status().ToString().c_str());
  for (auto _ : state) {
    const auto retrieved = retrieval.engine->Retrieve(*plan, 0, retrieval.view);
    if (!retrieved.ok()) return state.SkipWithError(retrieved.status().ToString().c_str());
    benchmark::DoNotOptimize(retrieved->data());
  }
  state.counters["recall100"] = summary.recalls[0];
  state.counters["mass"] = summary.mass;
  state.counters["rel_err_mean"] = summary.rel_err_mean;
  state.counters["rel_err_p95"] = summary.rel_err_p95;
  state.counters["bytes_ratio"] = summary.bytes_ratio;
  state.counters["exact_tokens_ratio"] = summary.exact_tokens_ratio;
}

class RecallBench {
 public:
  explicit RecallBench(const Arguments& arguments) : arguments_(arguments) {}

  absl::Status Prepare() {
    WAVEKV_RETURN_IF_ERROR(CheckDevice(arguments_.device));
    std::vector<std::unique_ptr<HeadSource>> sources;
    for (const auto kind :
         {synthetic::Sharpness::kSharp, synthetic::Sharpness::kMid, synthetic::Sharpness::kFlat}) {
      WAVEKV_ASSIGN_OR_RETURN(sources.emplace_back(),
                              SyntheticSource({kind}, arguments_.tokens[0], kNumQueries));
    }
    if (!arguments_.trace.empty()) {
      WAVEKV_ASSIGN_OR_RETURN(sources.emplace_back(), RecordedSource(arguments_.trace));
    }
    for (const auto& source : sources) {
      WAVEKV_ASSIGN_OR_RETURN(std::vector<Measured> measured,
                              Evaluate(*source, arguments_.retrieval, arguments_.device));
      WAVEKV_ASSIGN_OR_RETURN(auto retrieval,
                              Retrieval::Create(source->heads[0], arguments_.device));
      for (size_t i = 0; i < measured.size(); ++i) {
        const double ratio = arguments_.retrieval[i];
        Register(source->name, ratio, *retrieval, measured[i].summary);
        if (ratio == AttendOptions().retrieval.ratio()) defaults_.push_back(measured[i]);
      }
      retrievals_.push_back(std::move(retrieval));
    }
    return absl::OkStatus();
  }

  void PrintLines() const {
    for (const Measured& m : defaults_) {
      fmt::print(
          "recall tokens={} heads={} bytes_ratio={:.4f} recall100={:.4f} mass={:.4f} "
          "rel_err_mean={:.4f} rel_err_p95={:.4f}\n",
          m.num_tokens, m.num_heads, m.summary.bytes_ratio, m.summary.recalls[0], m.summary.mass,
          m.summary.rel_err_mean, m.summary.rel_err_p95);
    }
  }

 private:
  static void Register(const std::string& source, double ratio, Retrieval& retrieval,
                       const TraceSummary& summary) {
    benchmark::RegisterBenchmark(fmt::format("{}/retrieval:{}", source, ratio).c_str(),
                                 [&retrieval, ratio, summary](benchmark::State& state) {
                                   RunRetrieve(state, retrieval, ratio, summary);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }

  const Arguments& arguments_;
  std::vector<std::unique_ptr<Retrieval>> retrievals_;
  std::vector<Measured> defaults_;
};

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments arguments;
  RecallBench bench(arguments);
  return BenchMain(
      argc, argv,
      {TextOption("trace", "file of recorded attention; none: synthetic heads alone",
                  &arguments.trace),
       NumbersOption("tokens", "context of the synthetic heads", 2048, int64_t{1} << 24,
                     &arguments.tokens),
       DeviceOption(&arguments.device),
       {"retrieval", "shares of the indexed tokens, comma-separated",
        [&](const std::string& value) {
          arguments.retrieval.clear();
          for (const absl::string_view text : absl::StrSplit(value, ',')) {
            double ratio = 0.0;
            if (!absl::SimpleAtod(text, &ratio) || !(ratio >= 0.0 && ratio <= 1.0)) return false;
            arguments.retrieval.push_back(ratio);
          }
          return true;
        }}},
      [&] { return bench.Prepare(); }, [&](const Milliseconds&) { bench.PrintLines(); });
}
