#include "examples/tinylm/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

absl::StatusOr<std::string> OneLine(absl::Span<const int32_t> tokens, const Tokenizer& tokenizer) {
  TINYLM_ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(tokens));
  return absl::StrReplaceAll(absl::StripTrailingAsciiWhitespace(text), {{"\n", "\\n"}});
}

std::string TableLine(absl::string_view task, int64_t context, const NeedleResult& result) {
  return absl::StrFormat(
      "%-6s %8d %8d %8.3f %7.3f %8.0f%% %7.2f%% %8.2f%% %8.4f %7.3f %9.2f %7.2f\n", task, context,
      result.questions.size(), result.dense_accuracy(), result.wave_accuracy(),
      100 * result.agreement(), 100 * result.totals.exact_tokens_share(),
      100 * result.totals.bytes_share(), result.errors.mean(), result.errors.worst,
      Median(result.dense_step_ms), Median(result.wave_step_ms));
}

}  // namespace

absl::StatusOr<std::string> DescribeQuestion(const QuestionResult& result,
                                             const Tokenizer& tokenizer) {
  TINYLM_ASSIGN_OR_RETURN(const std::string prompt, OneLine(result.question->prompt, tokenizer));
  TINYLM_ASSIGN_OR_RETURN(const std::string right, OneLine(result.question->answer, tokenizer));
  TINYLM_ASSIGN_OR_RETURN(const std::string dense, OneLine(result.dense, tokenizer));
  TINYLM_ASSIGN_OR_RETURN(const std::string wave, OneLine(result.wave, tokenizer));
  return absl::StrFormat("%s: \"%s ...\"\n  hidden   %s\n  dense    %s\n  wavekv   %s\n",
                         result.question->task, prompt, right, dense, wave);
}

std::string ResultTable(int64_t context, const std::vector<std::string>& tasks,
                        const std::vector<NeedleResult>& results) {
  std::string table =
      "                             accuracy       same   tokens     bytes      output error"
      "      ms per token\n"
      "task    context  prompts    dense  wavekv  answers    exact   touched     mean   worst"
      "     dense  wavekv\n";
  NeedleResult all;
  for (size_t i = 0; i < results.size(); ++i) {
    absl::StrAppend(&table, TableLine(tasks[i], context, results[i]));
    all.Add(results[i]);
  }
  if (results.size() > 1) absl::StrAppend(&table, TableLine("all", context, all));
  return table;
}

std::string ResultLine(int64_t context, const NeedleResult& result) {
  return absl::StrFormat(
      "demo context=%d prompts=%d dense_acc=%.3f wave_acc=%.3f agree=%.3f exact_tokens_pct=%.2f "
      "bytes_pct=%.2f rel_err_mean=%.4f",
      context, result.questions.size(), result.dense_accuracy(), result.wave_accuracy(),
      result.agreement(), 100 * result.totals.exact_tokens_share(),
      100 * result.totals.bytes_share(), result.errors.mean());
}

}  // namespace tinylm
