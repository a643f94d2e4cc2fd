// wavekv-synthetic-trace: writes a trace of synthetic heads, and says how they attend.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tools/synthetic/synthetic_head.h"
#include "tools/synthetic/synthetic_statistics.h"
#include "tools/synthetic/synthetic_trace.h"

namespace wavekv::synthetic {
namespace {

constexpr char kUsage[] =
    "usage: wavekv-synthetic-trace [OPTIONS] [FILE.safetensors]\n"
    "Draws kv heads whose attention is spread as published for trained models, prints their\n"
    "statistics next to what is aimed at, and writes them as a trace when a FILE is named.\n"
    "  --tokens N       131072: length of the context\n"
    "  --heads LIST     sharp,mid,mid,flat: one kv head each\n"
    "  --queries N      32: the last positions are asked\n"
    "  --head-dim N     128\n"
    "  --group N        4: query heads of a kv head\n"
    "  --needles N      0: single tokens that every fourth query asks for\n"
    "  --sink-mass X    0.5: share of the attention on the first 4 tokens\n"
    "  --local-mass X   0.1: share of the rest on the last 64 tokens\n"
    "  --spectrum X     0.5: principal direction i of what keys mean is as strong as i^-X\n"
    "  --drift X        0.1: radians that the mean key turns in 1024 queried positions\n"
    "  --dtype T        bf16, fp16 or fp32\n"
    "  --seed N         1\n";

struct Arguments {
  SyntheticHeadSpec spec;
  std::vector<Sharpness> heads = {Sharpness::kSharp, Sharpness::kMid, Sharpness::kMid,
                                  Sharpness::kFlat};
  DType dtype = DType::kBFloat16;
  std::string file;
  bool help = false;
};

absl::StatusOr<Arguments> Parse(int argc, char** argv) {
  Arguments arguments;
  SyntheticHeadSpec& spec = arguments.spec;
  const auto into = [](auto* field) {
    return [field](absl::string_view text) {
      using Field = std::remove_reference_t<decltype(*field)>;
      if constexpr (std::is_floating_point_v<Field>) {
        return absl::SimpleAtod(text, field);
      } else {
        return absl::SimpleAtoi(text, field);
      }
    };
  };
  const std::map<std::string, std::function<bool(absl::string_view)>> options = {
      {"--tokens", into(&spec.num_tokens)},
      {"--queries", into(&spec.num_queries)},
      {"--head-dim", into(&spec.head_dim)},
      {"--group", into(&spec.gqa_group_size)},
      {"--needles", into(&spec.num_needles)},
      {"--sink-mass", into(&spec.sink_mass)},
      {"--local-mass", into(&spec.local_mass)},
      {"--spectrum", into(&spec.spectrum_exponent)},
      {"--drift", into(&spec.drift)},
      {"--seed", into(&spec.seed)},
      {"--heads",
       [&](absl::string_view text) {
         arguments.heads.clear();
         for (const absl::string_view name : absl::StrSplit(text, ',')) {
           const auto sharpness = ParseSharpness(name);
           if (!sharpness.ok()) return false;
           arguments.heads.push_back(*sharpness);
         }
         return true;
       }},
      {"--dtype",
       [&](absl::string_view text) {
         const std::map<absl::string_view, DType> names = {
             {"bf16", DType::kBFloat16}, {"fp16", DType::kFloat16}, {"fp32", DType::kFloat32}};
         const auto found = names.find(text);
         if (found == names.end()) return false;
         arguments.dtype = found->second;
         return true;
       }},
  };
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      arguments.help = true;
      return arguments;
    }
    if (name.rfind('-', 0) != 0) {
      if (!arguments.file.empty()) {
        return absl::InvalidArgumentError(fmt::format("expected one file, got also {}", name));
      }
      arguments.file = name;
      continue;
    }
    std::string value;
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    }
    const auto option = options.find(name);
    if (option == options.end()) {
      return absl::InvalidArgumentError(fmt::format("there is no option {}", name));
    }
    if (!option->second(value)) {
      return absl::InvalidArgumentError(fmt::format("{} does not take \"{}\"", name, value));
    }
  }
  return arguments;
}

absl::Status Run(const Arguments& arguments) {
  std::vector<absl::StatusOr<SyntheticHead>> created(arguments.heads.size());
  std::vector<std::string> tables(created.size());
  const auto create = [&](size_t first) {
    const size_t step = std::max(1u, std::thread::hardware_concurrency());
    for (size_t h = first; h < created.size(); h += step) {
      SyntheticHeadSpec spec = arguments.spec;
      spec.sharpness = arguments.heads[h];
      spec.seed += h;
      created[h] = SyntheticHead::Create(spec);
      if (created[h].ok()) tables[h] = StatisticsTable(spec, MeasureStatistics(*created[h]));
    }
  };
  std::vector<std::thread> threads;
  for (size_t t = 1; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back(create, t);
  }
  create(0);
  for (std::thread& thread : threads) thread.join();

  std::vector<SyntheticHead> heads;
  for (size_t h = 0; h < created.size(); ++h) {
    if (!created[h].ok()) return created[h].status();
    fmt::print("head {}, {}\n{:<54} {:>7}  {}\n{}\n", h, SharpnessName(arguments.heads[h]), "",
               "got", "aim", tables[h]);
    heads.push_back(*std::move(created[h]));
  }
  if (arguments.file.empty()) return absl::OkStatus();
  WAVEKV_RETURN_IF_ERROR(WriteSyntheticTrace(heads, arguments.dtype, arguments.file));
  fmt::print("wrote {}\n", arguments.file);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const auto arguments = Parse(argc, argv);
  if (!arguments.ok()) {
    fmt::print(stderr, "{}\n{}", std::string(arguments.status().message()), kUsage);
    return 2;
  }
  if (arguments->help) {
    fmt::print("{}", kUsage);
    return 0;
  }
  if (const absl::Status status = Run(*arguments); !status.ok()) {
    fmt::print(stderr, "{}\n", std::string(status.message()));
    return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  return 0;
}

}  // namespace
}  // namespace wavekv::synthetic

int main(int argc, char** argv) { return wavekv::synthetic::Main(argc, argv); }
