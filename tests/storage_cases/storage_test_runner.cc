#include "tests/storage_cases/storage_test_runner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "api/engine_config.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/metrics.h"
#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/tensor_rows.h"
#include "tests/testing/model_sequence.h"
#include "wavekv/engine.h"

namespace wavekv::testing {
namespace {

// A sequence by the name that steps give it, with what it should hold.
struct NamedSequence {
  Sequence handle;
  ModelSequence expected;
};

AttendOptions OptionsOf(const v1::Query& query) {
  AttendOptions options;
  switch (query.retrieval_case()) {
    case v1::Query::kRetrievalRatio:
      options.retrieval = Budget::Ratio(query.retrieval_ratio());
      break;
    case v1::Query::kRetrievalTokens:
      options.retrieval = Budget::Tokens(static_cast<int64_t>(query.retrieval_tokens()));
      break;
    default:
      break;
  }
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

// Largest relative error over vectors of `dim`, absolute where the reference is zero.
double RelativeError(const std::vector<float>& got, const std::vector<double>& reference, int dim) {
  double worst = 0.0;
  for (size_t first = 0; first < got.size(); first += dim) {
    double difference2 = 0.0;
    double norm2 = 0.0;
    for (size_t i = first; i < first + dim; ++i) {
      difference2 += (got[i] - reference[i]) * (got[i] - reference[i]);
      norm2 += reference[i] * reference[i];
    }
    const double error = std::sqrt(norm2 > 0.0 ? difference2 / norm2 : difference2);
    if (!(error <= worst)) worst = error;  // a NaN counts, and stays
  }
  return worst;
}

// Counts to the last digit, measurements to six.
std::string Format(double number) {
  return number == std::floor(number) ? fmt::format("{:.0f}", number)
                                      : fmt::format("{:.6g}", number);
}

double LargestDifference(const std::vector<float>& got, const std::vector<double>& reference) {
  double worst = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == reference[i]) continue;  // both -infinity
    const double difference = std::abs(got[i] - reference[i]);
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}

class CaseRun {
 public:
  explicit CaseRun(std::unique_ptr<Engine> engine)
      : engine_(std::move(engine)), model_(engine_->options().model) {}

  StepResult Take(v1::Step step) {
    if (step.tenant().empty()) step.set_tenant("tenant");
    if (step.sequence().empty()) step.set_sequence("sequence");
    numbers_ = {};
    const absl::Status status = Do(step);
    CollectNumbers(step);

    StepResult result;
    const std::string expected = step.expect_status().empty() ? "OK" : step.expect_status();
    const std::string got = absl::StatusCodeToString(status.code());
    result.checks.push_back({"status", expected,
                             status.ok() ? got : got + ": " + std::string(status.message()),
                             expected == got});
    if (!step.expect_message().empty()) {
      const std::string message(status.message());
      result.checks.push_back({"message", "... " + step.expect_message() + " ...", message,
                               message.find(step.expect_message()) != std::string::npos});
    }
    for (const v1::Expectation& expectation : step.expect()) {
      result.checks.push_back(Check(expectation));
    }
    step.clear_expect();
    step.clear_expect_status();
    step.clear_expect_message();
    result.call = step.ShortDebugString();
    return result;
  }

