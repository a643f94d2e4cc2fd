// Asks a model for facts hidden in long documents, once with dense attention and once with wavekv's
// zones.
#ifndef WAVEKV_EXAMPLES_TINYLM_NEEDLE_EVAL_H_
#define WAVEKV_EXAMPLES_TINYLM_NEEDLE_EVAL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/tinylm/engine_attention.h"
#include "examples/tinylm/error_meter.h"
#include "examples/tinylm/eval_set.h"
#include "examples/tinylm/model.h"
#include "wavekv/engine.h"
#include "wavekv/options.h"

namespace tinylm {

struct NeedleEvalOptions {
  std::vector<std::string> tasks;
  int questions_per_task = 0;  // the first ones of the file; fewer if it has fewer
  wavekv::AttendOptions wave;  // the zones that are compared with dense attention
};

// Greedy answers, as long as the right one. Comparing a greedy answer with the right one is the
// same as asking, token by token, for the right one's argmax given what comes before it.
struct QuestionResult {
  const Question* question = nullptr;  // in the EvalSet
  std::vector<int32_t> dense;
  std::vector<int32_t> wave;

  bool dense_correct() const { return dense == question->answer; }
  bool wave_correct() const { return wave == question->answer; }
  bool agree() const { return dense == wave; }
};

// Of one task, or of several taken together.
struct NeedleResult {
  std::vector<QuestionResult> questions;
  AttendTotals totals;                // of the wave's decode steps
  OutputErrors errors;                // of the same steps
  std::vector<double> dense_step_ms;  // of each decode step
  std::vector<double> wave_step_ms;

  void Add(const NeedleResult& other);
  double dense_accuracy() const;
  double wave_accuracy() const;
  double agreement() const;
};

// Reads each document that is asked about once, densely, and forks its sequence for each question.
// A question's tokens come one by one: the attention that answers also reads the question. Results
// are in the order of options.tasks. INVALID_ARGUMENT for a task the set does not have.
absl::StatusOr<std::vector<NeedleResult>> RunNeedleEval(const EvalSet& set,
                                                        const NeedleEvalOptions& options,
                                                        Model* model, wavekv::Engine* engine);

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_NEEDLE_EVAL_H_
