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
  kClusterTokensMax = 1000,
  kCsv,
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
  kPromptTokens,
  kQueryType,
  kRetrieval,
  kScale,
  kSeed,
  kStatisticsDType,
  kThreads,
  kTokensPerCluster,
};

constexpr option kOptions[] = {
    {"cluster-tokens-max", required_argument, nullptr, kClusterTokensMax},
    {"csv", no_argument, nullptr, kCsv},
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
    {"prompt-tokens", required_argument, nullptr, kPromptTokens},
    {"query-type", required_argument, nullptr, kQueryType},
    {"retrieval", required_argument, nullptr, kRetrieval},
    {"scale", required_argument, nullptr, kScale},
    {"seed", required_argument, nullptr, kSeed},
    {"statistics-dtype", required_argument, nullptr, kStatisticsDType},
    {"threads", required_argument, nullptr, kThreads},
    {"tokens-per-cluster", required_argument, nullptr, kTokensPerCluster},
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
  std::vector<Budget> retrieval = {AttendOptions().retrieval};
  std::vector<Budget> estimation = {AttendOptions().estimation};
  MassEstimate mass = AttendOptions().mass;
};

absl::Status ApplyOption(int option, const char* value, EvalArguments& arguments,
                         Budgets& budgets) {
  switch (option) {
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
    case kRetrieval: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.retrieval, ParseBudgets("retrieval", value));
      break;
    }
    case kEstimation: {
      WAVEKV_ASSIGN_OR_RETURN(budgets.estimation, ParseBudgets("estimation", value));
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
    case kStatisticsDType: {
      WAVEKV_ASSIGN_OR_RETURN(arguments.eval.index.statistics_dtype,
                              ParseDType("statistics-dtype", value));
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

// Every pair of the lists; the engine's defaults among them where the format shows them always.
void SetBudgets(const Budgets& budgets, EvalArguments& arguments) {
  const AttendOptions defaults;
  std::vector<AttendOptions>& all = arguments.eval.budgets;
  all.clear();
  for (const Budget& retrieval : budgets.retrieval) {
    for (const Budget& estimation : budgets.estimation) {
      AttendOptions options;
      options.retrieval = retrieval;
      options.estimation = estimation;
      options.mass = budgets.mass;
      all.push_back(options);
    }
  }
  if (arguments.format != EvalArguments::Format::kJson) return;
  const auto found = std::find_if(all.begin(), all.end(), [&](const AttendOptions& options) {
    return SameBudget(options.retrieval, defaults.retrieval) &&
           SameBudget(options.estimation, defaults.estimation) && options.mass == defaults.mass;
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
      const bool is_letter = optopt > 0 && optopt < kClusterTokensMax;
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

      --retrieval LIST         budgets of the retrieval zone (0.018): shares of the indexed tokens
                               such as 0.018 or 1.8%, or numbers of tokens such as 512t
      --estimation LIST        budgets of the estimation zone (0.232); every pair is evaluated
      --mass M                 second-order (default) or lower-bound
      --k LIST                 recall is measured among this many tokens (100)
      --scale F                multiplies the recorded softmax scale: 2 makes attention sharper
      --query-type NAME        only queries of that type, such as decode (all)
      --layers LIST            only these layers, such as 0,4-7
      --heads LIST             only these kv heads
      --kv-dtype T             store keys and values as fp32, fp16 or bf16 (as recorded)
      --statistics-dtype T     the same for centroids and value means (fp32)
      --tokens-per-cluster N   average (16)
      --cluster-tokens-max N   larger clusters are split (64)
      --kmeans-iterations N    (2)
      --seed N                 of the clustering (1)
      --grow                   seal segments also behind the first query, as while decoding
      --prompt-tokens N        --grow, and all tokens behind the first N are generated ones
      --no-merge               with --grow: never merge small segments into large ones
      --threads N              0: one per processor (default); results are the same
      --csv                    comma-separated rows
      --json                   one object: rows, budgets, and overall for the engine's defaults
      --help

Ends with 0; 1 when a file cannot be used; 2 when an option cannot.
)";
}

}  // namespace wavekv
