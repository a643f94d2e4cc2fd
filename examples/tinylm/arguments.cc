#include "examples/tinylm/arguments.h"

#include <getopt.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

// The documents that come with the model.
constexpr int64_t kContexts[] = {8192, 16384, 32768};
constexpr int64_t kQuickContext = 8192;

enum Option : int {
  kContext = 1000,
  kDense,
  kDevice,
  kDocument,
  kDramPct,
  kDumpTrace,
  kEstimation,
  kHelp,
  kMaxTokens,
  kModel,
  kPrompt,
  kPrompts,
  kQuick,
  kRetrieval,
  kSketch,
  kTask,
  kThreads,
  kTiers,
  kZones,
};

constexpr option kOptions[] = {
    {"context", required_argument, nullptr, kContext},
    {"dense", no_argument, nullptr, kDense},
    {"device", required_argument, nullptr, kDevice},
    {"document", required_argument, nullptr, kDocument},
    {"dram-pct", required_argument, nullptr, kDramPct},
    {"dump-trace", required_argument, nullptr, kDumpTrace},
    {"estimation", required_argument, nullptr, kEstimation},
    {"help", no_argument, nullptr, kHelp},
    {"max-tokens", required_argument, nullptr, kMaxTokens},
    {"model", required_argument, nullptr, kModel},
    {"prompt", required_argument, nullptr, kPrompt},
    {"prompts", required_argument, nullptr, kPrompts},
    {"quick", no_argument, nullptr, kQuick},
    {"retrieval", required_argument, nullptr, kRetrieval},
    {"sketch", required_argument, nullptr, kSketch},
    {"task", required_argument, nullptr, kTask},
    {"threads", required_argument, nullptr, kThreads},
    {"tiers", required_argument, nullptr, kTiers},
    {"zones", required_argument, nullptr, kZones},
    {nullptr, 0, nullptr, 0},
};

absl::Status OptionError(absl::string_view option, absl::string_view expected,
                         absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat("--", option, ": expected ", expected, ", got '", got, "'"));
}

absl::StatusOr<int> ParseCount(absl::string_view option, const char* text, int min, int max) {
  int value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < min || value > max) {
    return OptionError(option, absl::StrCat("an integer from ", min, " to ", max), text);
  }
  return value;
}

absl::StatusOr<wavekv::Budget> ParseRatio(absl::string_view option, const char* text) {
  double value = 0.0;
  if (!absl::SimpleAtod(text, &value) || !(value >= 0.0 && value <= 1.0)) {
    return OptionError(option, "a share from 0 to 1", text);
  }
  return wavekv::Budget::Ratio(value);
}

absl::StatusOr<wavekv::Zones> ParseZones(absl::string_view name) {
  if (name == "sketch") return wavekv::Zones::kSketch;
  if (name == "clusters") return wavekv::Zones::kClusters;
  if (name == "paper") return wavekv::Zones::kPaper;
  return OptionError("zones", "sketch, clusters or paper", name);
}

absl::StatusOr<wavekv::Device> ParseDevice(absl::string_view name) {
  if (name == "cpu") return wavekv::Device::kCpu;
  if (name == "cuda") return wavekv::Device::kCuda;
  return OptionError("device", "cpu or cuda", name);
}

absl::StatusOr<int64_t> ParseContext(const char* text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) ||
      std::find(std::begin(kContexts), std::end(kContexts), value) == std::end(kContexts)) {
    return OptionError("context", absl::StrCat("one of ", absl::StrJoin(kContexts, ", ")), text);
  }
  return value;
}

