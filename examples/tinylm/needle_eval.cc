#include "examples/tinylm/needle_eval.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "examples/tinylm/decoder.h"
#include "examples/tinylm/status_macros.h"
#include "tools/progress_bar.h"

namespace tinylm {
namespace {

using wavekv::AttendOptions;

template <typename Predicate>
double Fraction(const std::vector<QuestionResult>& questions, Predicate predicate) {
  if (questions.empty()) return 0.0;
  const auto count = std::count_if(questions.begin(), questions.end(), predicate);
  return static_cast<double>(count) / static_cast<double>(questions.size());
}

// Steps through the question and then through the answer as the model gives it.
absl::StatusOr<std::vector<int32_t>> AnswerGreedily(const Question& question, Decoder* decoder,
                                                    std::vector<double>* step_ms) {
  const auto step = [&](int32_t token) {
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status = decoder->Step(token);
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start;
    if (step_ms != nullptr) step_ms->push_back(elapsed.count());
    return status;
  };
  for (const int32_t token : question.prompt) TINYLM_RETURN_IF_ERROR(step(token));
  std::vector<int32_t> answer = {decoder->next_token()};
  while (answer.size() < question.answer.size()) {
    TINYLM_RETURN_IF_ERROR(step(answer.back()));
    answer.push_back(decoder->next_token());
  }
  return answer;
}

// A document in the engine, to be asked about.
class ReadDocument {
 public:
  ReadDocument(Model* model, wavekv::Engine* engine, wavekv::Tenant tenant,
               wavekv::Sequence sequence)
      : model_(model),
        engine_(engine),
        tenant_(std::move(tenant)),
        sequence_(std::move(sequence)) {}

  absl::Status Read(absl::Span<const int32_t> tokens, const std::string& label) {
    EngineAttention dense(engine_, sequence_, AttendOptions::Exact());
    Decoder decoder(model_, &dense);
    wavekv::ProgressBar bar(label, static_cast<int64_t>(tokens.size()), "tokens");
    TINYLM_RETURN_IF_ERROR(decoder.Read(tokens, [&](int64_t count) { bar.Update(count); }));
    history_ = decoder.history();
    // Every question then meets the same segments, however fast the builds were.
    TINYLM_RETURN_IF_ERROR(engine_->BuildSegments(sequence_));
    return engine_->WaitForBuilds(sequence_);
  }

  // Three passes, so that measuring errors does not disturb the times.
  absl::Status Ask(const Question& question, const AttendOptions& wave, NeedleResult* result) {
    const auto with_engine = [&](const AttendOptions& options, std::vector<double>* step_ms) {
      return OnFork([&](const wavekv::Sequence& fork) -> absl::StatusOr<std::vector<int32_t>> {
        EngineAttention attention(engine_, fork, options);
        Decoder decoder(model_, &attention, history_);
        return AnswerGreedily(question, &decoder, step_ms);
      });
    };
    QuestionResult answers;
    answers.question = &question;
    TINYLM_ASSIGN_OR_RETURN(answers.dense,
                            with_engine(AttendOptions::Exact(), &result->dense_step_ms));
    TINYLM_ASSIGN_OR_RETURN(answers.wave, with_engine(wave, &result->wave_step_ms));
    const auto measured =
        OnFork([&](const wavekv::Sequence& fork) -> absl::StatusOr<std::vector<int32_t>> {
          ErrorMeter meter(engine_, fork, wave);
          Decoder decoder(model_, &meter, history_);
          auto answer = AnswerGreedily(question, &decoder, nullptr);
          result->totals.Add(meter.totals());
          result->errors.Add(meter.errors());
          return answer;
        });
    TINYLM_RETURN_IF_ERROR(measured.status());
    result->questions.push_back(std::move(answers));
    return absl::OkStatus();
  }

  absl::Status Remove() { return tenant_.Remove(sequence_); }

 private:
  template <typename Work>
  absl::StatusOr<std::vector<int32_t>> OnFork(Work work) {
    TINYLM_ASSIGN_OR_RETURN(const wavekv::Sequence fork, tenant_.Fork(sequence_));
    auto result = work(fork);
    TINYLM_RETURN_IF_ERROR(tenant_.Remove(fork));
    return result;
  }

  Model* model_;
  wavekv::Engine* engine_;
  wavekv::Tenant tenant_;
  wavekv::Sequence sequence_;
  TokenHistory history_;
};

// The questions that are asked, by document: (index of the task, question).
using Plan = std::map<int, std::vector<std::pair<size_t, const Question*>>>;

absl::StatusOr<Plan> PlanQuestions(const EvalSet& set, const NeedleEvalOptions& options) {
  Plan plan;
  for (size_t task = 0; task < options.tasks.size(); ++task) {
    int count = 0;
    for (const Question& question : set.questions) {
      if (question.task != options.tasks[task] || count == options.questions_per_task) continue;
      plan[question.document].emplace_back(task, &question);
      ++count;
    }
    if (count > 0) continue;
    std::set<std::string> known;
    for (const Question& question : set.questions) known.insert(question.task);
    return absl::InvalidArgumentError(absl::StrCat(
        "task: expected one of ", absl::StrJoin(known, ", "), ", got ", options.tasks[task]));
  }
  return plan;
}

}  // namespace

void NeedleResult::Add(const NeedleResult& other) {
  questions.insert(questions.end(), other.questions.begin(), other.questions.end());
  totals.Add(other.totals);
  errors.Add(other.errors);
  dense_step_ms.insert(dense_step_ms.end(), other.dense_step_ms.begin(), other.dense_step_ms.end());
  wave_step_ms.insert(wave_step_ms.end(), other.wave_step_ms.begin(), other.wave_step_ms.end());
}

double NeedleResult::dense_accuracy() const {
  return Fraction(questions, [](const QuestionResult& result) { return result.dense_correct(); });
}

double NeedleResult::wave_accuracy() const {
  return Fraction(questions, [](const QuestionResult& result) { return result.wave_correct(); });
}

double NeedleResult::agreement() const {
  return Fraction(questions, [](const QuestionResult& result) { return result.agree(); });
}

absl::StatusOr<std::vector<NeedleResult>> RunNeedleEval(const EvalSet& set,
                                                        const NeedleEvalOptions& options,
                                                        Model* model, wavekv::Engine* engine) {
  TINYLM_ASSIGN_OR_RETURN(const Plan plan, PlanQuestions(set, options));
  TINYLM_ASSIGN_OR_RETURN(wavekv::Tenant tenant, engine->OpenTenant("needle eval"));
  std::vector<NeedleResult> results(options.tasks.size());
  int num_read = 0;
  for (const auto& [document_index, questions] : plan) {
    TINYLM_ASSIGN_OR_RETURN(wavekv::Sequence sequence, tenant.CreateSequence());
    ReadDocument document(model, engine, tenant, std::move(sequence));
    TINYLM_RETURN_IF_ERROR(
        document.Read(set.documents[document_index],
                      absl::StrCat("reading document ", ++num_read, " of ", plan.size())));
    wavekv::ProgressBar bar("answering", static_cast<int64_t>(questions.size()), "questions");
    int64_t num_answered = 0;
    for (const auto& [task, question] : questions) {
      TINYLM_RETURN_IF_ERROR(document.Ask(*question, options.wave, &results[task]));
      bar.Update(++num_answered);
    }
    TINYLM_RETURN_IF_ERROR(document.Remove());
  }
  TINYLM_RETURN_IF_ERROR(engine->CloseTenant(tenant));
  return results;
}

}  // namespace tinylm
