#include "bench/bench_main.h"

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "fmt/format.h"
#include "wavekv/instruction_sets.h"

namespace wavekv::bench {
namespace {

// Prints what the console reporter prints, and keeps the times.
class KeepingReporter : public benchmark::ConsoleReporter {
 public:
  KeepingReporter() : ConsoleReporter(isatty(STDOUT_FILENO) != 0 ? OO_Color : OO_None) {}

  void ReportRuns(const std::vector<Run>& reports) override {
    ConsoleReporter::ReportRuns(reports);
    for (const Run& run : reports) {
      if (run.error_occurred) {
        failed_ = true;
        continue;
      }
      if (run.run_type == Run::RT_Aggregate && run.aggregate_name != "median") continue;
      // Seconds of an iteration, whatever the unit that is shown.
      const double seconds =
          run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit);
      times_[run.run_name.str()] = seconds * 1e3;
    }
  }

  const Milliseconds& times() const { return times_; }
  bool failed() const { return failed_; }

 private:
  Milliseconds times_;
  bool failed_ = false;
};

// As the kernel names it; results of different machines are told apart by it.
std::string CpuModel() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!absl::StartsWith(line, "model name")) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return "unknown";
}

void PrintUsage(const char* program, const std::vector<Option>& options) {
  fmt::print("usage: {} [OPTIONS]\n", program);
  for (const Option& option : options) {
    fmt::print("  --{}=...  {}\n", option.name, option.help);
  }
  fmt::print("  --instructions=NAME  the best instruction set to use, of {}\n",
             absl::StrJoin(InstructionSets(), ", "));
  fmt::print(
      "  --json=FILE  also write the results as JSON\n"
      "  --benchmark_...  Google Benchmark's own: filter, min_time, repetitions\n");
}

}  // namespace

Option NumbersOption(std::string name, std::string help, int64_t low, int64_t high,
                     std::vector<int64_t>* numbers) {
  return {std::move(name), std::move(help), [low, high, numbers](const std::string& value) {
            numbers->clear();
            for (const absl::string_view text : absl::StrSplit(value, ',')) {
              int64_t number = 0;
              if (!absl::SimpleAtoi(text, &number) || number < low || number > high) return false;
              numbers->push_back(number);
            }
            return true;
          }};
}

Option TextOption(std::string name, std::string help, std::string* text) {
  return {std::move(name), std::move(help), [text](const std::string& value) {
            *text = value;
            return true;
          }};
}

int BenchMain(int argc, char** argv, const std::vector<Option>& options,
              const std::function<absl::Status()>& prepare,
              const std::function<void(const Milliseconds&)>& finish) {
  std::vector<std::string> rest = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      PrintUsage(argv[0], options);
      return 0;
    }
    const size_t equals = std::min(argument.find('='), argument.size());
    const std::string name = argument.substr(0, equals);
    const std::string value = argument.substr(std::min(equals + 1, argument.size()));
    if (name == "--json") {
      rest.push_back("--benchmark_out=" + value);
      rest.push_back("--benchmark_out_format=json");
      continue;
    }
    if (name == "--instructions") {
      if (const absl::Status status = SetInstructionSet(value); !status.ok()) {
        fmt::print(stderr, "--instructions: {}\n", std::string(status.message()));
        return 2;
      }
      continue;
    }
    const auto option = std::find_if(options.begin(), options.end(), [&](const Option& candidate) {
      return name == "--" + candidate.name;
    });
    if (option == options.end()) {
      rest.push_back(argument);
    } else if (!option->parse(value)) {
      fmt::print(stderr, "{} does not take \"{}\": {}\n", name, value, option->help);
      return 2;
    }
  }
  std::vector<char*> pointers;
  for (std::string& argument : rest) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  benchmark::AddCustomContext("cpu_model", CpuModel());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 2;
  if (const absl::Status status = prepare(); !status.ok()) {
    fmt::print(stderr, "{}\n", status.ToString());
    return 1;
  }
  KeepingReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  std::fflush(stdout);
  if (!reporter.failed()) finish(reporter.times());
  benchmark::Shutdown();
  return reporter.failed() ? 1 : 0;
}

}  // namespace wavekv::bench
