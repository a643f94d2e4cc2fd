#include "tests/storage_cases/case_world.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "api/engine_config.h"
#include "api/engine_test_peer.h"
#include "fmt/format.h"
#include "google/protobuf/text_format.h"
#include "proto/metadata.pb.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/answer_quality.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {
namespace {

bool Expects(const v1::Step& step, std::initializer_list<const char*> metrics) {
  for (const v1::Expectation& expectation : step.expect()) {
    for (const char* metric : metrics) {
      if (expectation.metric() == metric) return true;
    }
  }
  return false;
}

bool UsesTenant(const v1::Step& step) {
  return !step.has_open_tenant() && !step.has_fault() && !step.has_parallel();
}

bool UsesSequence(const v1::Step& step) {
  return UsesTenant(step) && !step.has_close_tenant() && !step.has_set_quota() &&
         !step.has_create_sequence();
}

absl::StatusOr<v1::SequenceMetadata> Describe(const Engine& engine, const Sequence& sequence) {
  WAVEKV_ASSIGN_OR_RETURN(const std::string text, engine.Describe(sequence));
  v1::SequenceMetadata metadata;
  if (!google::protobuf::TextFormat::ParseFromString(text, &metadata)) {
    return absl::InternalError("Describe: not a SequenceMetadata");
  }
  return metadata;
}

template <typename Asked>
void SetRetrieval(const Asked& asked, AttendOptions& options) {
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
}

AttendOptions OptionsOf(const v1::Query& query) {
  AttendOptions options;
  SetRetrieval(query, options);
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

CaseWorld::CaseWorld(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), model_(engine_->options().model) {}

absl::Status CaseWorld::ResolveTenant(const v1::Step& step) {
  if (!UsesTenant(step) || tenants_.contains(TenantOf(step))) return absl::OkStatus();
  WAVEKV_ASSIGN_OR_RETURN(tenants_[TenantOf(step)], engine_->OpenTenant(TenantOf(step)));
  return absl::OkStatus();
}

absl::Status CaseWorld::ResolveSequence(const v1::Step& step) {
  if (!UsesSequence(step) || sequences_.contains(SequenceOf(step))) return absl::OkStatus();
  return Create(step);
}

absl::Status CaseWorld::CheckNames(const v1::Step& step) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (UsesTenant(step) && !tenants_.contains(TenantOf(step))) {
    return absl::NotFoundError("no tenant is called " + TenantOf(step));
  }
  if (UsesSequence(step) && !sequences_.contains(SequenceOf(step))) {
    return absl::NotFoundError("no sequence is called " + SequenceOf(step));
  }
  return absl::OkStatus();
}

absl::Status CaseWorld::Do(const v1::Step& step, bool in_group, StepNumbers& numbers,
                           std::vector<QueryAnswer>& answers) {
  WAVEKV_RETURN_IF_ERROR(CheckNames(step));
  switch (step.op_case()) {
    case v1::Step::kOpenTenant:
      return OpenTenant(step);
    case v1::Step::kCloseTenant:
      return engine_->CloseTenant(TenantNamed(step));
    case v1::Step::kSetQuota: {
      WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                              TenantQuotaFromProto(step.set_quota().quota()));
      return TenantNamed(step).SetQuota(quota);
    }
    case v1::Step::kCreateSequence:
      return Create(step);
    case v1::Step::kAppend:
      return Append(SequenceOf(step), step.append());
    case v1::Step::kBuild: {
      const Sequence sequence = Handle(SequenceOf(step));
      WAVEKV_RETURN_IF_ERROR(engine_->BuildSegments(sequence));
      return engine_->WaitForBuilds(sequence);
    }
    case v1::Step::kQuery:
      return Query(step, in_group, numbers, answers);
    case v1::Step::kRetrieve:
      return Retrieve(step, in_group, numbers);
    case v1::Step::kFork:
      return Fork(step);
    case v1::Step::kTruncate:
      return Truncate(step);
    case v1::Step::kRemove:
      return TenantNamed(step).Remove(Handle(SequenceOf(step)));
    case v1::Step::kFault: {
      const auto& refuse = step.fault().refuse_allocations();
      EngineTestPeer::FailAllocations(*engine_, static_cast<int64_t>(refuse.after()),
                                      static_cast<int64_t>(refuse.count()));
      return absl::OkStatus();
    }
    default:
      return absl::InternalError("the runner does not know this operation");
  }
}

absl::Status CaseWorld::OpenTenant(const v1::Step& step) {
  Tenant tenant;
  if (step.open_tenant().has_quota()) {
    WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                            TenantQuotaFromProto(step.open_tenant().quota()));
    WAVEKV_ASSIGN_OR_RETURN(tenant, engine_->OpenTenant(TenantOf(step), quota));
  } else {
    WAVEKV_ASSIGN_OR_RETURN(tenant, engine_->OpenTenant(TenantOf(step)));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  tenants_.insert_or_assign(TenantOf(step), tenant);
  return absl::OkStatus();
}

absl::Status CaseWorld::Create(const v1::Step& step) {
  WAVEKV_ASSIGN_OR_RETURN(const Sequence handle, TenantNamed(step).CreateSequence());
  NamedSequence named{handle, ModelSequence(model_), {}};
  named.lengths.assign(model_.num_layers, {0});
  const std::lock_guard<std::mutex> lock(mutex_);
  sequences_.insert_or_assign(SequenceOf(step), std::move(named));
  return absl::OkStatus();
}

absl::Status CaseWorld::Append(const std::string& name, const v1::Append& append) {
  if (append.has_layer()) return AppendToLayer(name, append, static_cast<int>(append.layer()));
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    WAVEKV_RETURN_IF_ERROR(AppendToLayer(name, append, layer));
  }
  return absl::OkStatus();
}

