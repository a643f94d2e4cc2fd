// Long documents with facts hidden in them, questions about the facts, and the answers.
#ifndef WAVEKV_EXAMPLES_TINYLM_EVAL_SET_H_
#define WAVEKV_EXAMPLES_TINYLM_EVAL_SET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace tinylm {

// A question continues its document on its own: fork the sequence for each.
struct Question {
  int document = 0;  // index into EvalSet::documents
  std::string task;
  std::vector<int32_t> prompt;
  std::vector<int32_t> answer;
};

struct EvalSet {
  std::vector<std::vector<int32_t>> documents;  // all of the same length
  std::vector<Question> questions;              // as they come in the file
};

// Checks every index: offsets, documents, tasks, ids within [0, vocab_size). Errors name the file
// and the tensor.
absl::StatusOr<EvalSet> ReadEvalSet(const std::string& path, int vocab_size);

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_EVAL_SET_H_