 private:
  absl::Status Do(const v1::Step& step) {
    if (step.has_open_tenant()) return OpenTenant(step);
    if (!tenants_.contains(step.tenant())) {
      WAVEKV_ASSIGN_OR_RETURN(tenants_[step.tenant()], engine_->OpenTenant(step.tenant()));
    }
    Tenant& tenant = tenants_.at(step.tenant());
    switch (step.op_case()) {
      case v1::Step::kCloseTenant:
        return engine_->CloseTenant(tenant);
      case v1::Step::kSetQuota: {
        WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                                TenantQuotaFromProto(step.set_quota().quota()));
        return tenant.SetQuota(quota);
      }
      case v1::Step::kCreateSequence:
        return Create(step);
      default:
        break;
    }
    if (!sequences_.contains(step.sequence())) WAVEKV_RETURN_IF_ERROR(Create(step));
    NamedSequence& sequence = sequences_.at(step.sequence());
    switch (step.op_case()) {
      case v1::Step::kAppend:
        return Append(sequence, step.append());
      case v1::Step::kBuild:
        WAVEKV_RETURN_IF_ERROR(engine_->BuildSegments(sequence.handle));
        return engine_->WaitForBuilds(sequence.handle);
      case v1::Step::kQuery:
        return Query(sequence, step.query());
      case v1::Step::kFork:
        return Fork(tenant, sequence, step.fork());
      case v1::Step::kTruncate: {
        const auto length = static_cast<int64_t>(step.truncate().length());
        WAVEKV_RETURN_IF_ERROR(tenant.Truncate(sequence.handle, length));
        sequence.expected.Truncate(length);
        return absl::OkStatus();
      }
      case v1::Step::kRemove:
        return tenant.Remove(sequence.handle);
      default:
        return absl::InternalError("the runner does not know this operation");
    }
  }

  absl::Status OpenTenant(const v1::Step& step) {
    if (!step.open_tenant().has_quota()) {
      WAVEKV_ASSIGN_OR_RETURN(tenants_[step.tenant()], engine_->OpenTenant(step.tenant()));
      return absl::OkStatus();
    }
    WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                            TenantQuotaFromProto(step.open_tenant().quota()));
    WAVEKV_ASSIGN_OR_RETURN(tenants_[step.tenant()], engine_->OpenTenant(step.tenant(), quota));
    return absl::OkStatus();
  }

  absl::Status Create(const v1::Step& step) {
    WAVEKV_ASSIGN_OR_RETURN(const Sequence handle, tenants_.at(step.tenant()).CreateSequence());
    sequences_.insert_or_assign(step.sequence(), NamedSequence{handle, ModelSequence(model_)});
    return absl::OkStatus();
  }

  absl::Status Fork(Tenant& tenant, const NamedSequence& parent, const v1::Fork& fork) {
    std::optional<int64_t> prefix;
    if (fork.has_prefix_tokens()) prefix = static_cast<int64_t>(fork.prefix_tokens());
    WAVEKV_ASSIGN_OR_RETURN(const Sequence handle, tenant.Fork(parent.handle, prefix));
    NamedSequence child{handle, parent.expected};
    if (prefix.has_value()) child.expected.Truncate(*prefix);
    sequences_.insert_or_assign(fork.child(), std::move(child));
    return absl::OkStatus();
  }

