// What the demo prints.
#ifndef WAVEKV_EXAMPLES_TINYLM_REPORT_H_
#define WAVEKV_EXAMPLES_TINYLM_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/tinylm/needle_eval.h"
#include "examples/tinylm/tokenizer.h"

namespace tinylm {

// One question in words, with the right answer and the two given ones.
absl::StatusOr<std::string> DescribeQuestion(const QuestionResult& result,
                                             const Tokenizer& tokenizer);

// One line per task and one for all of them.
std::string ResultTable(int64_t context, const std::vector<std::string>& tasks,
                        const std::vector<NeedleResult>& results);

// "demo context=.. prompts=.. ...", for programs.
std::string ResultLine(int64_t context, const NeedleResult& result);

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_REPORT_H_
