// The steps of a CaseWorld that ask: queries, retrieval, and what their answers are worth.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/answer_quality.h"
#include "tests/storage_cases/case_world.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/step_checks.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {
namespace {

template <typename Asked>
void SetBudgets(const Asked& asked, AttendOptions& options) {
  switch (asked.retrieval_case()) {
    case Asked::kRetrievalRatio:
      options.retrieval = Budget::Ratio(asked.retrieval_ratio());
      break;
    case Asked::kRetrievalTokens:
      options.retrieval = Budget::Tokens(static_cast<int64_t>(asked.retrieval_tokens()));
      break;
    default:
      break;
  }
  switch (asked.sketch_case()) {
    case Asked::kSketchRatio:
      options.sketch = Budget::Ratio(asked.sketch_ratio());
      break;
    case Asked::kSketchTokens:
      options.sketch = Budget::Tokens(static_cast<int64_t>(asked.sketch_tokens()));
      break;
    default:
      break;
  }
  if (asked.has_open_ratio()) options.open = Budget::Ratio(asked.open_ratio());
  options.target_error = asked.target_error();
  // Numbers that are no enumerator become 0, which the engine refuses.
  if (asked.zones() != v1::ZONES_UNSPECIFIED) {
    const bool known = v1::Zones_IsValid(asked.zones());
    options.zones = known ? static_cast<Zones>(asked.zones()) : Zones{0};
  }
}

AttendOptions OptionsOf(const v1::Query& query) {
  AttendOptions options;
  SetBudgets(query, options);
  options.exact_below_tokens = query.exact_below_tokens();
  switch (query.estimation_case()) {
    case v1::Query::kEstimationRatio:
      options.estimation = Budget::Ratio(query.estimation_ratio());
      break;
    case v1::Query::kEstimationTokens:
      options.estimation = Budget::Tokens(static_cast<int64_t>(query.estimation_tokens()));
      break;
    default:
      break;
  }
  if (query.has_miss_deadline_ms()) {
    options.miss_deadline = absl::Milliseconds(query.miss_deadline_ms());
  }
  return options;
}

template <typename Asked>
int64_t RowsOf(const Asked& asked) {
  return std::max<int64_t>(1, asked.rows());
}

template <typename Asked>
int64_t RecallTokensOf(const Asked& asked) {
  return asked.has_recall_tokens() ? static_cast<int64_t>(asked.recall_tokens()) : 100;
}

}  // namespace

absl::Status CaseWorld::Query(const v1::Step& step, bool in_group, StepNumbers& numbers,
                              std::vector<QueryAnswer>& answers) {
  const v1::Query& query = step.query();
  const std::string name = SequenceOf(step);
  const Sequence handle = Handle(name);
  const bool measures_retrieval = !in_group && Expects(step, {"recall", "mass"});
  if (measures_retrieval) AwaitBuilds(handle);
  const int32_t cu_seqlens[] = {0, static_cast<int32_t>(RowsOf(query))};
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan,
                          engine_->MakePlan({{&handle, 1}, cu_seqlens}, OptionsOf(query)));
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    WAVEKV_ASSIGN_OR_RETURN(QueryAnswer answer, QueryLayer(plan, name, query, layer, numbers));
    if (measures_retrieval) {
      WAVEKV_ASSIGN_OR_RETURN(
          const auto retrieved,
          engine_->Retrieve(
              plan, layer,
              TensorView::Dense(answer.queries.data(), DType::kFloat32, answer.num_rows,
                                model_.num_q_heads, model_.head_dim_k)));
      WAVEKV_RETURN_IF_ERROR(MeasureRetrieval(name, layer, answer.num_rows, answer.queries,
                                              RecallTokensOf(query), retrieved, numbers));
    }
    answers.push_back(std::move(answer));
  }
  return absl::OkStatus();
}

absl::StatusOr<QueryAnswer> CaseWorld::QueryLayer(const Plan& plan, const std::string& name,
                                                  const v1::Query& query, int layer,
                                                  StepNumbers& numbers) {
  const int64_t num_rows = RowsOf(query);
  QueryAnswer answer;
  answer.sequence = name;
  answer.layer = layer;
  answer.num_rows = num_rows;
  WAVEKV_ASSIGN_OR_RETURN(answer.queries, Queries(query.q(), layer, num_rows));
  answer.output.resize(num_rows * model_.num_q_heads * model_.head_dim_v);
  answer.lse.resize(num_rows * model_.num_q_heads);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    answer.first_length = Named(name).lengths[layer].size() - 1;
  }
  WAVEKV_ASSIGN_OR_RETURN(
      const AttendStats stats,
      engine_->Attend(plan, layer,
                      TensorView::Dense(answer.queries.data(), DType::kFloat32, num_rows,
                                        model_.num_q_heads, model_.head_dim_k),
                      MutableTensorView::Dense(answer.output.data(), DType::kFloat32, num_rows,
                                               model_.num_q_heads, model_.head_dim_v),
                      PerHeadView::Dense(answer.lse.data(), num_rows, model_.num_q_heads)));
  {
    // One more than is followed here: an append that has stored its tokens already may be about to
    // say so.
    const std::lock_guard<std::mutex> lock(mutex_);
    answer.last_length = Named(name).lengths[layer].size();
  }
  numbers.estimated_masses.Add(stats.estimated_mass_mean);
  numbers.attend.tokens_visible += stats.tokens_visible;
  numbers.attend.tokens_exact += stats.tokens_exact;
  numbers.attend.bytes_dense += stats.bytes_dense;
  numbers.attend.bytes_read += stats.bytes_read;
  numbers.attend.blocks_missed += stats.blocks_missed;
  numbers.attend.tokens_degraded += stats.tokens_degraded;
  numbers.retrieved_tokens += stats.tokens_retrieved;
  return answer;
}

