#include "tools/trace/eval_arguments.h"

#include <getopt.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

constexpr int64_t kNumberMax = 1'000'000'000;

enum Option : int {
  kAccesses = 1000,
  kClusterTokensMax,
  kClustersPerSuper,
  kCodeBits,
  kCsv,
  kDevice,
  kEstimation,
  kGrow,
  kHeads,
  kHelp,
  kJson,
  kK,
  kKMeansIterations,
  kKvDType,
  kLayers,
  kMass,
  kNoMerge,
  kOpen,
  kPlot,
  kPromptTokens,
  kQueryType,
  kRetrieval,
  kScale,
  kSeed,
  kSketch,
  kStatistics,
  kTargetError,
  kThreads,
  kTokensPerCluster,
  kZones,
};

constexpr option kOptions[] = {
    {"accesses", required_argument, nullptr, kAccesses},
    {"cluster-tokens-max", required_argument, nullptr, kClusterTokensMax},
    {"clusters-per-super", required_argument, nullptr, kClustersPerSuper},
    {"code-bits", required_argument, nullptr, kCodeBits},
    {"csv", no_argument, nullptr, kCsv},
    {"device", required_argument, nullptr, kDevice},
    {"estimation", required_argument, nullptr, kEstimation},
    {"grow", no_argument, nullptr, kGrow},
    {"heads", required_argument, nullptr, kHeads},
    {"help", no_argument, nullptr, kHelp},
    {"json", no_argument, nullptr, kJson},
    {"k", required_argument, nullptr, kK},
    {"kmeans-iterations", required_argument, nullptr, kKMeansIterations},
    {"kv-dtype", required_argument, nullptr, kKvDType},
    {"layers", required_argument, nullptr, kLayers},
    {"mass", required_argument, nullptr, kMass},
    {"no-merge", no_argument, nullptr, kNoMerge},
    {"open", required_argument, nullptr, kOpen},
    {"plot", required_argument, nullptr, kPlot},
    {"prompt-tokens", required_argument, nullptr, kPromptTokens},
    {"query-type", required_argument, nullptr, kQueryType},
    {"retrieval", required_argument, nullptr, kRetrieval},
    {"scale", required_argument, nullptr, kScale},
    {"seed", required_argument, nullptr, kSeed},
    {"sketch", required_argument, nullptr, kSketch},
    {"statistics", required_argument, nullptr, kStatistics},
    {"target-error", required_argument, nullptr, kTargetError},
    {"threads", required_argument, nullptr, kThreads},
    {"tokens-per-cluster", required_argument, nullptr, kTokensPerCluster},
    {"zones", required_argument, nullptr, kZones},
    {nullptr, 0, nullptr, 0},
};

absl::Status OptionError(absl::string_view option, absl::string_view expected,
                         absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat("--", option, ": expected ", expected, ", got '", got, "'"));
}

bool ParseNumber(absl::string_view text, int64_t min, int64_t* value) {
  return absl::SimpleAtoi(text, value) && *value >= min && *value <= kNumberMax;
}

absl::StatusOr<std::vector<Budget>> ParseBudgets(absl::string_view option, const char* list) {
  std::vector<Budget> budgets;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    absl::string_view number = text;
    int64_t tokens = 0;
    double share = 0.0;
    if (absl::ConsumeSuffix(&number, "t")) {
      if (!ParseNumber(number, 0, &tokens)) {
        return OptionError(option, "a number of tokens such as 512t", text);
      }
      budgets.push_back(Budget::Tokens(tokens));
      continue;
    }
    const double unit = absl::ConsumeSuffix(&number, "%") ? 0.01 : 1.0;
    if (!absl::SimpleAtod(number, &share) || !(share * unit >= 0.0 && share * unit <= 1.0)) {
      return OptionError(option, "shares from 0 to 1, such as 0.018 or 1.8%, or tokens (512t)",
                         text);
    }
    budgets.push_back(Budget::Ratio(share * unit));
  }
  return budgets;
}

absl::StatusOr<DType> ParseDType(absl::string_view option, absl::string_view name) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return OptionError(option, "fp32, fp16 or bf16", name);
}

absl::StatusOr<Device> ParseDevice(absl::string_view name) {
  if (name == "cpu") return Device::kCpu;
  if (name == "cuda") return Device::kCuda;
  return OptionError("device", "cpu or cuda", name);
}

