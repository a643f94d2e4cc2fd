// What every benchmark program does: --json, named arguments of its own, and last lines for scripts
// made of the results.
#ifndef WAVEKV_BENCH_BENCH_MAIN_H_
#define WAVEKV_BENCH_BENCH_MAIN_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace wavekv::bench {

// Real milliseconds of an iteration by the benchmark's name, its median where it was repeated.
using Milliseconds = std::map<std::string, double>;

// A "--name=VALUE" option; parse is false for a value that it does not take.
struct Option {
  std::string name;
  std::string help;
  std::function<bool(const std::string& value)> parse;
};

// An option that takes whole numbers of [low, high], comma-separated, into `numbers`.
Option NumbersOption(std::string name, std::string help, int64_t low, int64_t high,
                     std::vector<int64_t>* numbers);

// An option that takes any text.
Option TextOption(std::string name, std::string help, std::string* text);

// Reads the options, lets `prepare` register benchmarks, runs them and calls `finish` with their
// times. --instructions=NAME keeps the CPU's kernels to an instruction set, --json=FILE writes
// Google Benchmark's JSON; its own --benchmark_* flags work too. Returns main()'s result: 1 when
// preparation or a benchmark failed, 2 for arguments that are not understood.
int BenchMain(int argc, char** argv, const std::vector<Option>& options,
              const std::function<absl::Status()>& prepare,
              const std::function<void(const Milliseconds&)>& finish);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_BENCH_MAIN_H_