absl::Status CaseWorld::Retrieve(const v1::Step& step, bool in_group, StepNumbers& numbers) {
  const v1::Retrieve& retrieve = step.retrieve();
  const Sequence handle = Handle(SequenceOf(step));
  if (!in_group) AwaitBuilds(handle);
  AttendOptions options;
  SetBudgets(retrieve, options);
  const int64_t num_rows = RowsOf(retrieve);
  const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine_->MakePlan({{&handle, 1}, cu_seqlens}, options));
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> queries,
                            Queries(retrieve.q(), layer, num_rows));
    WAVEKV_ASSIGN_OR_RETURN(
        const auto retrieved,
        engine_->Retrieve(plan, layer,
                          TensorView::Dense(queries.data(), DType::kFloat32, num_rows,
                                            model_.num_q_heads, model_.head_dim_k)));
    for (const RetrievedTokens& tokens : retrieved) {
      numbers.retrieved_tokens += static_cast<int64_t>(tokens.positions.size());
    }
    if (in_group) continue;
    WAVEKV_RETURN_IF_ERROR(MeasureRetrieval(SequenceOf(step), layer, num_rows, queries,
                                            RecallTokensOf(retrieve), retrieved, numbers));
  }
  return absl::OkStatus();
}

absl::Status CaseWorld::MeasureRetrieval(const std::string& name, int layer, int64_t num_rows,
                                         const std::vector<float>& queries, int64_t recall_tokens,
                                         const std::vector<RetrievedTokens>& retrieved,
                                         StepNumbers& numbers) const {
  const NamedSequence& sequence = sequences_.at(name);
  WAVEKV_ASSIGN_OR_RETURN(const auto metadata, Describe(sequence.handle));
  const int64_t length = sequence.expected.length(layer);
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t visible_end = std::max<int64_t>(0, length - num_rows + 1 + row);
    // A segment that the row does not see whole is read exactly.
    std::vector<bool> indexed(length, false);
    for (const v1::SegmentMetadata& segment : metadata.layers(layer).segments()) {
      const auto end = static_cast<int64_t>(segment.token_end());
      if (segment.state() != v1::SegmentMetadata::SEALED || end > visible_end) continue;
      std::fill(indexed.begin() + static_cast<int64_t>(segment.token_begin()),
                indexed.begin() + end, true);
    }
    for (int head = 0; head < model_.num_q_heads; ++head) {
      const auto& tokens = retrieved[row * model_.num_kv_heads + head / model_.gqa_group_size()];
      std::vector<bool> is_retrieved(length, false);
      for (const int64_t position : tokens.positions) {
        if (position < 0 || position >= length || !indexed[position] || is_retrieved[position]) {
          return absl::InternalError(fmt::format(
              "Retrieve, layer {}, row {}: position {} is no sealed token or comes twice", layer,
              row, position));
        }
        is_retrieved[position] = true;
      }
      const float* query = queries.data() + (row * model_.num_q_heads + head) * model_.head_dim_k;
      AddRetrievalQuality(sequence.expected.Weights(layer, head, query, visible_end), indexed,
                          is_retrieved, recall_tokens, numbers.recalls, numbers.masses);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> CaseWorld::Queries(const v1::TensorSource& source, int layer,
                                                      int64_t num_rows) const {
  return TensorRows(
      source, {layer, 0, num_rows, model_.num_q_heads, model_.head_dim_k, model_.gqa_group_size()});
}

void CaseWorld::Compare(const std::vector<QueryAnswer>& answers, StepNumbers& numbers) const {
  for (const QueryAnswer& answer : answers) {
    const NamedSequence& sequence = sequences_.at(answer.sequence);
    const std::vector<int64_t>& lengths = sequence.lengths[answer.layer];
    std::vector<double> best;
    double best_lse_err = 0.0;
    for (size_t i = answer.first_length; i <= answer.last_length && i < lengths.size(); ++i) {
      ModelSequence then = sequence.expected;
      then.Truncate(lengths[i]);  // of the other layers nothing is asked
      const NaiveAttentionState naive = then.Attend(answer.layer, answer.queries, answer.num_rows);
      std::vector<double> errors = RelativeErrors(answer.output, naive.output, model_.head_dim_v);
      if (!best.empty() && !(Largest(errors) < Largest(best))) continue;
      best = std::move(errors);
      best_lse_err = LargestDifference(answer.lse, naive.lse);
    }
    for (const double error : best) numbers.rel_errs.Add(error);
    numbers.rel_err = Largest({numbers.rel_err, Largest(best)});
    numbers.lse_err = Largest({numbers.lse_err, best_lse_err});
  }
}

void CaseWorld::AwaitBuilds(const Sequence& sequence) {
  engine_->WaitForBuilds(sequence).IgnoreError();  // tokens that could not be sealed are exact
}

}  // namespace wavekv::testing
