// Prints what an evaluation measured.
#ifndef WAVEKV_TOOLS_TRACE_EVAL_REPORT_H_
#define WAVEKV_TOOLS_TRACE_EVAL_REPORT_H_

#include <string>
#include <vector>

#include "tools/trace/eval_arguments.h"
#include "tools/trace/trace_eval.h"

namespace wavekv {

// One head with one budget.
struct EvalRow {
  std::string file;
  int64_t layer = 0;
  int64_t kv_head = 0;
  size_t budget = 0;  // in the arguments' list
  TraceSummary summary;
};

struct EvalReport {
  std::vector<EvalRow> rows;
  std::vector<TraceSummary> budgets;  // over all samples of all heads and files
};

// What a budget is, in a few words.
std::string BudgetTitle(const EvalArguments& arguments, size_t budget);

// In the format that the arguments ask for; ends with a newline.
std::string FormatReport(const EvalArguments& arguments, const EvalReport& report);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_EVAL_REPORT_H_