absl::Status ApplyOption(int option, const char* value, Arguments* arguments) {
  switch (option) {
    case kHelp:
      arguments->command = Command::kHelp;
      break;
    case kModel:
      arguments->model_directory = value;
      break;
    case kThreads: {
      TINYLM_ASSIGN_OR_RETURN(arguments->threads, ParseCount("threads", value, 1, 1024));
      break;
    }
    case kRetrieval: {
      TINYLM_ASSIGN_OR_RETURN(arguments->wave.retrieval, ParseRatio("retrieval", value));
      break;
    }
    case kEstimation: {
      TINYLM_ASSIGN_OR_RETURN(arguments->wave.estimation, ParseRatio("estimation", value));
      break;
    }
    case kSketch: {
      TINYLM_ASSIGN_OR_RETURN(arguments->wave.sketch, ParseRatio("sketch", value));
      break;
    }
    case kTiers:
      arguments->tiers.directory = value;
      break;
    case kDramPct: {
      TINYLM_ASSIGN_OR_RETURN(arguments->tiers.dram_pct, ParseCount("dram-pct", value, 1, 200));
      break;
    }
    case kZones: {
      TINYLM_ASSIGN_OR_RETURN(arguments->wave.zones, ParseZones(value));
      break;
    }
    case kContext: {
      TINYLM_ASSIGN_OR_RETURN(arguments->context, ParseContext(value));
      break;
    }
    case kQuick:
      arguments->context = kQuickContext;
      break;
    case kPrompts: {
      TINYLM_ASSIGN_OR_RETURN(arguments->prompts, ParseCount("prompts", value, 1, 1000));
      break;
    }
    case kTask:
      arguments->tasks = absl::StrSplit(value, ',');
      break;
    case kPrompt:
      arguments->prompt_file = value;
      break;
    case kMaxTokens: {
      TINYLM_ASSIGN_OR_RETURN(arguments->max_tokens, ParseCount("max-tokens", value, 1, 1'000'000));
      break;
    }
    case kDense:
      arguments->dense = true;
      break;
    case kDevice: {
      TINYLM_ASSIGN_OR_RETURN(arguments->device, ParseDevice(value));
      break;
    }
    case kDumpTrace:
      arguments->trace_file = value;
      break;
    case kDocument: {
      TINYLM_ASSIGN_OR_RETURN(arguments->document, ParseCount("document", value, 0, 1000));
      break;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Arguments> ParseArguments(int argc, const char* const* argv) {
  Arguments arguments;
  bool help = argc <= 1;
  optind = 0;  // getopt starts afresh
  opterr = 0;  // and leaves the messages to us
  while (true) {
    const int option = getopt_long(argc, const_cast<char* const*>(argv), ":h", kOptions, nullptr);
    if (option == -1) break;
    if (option == ':') {
      return absl::InvalidArgumentError(absl::StrCat(argv[optind - 1], ": expected a value"));
    }
    if (option == '?') {
      const bool is_letter = optopt > 0 && optopt < kContext;
      return absl::InvalidArgumentError(
          absl::StrCat("cannot understand the option ",
                       is_letter ? std::string{'-', static_cast<char>(optopt)} : argv[optind - 1]));
    }
    help = help || option == kHelp || option == 'h';
    TINYLM_RETURN_IF_ERROR(ApplyOption(option, optarg, &arguments));
  }
  if (help) return arguments;
  if (arguments.device == wavekv::Device::kCuda && !arguments.tiers.directory.empty()) {
    return absl::InvalidArgumentError(
        "--tiers: a GPU keeps all keys and values in its own memory; leave out --tiers or "
        "--device cuda");
  }

  // getopt_long has moved what is no option to the end.
  const std::vector<std::string> words(argv + optind, argv + argc);
  const bool demo = words == std::vector<std::string>{"demo"};
  if (!words.empty() && !demo) {
    return absl::InvalidArgumentError(absl::StrCat("expected the command 'demo' or options, got '",
                                                   absl::StrJoin(words, " "), "'"));
  }
  if (demo && !(arguments.prompt_file.empty() && arguments.trace_file.empty())) {
    return absl::InvalidArgumentError("demo takes neither --prompt nor --dump-trace");
  }
  if (demo) {
    arguments.command = Command::kDemo;
  } else if (!arguments.prompt_file.empty()) {
    arguments.command = Command::kPrompt;
  } else if (!arguments.trace_file.empty()) {
    arguments.command = Command::kTrace;
  } else {
    return absl::InvalidArgumentError("expected 'demo', --prompt FILE or --dump-trace FILE");
  }
  return arguments;
}

const char* HelpText() {
  return R"(wavekv-tinylm: a small language model whose attention is answered by wavekv.

wavekv-tinylm demo [options]
    Reads a long document, asks for facts hidden in it, and compares the answers that dense
    attention and wavekv's zones give.
      --quick            a document of 8192 tokens instead of 32768
      --context N        tokens of the document: 8192, 16384 or 32768
      --prompts N        questions per task, the first ones of the file (20)
      --task A,B         niah: two words by their key; vt: a chain of three variables;
                         num: five digits; quote: a line of text (niah,vt)

wavekv-tinylm --prompt FILE [options]
    Continues the text in FILE ("-": standard input); line breaks at its end do not count.
      --max-tokens N     tokens to generate (100)
      --dense            decode with dense attention
      --dump-trace FILE  also record keys, values and queries

wavekv-tinylm --dump-trace FILE [--context N] [--document I]
    Reads evaluation document I (0) and records its keys, values and last queries, as safetensors.

Everywhere:
      --zones Z          sketch (default), clusters or paper: docs/wave_index.md
      --retrieval R      share of the indexed tokens that are attended exactly (0.018)
      --sketch R         sketch: share whose codes are read (0.25)
      --estimation R     clusters, paper: share that is answered by the value means of its own
                         clusters (0.232)
      --device D         cpu (default), or cuda: keys and values are kept, indexed and attended
                         on the first GPU; the rest of the model runs on the CPU
      --tiers DIR        on the CPU: keep sealed keys and values in a file in DIR, and a part of them in DRAM
      --dram-pct N       that part, in percent of the KV cache (25)
      --threads N        (one per processor)
      --model DIR        config.json, model.safetensors, tokenizer.model and eval_L*.safetensors
      --help

Exit status: 0 done, 1 failed, 2 wrong usage.
)";
}

}  // namespace tinylm