absl::StatusOr<StatisticsFormat> ParseStatistics(absl::string_view option, absl::string_view name) {
  for (const StatisticsFormat format :
       {StatisticsFormat::kFloat32, StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    if (name == StatisticsFormatName(format)) return format;
  }
  return OptionError(option, "fp32, int8 or int4", name);
}

absl::StatusOr<std::vector<AttendOptions>> ParseZones(const char* list) {
  std::vector<AttendOptions> zones;
  for (const absl::string_view name : absl::StrSplit(list, ',')) {
    if (name == "sketch") {
      zones.push_back(AttendOptions());
    } else if (name == "clusters") {
      zones.push_back(AttendOptions::Clusters());
    } else if (name == "paper") {
      zones.push_back(AttendOptions::Paper());
    } else {
      return OptionError("zones", "sketch, clusters or paper", name);
    }
  }
  return zones;
}

absl::StatusOr<Ranges> ParseRanges(absl::string_view option, const char* list) {
  Ranges ranges;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(text, absl::MaxSplits('-', 1));
    int64_t first = 0;
    int64_t last = 0;
    const bool is_range = text.find('-') != absl::string_view::npos;
    if (!ParseNumber(ends.first, 0, &first) ||
        !ParseNumber(is_range ? ends.second : ends.first, first, &last)) {
      return OptionError(option, "numbers and ranges such as 0,4-7", text);
    }
    ranges.emplace_back(first, last);
  }
  return ranges;
}

absl::StatusOr<std::vector<int64_t>> ParseKs(const char* list) {
  std::vector<int64_t> ks;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    int64_t k = 0;
    if (!ParseNumber(text, 1, &k)) return OptionError("k", "numbers >= 1", text);
    ks.push_back(k);
  }
  return ks;
}

absl::StatusOr<std::vector<double>> ParseErrors(absl::string_view option, const char* list) {
  std::vector<double> errors;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    double error = 0.0;
    if (!absl::SimpleAtod(text, &error) || !std::isfinite(error) || error < 0.0) {
      return OptionError(option, "errors >= 0, such as 0.02", text);
    }
    errors.push_back(error);
  }
  return errors;
}

absl::Status ParseInt(absl::string_view option, const char* text, int* value) {
  int64_t number = 0;
  if (!ParseNumber(text, 0, &number)) {
    return OptionError(option, absl::StrCat("an integer from 0 to ", kNumberMax), text);
  }
  *value = static_cast<int>(number);
  return absl::OkStatus();
}

// The engine says which values fit together.
absl::Status CheckIndex(const IndexOptions& index) {
  EngineOptions options;
  options.model = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim_k = 8};
  options.arena_bytes = int64_t{1} << 30;
  options.index = index;
  return ValidateEngineOptions(options);
}

// What the options say of budgets, until all are known.
struct Budgets {
  std::vector<AttendOptions> zones = {AttendOptions()};  // with their own budgets
  std::vector<Budget> retrieval;                         // empty: those of the zones
  std::vector<Budget> sketch;
  std::vector<Budget> estimation;
  std::vector<Budget> open = {AttendOptions().open};
  std::vector<double> target_errors = {0.0};
  MassEstimate mass = AttendOptions().mass;
};