  absl::Status Append(NamedSequence& sequence, const v1::Append& append) {
    const auto num_rows = static_cast<int64_t>(append.tokens());
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      if (append.has_layer() && static_cast<int>(append.layer()) != layer) continue;
      const int64_t first = sequence.expected.length(layer);
      const std::vector<float> keys =
          TensorRows(append.k(), layer, first, num_rows, model_.num_kv_heads, model_.head_dim_k);
      const std::vector<float> values =
          TensorRows(append.v(), layer, first, num_rows, model_.num_kv_heads, model_.head_dim_v);
      WAVEKV_RETURN_IF_ERROR(
          engine_->Append({{&sequence.handle, 1}, cu_seqlens}, layer,
                          TensorView::Dense(keys.data(), DType::kFloat32, num_rows,
                                            model_.num_kv_heads, model_.head_dim_k),
                          TensorView::Dense(values.data(), DType::kFloat32, num_rows,
                                            model_.num_kv_heads, model_.head_dim_v)));
      sequence.expected.Append(layer, keys, values);
    }
    return absl::OkStatus();
  }

  absl::Status Query(const NamedSequence& sequence, const v1::Query& query) {
    const int64_t num_rows = std::max<int64_t>(1, query.rows());
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
    WAVEKV_ASSIGN_OR_RETURN(
        const Plan plan, engine_->MakePlan({{&sequence.handle, 1}, cu_seqlens}, OptionsOf(query)));
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      const std::vector<float> queries =
          TensorRows(query.q(), layer, 0, num_rows, model_.num_q_heads, model_.head_dim_k);
      std::vector<float> output(num_rows * model_.num_q_heads * model_.head_dim_v);
      std::vector<float> lse(num_rows * model_.num_q_heads);
      WAVEKV_ASSIGN_OR_RETURN(
          const AttendStats stats,
          engine_->Attend(plan, layer,
                          TensorView::Dense(queries.data(), DType::kFloat32, num_rows,
                                            model_.num_q_heads, model_.head_dim_k),
                          MutableTensorView::Dense(output.data(), DType::kFloat32, num_rows,
                                                   model_.num_q_heads, model_.head_dim_v),
                          LseView::Dense(lse.data(), num_rows, model_.num_q_heads)));
      const NaiveAttentionState naive = sequence.expected.Attend(layer, queries, num_rows);
      numbers_.rel_err =
          std::max(numbers_.rel_err, RelativeError(output, naive.output, model_.head_dim_v));
      numbers_.lse_err = std::max(numbers_.lse_err, LargestDifference(lse, naive.lse));
      numbers_.estimated_mass += stats.estimated_mass_mean / model_.num_layers;
      numbers_.attend.tokens_visible += stats.tokens_visible;
      numbers_.attend.tokens_exact += stats.tokens_exact;
      numbers_.attend.bytes_dense += stats.bytes_dense;
      numbers_.attend.bytes_read += stats.bytes_read;
    }
    return absl::OkStatus();
  }

  void CollectNumbers(const v1::Step& step) {
    numbers_.engine = engine_->stats();
    if (const auto tenant = tenants_.find(step.tenant()); tenant != tenants_.end()) {
      if (const auto stats = tenant->second.stats(); stats.ok()) numbers_.tenant = *stats;
    }
    if (const auto sequence = sequences_.find(step.sequence()); sequence != sequences_.end()) {
      numbers_.sequence_length = sequence->second.handle.length();
    }
  }

  StepCheck Check(const v1::Expectation& expectation) const {
    const double got = FindMetric(expectation.metric())->value(numbers_);
    StepCheck check{expectation.metric(), "", Format(got), false};
    switch (expectation.bound_case()) {
      case v1::Expectation::kAtLeast:
        check.expected = "at least " + Format(expectation.at_least());
        check.passed = got >= expectation.at_least();
        break;
      case v1::Expectation::kAtMost:
        check.expected = "at most " + Format(expectation.at_most());
        check.passed = got <= expectation.at_most();
        break;
      default:
        check.expected = Format(expectation.equal_to());
        check.passed = got == expectation.equal_to();
    }
    return check;
  }

  const std::unique_ptr<Engine> engine_;
  const ModelSpec model_;
  std::map<std::string, Tenant> tenants_;
  std::map<std::string, NamedSequence> sequences_;
  StepNumbers numbers_;
};

}  // namespace

bool StepResult::passed() const {
  return std::all_of(checks.begin(), checks.end(), [](const StepCheck& c) { return c.passed; });
}

bool CaseResult::passed() const {
  return std::all_of(steps.begin(), steps.end(), [](const StepResult& s) { return s.passed(); });
}

std::string CaseResult::Failure() const {
  if (passed()) return "";
  std::string text = fmt::format("step {}: {}", steps.size(), steps.back().call);
  for (const StepCheck& check : steps.back().checks) {
    if (check.passed) continue;
    text += fmt::format("\n  {}: expected {}, got {}", check.name, check.expected, check.got);
  }
  return text;
}

absl::StatusOr<CaseResult> RunStorageTest(const v1::StorageTestCase& test_case) {
  WAVEKV_ASSIGN_OR_RETURN(const EngineOptions options, OptionsOf(test_case));
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Open(options));
  CaseRun run(std::move(engine));
  CaseResult result;
  for (const v1::Step& step : test_case.steps()) {
    result.steps.push_back(run.Take(step));
    if (!result.steps.back().passed()) break;
  }
  return result;
}

}  // namespace wavekv::testing
