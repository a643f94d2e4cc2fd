// The command line of wavekv-trace-eval.
#ifndef WAVEKV_TOOLS_TRACE_EVAL_ARGUMENTS_H_
#define WAVEKV_TOOLS_TRACE_EVAL_ARGUMENTS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/trace/trace_eval.h"

namespace wavekv {

struct EvalArguments {
  enum class Format { kTable, kCsv, kJson };

  bool help = false;
  std::vector<std::string> files;
  Format format = Format::kTable;
  TraceEvalOptions eval;  // of every head; without queries and on_progress
  size_t default_budget =
      0;  // in eval.budgets: the engine's default options (only kJson has it always)
  std::string query_type;  // empty: all
  std::string plot;        // file for a picture of the first budget's errors; empty: none
  std::string accesses;    // file for what the first budget reads; empty: none
  // First and last of each range; empty: all.
  std::vector<std::pair<int64_t, int64_t>> layers;
  std::vector<std::pair<int64_t, int64_t>> kv_heads;
};

// INVALID_ARGUMENT naming the option with expected and got.
absl::StatusOr<EvalArguments> ParseEvalArguments(int argc, const char* const* argv);

// What --help prints.
const char* EvalHelpText();

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_EVAL_ARGUMENTS_H_
