// Random questions to an engine, and whether it answered them as the model does.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_QUESTIONS_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_QUESTIONS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/testing/model_sequence.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// What one Attend or Retrieve call asks: row counts, queries [num_rows, num_q_heads, head_dim_k]
// and options.
struct Question {
  int layer = 0;
  std::vector<int32_t> cu_seqlens;
  std::vector<float> queries;
  AttendOptions options;

  bool is_exact() const {
    return options.target_error == 0.0 && options.retrieval.is_ratio() &&
           options.retrieval.ratio() == 1.0;
  }
  int64_t num_rows() const { return cu_seqlens.back(); }
};

struct Answer {
  std::vector<float> queries;  // as they were given, rounded to a drawn dtype
  std::vector<float> output;
  std::vector<float> lse;  // to base e
  DType output_dtype = DType::kFloat32;
  AttendStats stats;
};

// Half of the questions are exact.
Question DrawQuestion(Random& random, const ModelSpec& model, int64_t num_sequences);

std::string ToString(const Question& question);

// Attends with drawn dtypes and strides. INTERNAL when something was written beside the output.
absl::StatusOr<Answer> Ask(Engine& engine, Random& random, absl::Span<const Sequence> sequences,
                           const Question& question);

// INTERNAL saying what differs. models[i]: what sequence i holds. An exact answer must be the
// model's; an estimated one must at least lie between the values it averages, and a lower bound
// below the truth, as far as the rounding of stored centroids lets it.
absl::Status CheckAnswer(const Question& question, const Answer& answer,
                         const EngineOptions& options,
                         const std::vector<const ModelSequence*>& models);

// [begin, end) of the sealed segments of each sequence, in the layer of the question.
using SealedRuns = std::vector<std::vector<std::pair<int64_t, int64_t>>>;

// INTERNAL saying what differs: positions must be sealed, visible, different, and no more clusters
// than it takes to use up the budget.
absl::Status CheckRetrieved(const Question& question, const std::vector<RetrievedTokens>& retrieved,
                            const ModelSpec& model, const std::vector<const ModelSequence*>& models,
                            const SealedRuns& sealed);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_QUESTIONS_H_