absl::Status ApplyOption(int option, const char* value, EvalArguments& arguments,
                         Budgets& budgets) {
  switch (option) {
    case kAccesses:
      arguments.accesses = value;
      break;
    case kHelp:
    case 'h':
      arguments.help = true;
      break;
    case kCsv:
    case kJson: {
      if (arguments.format != EvalArguments::Format::kTable) {
        return absl::InvalidArgumentError("expected one of --csv and --json");
      }
      arguments.format =
          option == kCsv ? EvalArguments::Format::kCsv : EvalArguments::Format::kJson;
      break;
    }
    case kDevice: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.eval.device, ParseDevice(value));
      break;
    }
    case kRetrieval: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.retrieval, ParseBudgets("retrieval", value));
      break;
    }
    case kSketch: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.sketch, ParseBudgets("sketch", value));
      break;
    }
    case kZones: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.zones, ParseZones(value));
      break;
    }
    case kCodeBits:
      return ParseInt("code-bits", value, &arguments.eval.index.code_bits);
    case kClustersPerSuper:
      return ParseInt("clusters-per-super", value, &arguments.eval.index.clusters_per_super);
    case kEstimation: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.estimation, ParseBudgets("estimation", value));
      break;
    }
    case kOpen: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.open, ParseBudgets("open", value));
      break;
    }
    case kTargetError: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.target_errors, ParseErrors("target-error", value));
      break;
    }
    case kMass: {
      const absl::string_view name = value;
      if (name != "second-order" && name != "lower-bound") {
        return OptionError("mass", "second-order or lower-bound", name);
      }
      budgets.mass =
          name == "second-order" ? MassEstimate::kSecondOrder : MassEstimate::kLowerBound;
      break;
    }
    case kK: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.eval.recall_ks, ParseKs(value));
      break;
    }
    case kScale: {
      double& factor = arguments.eval.scale_factor;
      if (!absl::SimpleAtod(value, &factor) || !std::isfinite(factor) || factor <= 0.0) {
        return OptionError("scale", "a factor > 0", value);
      }
      break;
    }
    case kQueryType:
      arguments.query_type = absl::string_view(value) == "all" ? "" : value;
      break;
    case kLayers: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.layers, ParseRanges("layers", value));
      break;
    }
    case kHeads: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.kv_heads, ParseRanges("heads", value));
      break;
    }
    case kKvDType: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.eval.kv_dtype, ParseDType("kv-dtype", value));
      break;
    }
    case kStatistics: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.eval.index.statistics,
                              ParseStatistics("statistics", value));
      break;
    }
    case kTokensPerCluster:
      return ParseInt("tokens-per-cluster", value, &arguments.eval.index.tokens_per_cluster);
    case kClusterTokensMax:
      return ParseInt("cluster-tokens-max", value, &arguments.eval.index.cluster_tokens_max);
    case kKMeansIterations:
      return ParseInt("kmeans-iterations", value, &arguments.eval.index.kmeans_iterations);
    case kSeed:
      if (!absl::SimpleAtoi(value, &arguments.eval.index.seed)) {
        return OptionError("seed", "an integer >= 0", value);
      }
      break;
    case kGrow:
      arguments.eval.grow = true;
      break;
    case kNoMerge:
      arguments.eval.index.merge_segments = false;
      break;
    case kPromptTokens: {
      int64_t tokens = 0;
      if (!ParseNumber(value, 1, &tokens)) {
        return OptionError("prompt-tokens", "an integer >= 1", value);
      }
      arguments.eval.prompt_tokens = tokens;
      arguments.eval.grow = true;
      break;
    }
    case kPlot:
      arguments.plot = value;
      break;
    case kThreads: {
      int64_t threads = 0;
      if (!ParseNumber(value, 0, &threads) || threads > 1024) {
        return OptionError("threads", "an integer from 0 to 1024", value);
      }
      arguments.eval.num_threads = static_cast<int>(threads);
      break;
    }
  }
  return absl::OkStatus();
}

bool SameBudget(const Budget& a, const Budget& b) {
  return a.tokens() == b.tokens() && a.ratio() == b.ratio();
}

bool SameOptions(const AttendOptions& a, const AttendOptions& b) {
  return a.zones == b.zones && SameBudget(a.retrieval, b.retrieval) &&
         SameBudget(a.sketch, b.sketch) && SameBudget(a.estimation, b.estimation) &&
         SameBudget(a.open, b.open) && a.target_error == b.target_error && a.mass == b.mass;
}

// Every combination of the lists; the engine's defaults among them where the format shows them
// always.
void SetBudgets(const Budgets& budgets, EvalArguments& arguments) {
  const AttendOptions defaults;
  std::vector<AttendOptions>& all = arguments.eval.budgets;
  all.clear();
  for (const AttendOptions& zones : budgets.zones) {
    const bool sketch = zones.zones == Zones::kSketch;
    const std::vector<Budget>& second = sketch ? budgets.sketch : budgets.estimation;
    const size_t num_first = std::max<size_t>(budgets.retrieval.size(), 1);
    const size_t num_second = std::max<size_t>(second.size(), 1);
    for (size_t i = 0; i < num_first * num_second; ++i) {
      AttendOptions options = zones;
      if (!budgets.retrieval.empty()) options.retrieval = budgets.retrieval[i / num_second];
      if (!second.empty()) (sketch ? options.sketch : options.estimation) = second[i % num_second];
      if (zones.zones != Zones::kPaper) options.mass = budgets.mass;
      for (const Budget& open : budgets.open) {
        for (const double target_error : budgets.target_errors) {
          options.open = open;
          options.target_error = zones.zones == Zones::kPaper ? 0.0 : target_error;
          const bool is_listed =
              std::any_of(all.begin(), all.end(),
                          [&](const AttendOptions& other) { return SameOptions(options, other); });
          if (!is_listed) all.push_back(options);
        }
      }
    }
  }
  if (arguments.format != EvalArguments::Format::kJson) return;
  const auto found = std::find_if(all.begin(), all.end(), [&](const AttendOptions& options) {
    return SameOptions(options, defaults);
  });
  arguments.default_budget = found - all.begin();
  if (found == all.end()) all.push_back(defaults);
  std::vector<int64_t>& ks = arguments.eval.recall_ks;
  if (std::find(ks.begin(), ks.end(), 100) == ks.end()) ks.push_back(100);
}

}  // namespace