absl::Status CaseWorld::AppendToLayer(const std::string& name, const v1::Append& append,
                                      int layer) {
  const bool exists = layer < model_.num_layers;  // else the engine must say so
  const auto num_rows = static_cast<int64_t>(append.tokens());
  const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
  WantedRows wanted{layer, 0, num_rows, model_.num_kv_heads, model_.head_dim_k};
  Sequence handle;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    handle = Named(name).handle;
    if (exists) wanted.first_row = Named(name).expected.length(layer);
  }
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> keys, TensorRows(append.k(), wanted));
  wanted.head_dim = model_.head_dim_v;
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> values, TensorRows(append.v(), wanted));
  WAVEKV_RETURN_IF_ERROR(
      engine_->Append({{&handle, 1}, cu_seqlens}, layer,
                      TensorView::Dense(keys.data(), DType::kFloat32, num_rows, model_.num_kv_heads,
                                        model_.head_dim_k),
                      TensorView::Dense(values.data(), DType::kFloat32, num_rows,
                                        model_.num_kv_heads, model_.head_dim_v)));
  if (!exists) return absl::InternalError("the engine took rows of a layer that it does not have");
  const std::lock_guard<std::mutex> lock(mutex_);
  Named(name).expected.Append(layer, keys, values);
  Named(name).lengths[layer].push_back(wanted.first_row + num_rows);
  return absl::OkStatus();
}

absl::Status CaseWorld::Fork(const v1::Step& step) {
  std::optional<int64_t> prefix;
  if (step.fork().has_prefix_tokens()) prefix = static_cast<int64_t>(step.fork().prefix_tokens());
  WAVEKV_ASSIGN_OR_RETURN(const Sequence handle,
                          TenantNamed(step).Fork(Handle(SequenceOf(step)), prefix));
  const std::lock_guard<std::mutex> lock(mutex_);
  NamedSequence child = Named(SequenceOf(step));
  child.handle = handle;
  child.lengths.clear();
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    // Another thread's append may have stored tokens that are not followed here yet.
    if (prefix.has_value() && child.expected.length(layer) < *prefix) {
      return absl::InternalError(
          "fork.prefix_tokens: in a group it must not exceed what the parent had before");
    }
  }
  if (prefix.has_value()) child.expected.Truncate(*prefix);
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    child.lengths.push_back({child.expected.length(layer)});
  }
  sequences_.insert_or_assign(step.fork().child(), std::move(child));
  return absl::OkStatus();
}

absl::Status CaseWorld::Truncate(const v1::Step& step) {
  const auto length = static_cast<int64_t>(step.truncate().length());
  WAVEKV_RETURN_IF_ERROR(TenantNamed(step).Truncate(Handle(SequenceOf(step)), length));
  const std::lock_guard<std::mutex> lock(mutex_);
  Named(SequenceOf(step)).expected.Truncate(length);
  return absl::OkStatus();
}

absl::Status CaseWorld::Query(const v1::Step& step, bool in_group, StepNumbers& numbers,
                              std::vector<QueryAnswer>& answers) {
  const v1::Query& query = step.query();
  const std::string name = SequenceOf(step);
  const Sequence handle = Handle(name);
  const bool measures_retrieval = !in_group && Expects(step, {"recall", "mass"});
  if (measures_retrieval) WAVEKV_RETURN_IF_ERROR(engine_->WaitForBuilds(handle));
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
                      LseView::Dense(answer.lse.data(), num_rows, model_.num_q_heads)));
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
  numbers.retrieved_tokens += stats.tokens_retrieved;
  return answer;
}

absl::Status CaseWorld::Retrieve(const v1::Step& step, bool in_group, StepNumbers& numbers) {
  const v1::Retrieve& retrieve = step.retrieve();
  const Sequence handle = Handle(SequenceOf(step));
  if (!in_group) WAVEKV_RETURN_IF_ERROR(engine_->WaitForBuilds(handle));
  AttendOptions options;
  SetRetrieval(retrieve, options);
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
  WAVEKV_ASSIGN_OR_RETURN(const auto metadata, Describe(*engine_, sequence.handle));
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

void CaseWorld::StartHistory() {
  for (auto& [name, sequence] : sequences_) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      sequence.lengths[layer] = {sequence.expected.length(layer)};
    }
  }
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

void CaseWorld::Collect(const v1::Step& step, StepNumbers& numbers) const {
  numbers.engine = engine_->stats();
  if (Expects(step, {"free_bytes_are_zero"})) {
    numbers.free_bytes_are_zero = EngineTestPeer::FreeBytesAreZero(*engine_);
  }
  if (const auto tenant = tenants_.find(TenantOf(step)); tenant != tenants_.end()) {
    if (const auto stats = tenant->second.stats(); stats.ok()) numbers.tenant = *stats;
  }
  const auto sequence = sequences_.find(SequenceOf(step));
  if (sequence == sequences_.end()) return;
  numbers.sequence_length = sequence->second.handle.length();
  if (!Expects(step, {"sealed_kv_bytes", "sealed_index_bytes"})) return;
  const auto metadata = Describe(*engine_, sequence->second.handle);
  if (!metadata.ok()) return;
  for (const v1::LayerMetadata& layer : metadata->layers()) {
    for (const v1::SegmentMetadata& segment : layer.segments()) {
      numbers.sealed_kv_bytes += static_cast<int64_t>(segment.bytes() - segment.index_bytes());
      numbers.sealed_index_bytes += static_cast<int64_t>(segment.index_bytes());
    }
  }
}

Tenant CaseWorld::TenantNamed(const v1::Step& step) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return tenants_.at(TenantOf(step));
}

Sequence CaseWorld::Handle(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return sequences_.at(name).handle;
}

}  // namespace wavekv::testing