absl::StatusOr<EvalArguments> ParseEvalArguments(int argc, const char* const* argv) {
  EvalArguments arguments;
  Budgets budgets;
  optind = 0;  // getopt starts afresh
  opterr = 0;  // and leaves the messages to us
  while (true) {
    const int option = getopt_long(argc, const_cast<char* const*>(argv), ":h", kOptions, nullptr);
    if (option == -1) break;
    if (option == ':') {
      return absl::InvalidArgumentError(absl::StrCat(argv[optind - 1], ": expected a value"));
    }
    if (option == '?') {
      const bool is_letter = optopt > 0 && optopt < kAccesses;
      return absl::InvalidArgumentError(
          absl::StrCat("cannot understand the option ",
                       is_letter ? std::string{'-', static_cast<char>(optopt)} : argv[optind - 1]));
    }
    WAVEKV_RETURN_IF_ERROR(ApplyOption(option, optarg, arguments, budgets));
  }
  arguments.files.assign(argv + optind, argv + argc);
  if (!arguments.help && arguments.files.empty()) {
    return absl::InvalidArgumentError("expected at least one trace file");
  }
  WAVEKV_RETURN_IF_ERROR(CheckIndex(arguments.eval.index));
  SetBudgets(budgets, arguments);
  return arguments;
}

const char* EvalHelpText() {
  return R"(wavekv-trace-eval FILE.safetensors... [options]

Stores recorded keys and values in wavekv, asks the recorded queries, and compares with exact
attention in double precision. docs/trace_format.md defines the files and the numbers printed.

      --zones LIST             sketch (default), clusters, paper: docs/wave_index.md
      --retrieval LIST         budgets of what is read exactly (0.018): shares of the indexed
                               tokens such as 0.018 or 1.8%, or numbers of tokens such as 512t
      --sketch LIST            budgets of the sketch zone (0.25); every combination is evaluated
      --estimation LIST        the same of the estimation zone, for clusters and paper (0.232)
      --open LIST              budgets of super-clusters whose clusters are looked at (1)
      --target-error LIST      read as little as this error takes; the budgets are the most that is
                               read (0: read what the budgets say); not for paper
      --mass M                 second-order (default) or lower-bound
      --k LIST                 recall is measured among this many tokens (100)
      --scale F                multiplies the recorded softmax scale: 2 makes attention sharper
      --query-type NAME        only queries of that type, such as decode (all)
      --layers LIST            only these layers, such as 0,4-7
      --heads LIST             only these kv heads
      --kv-dtype T             store keys and values as fp32, fp16 or bf16 (as recorded)
      --statistics T           store centroids and value means as fp32, int8 or int4 (int4)
      --code-bits N            of a key's element in the token codes: 1, 2, 4; 0: by head_dim (0)
      --clusters-per-super N   average (16)
      --tokens-per-cluster N   average (16)
      --cluster-tokens-max N   larger clusters are split (64)
      --kmeans-iterations N    (2)
      --seed N                 of the clustering (1)
      --grow                   seal segments also behind the first query, as while decoding
      --prompt-tokens N        --grow, and all tokens behind the first N are generated ones
      --no-merge               with --grow: never merge small segments into large ones
      --plot FILE.svg          writes a picture: estimated and true error of every sample, for the
                               first combination of budgets
      --accesses FILE          writes which blocks every query reads, for the first combination of
                               budgets: input for studies of caches
      --device D               where wavekv runs: cpu (default), or cuda for the first GPU; exact
                               attention is computed on the CPU
      --threads N              0: one per processor (default); results are the same
      --csv                    comma-separated rows
      --json                   one object: rows, budgets, and overall for the engine's defaults
      --help

Ends with 0; 1 when a file cannot be used; 2 when an option cannot.
)";
}

}  // namespace wavekv
