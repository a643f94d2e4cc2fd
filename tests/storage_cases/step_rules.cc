#include "tests/storage_cases/step_rules.h"

#include <algorithm>
#include <limits>
#include <string>

#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/metrics.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {
namespace {

using v1::TensorSource;

// Above this a case is no test of one behaviour any more, and the naive reference takes minutes.
constexpr uint64_t kTokensMax = 100000;

absl::Status CheckAtMost(const std::string& field, uint64_t got, uint64_t max) {
  if (got <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} must be at most {}, got {}", field, max, got));
}

absl::Status CheckSource(const std::string& field, const TensorSource& source,
                         const WantedRows& wanted) {
  switch (source.kind_case()) {
    case TensorSource::KIND_NOT_SET:
      return absl::InvalidArgumentError(
          fmt::format("{} must be gaussian, clustered, constant, haystack, needle, literal or "
                      "file, got nothing",
                      field));
    case TensorSource::kClustered:
      if (source.clustered().clusters() > 0) break;
      return absl::InvalidArgumentError(
          fmt::format("{}.clustered.clusters must be at least 1, got 0", field));
    case TensorSource::kHaystack:
      if (field != "append.k") {
        return absl::InvalidArgumentError(
            fmt::format("{}: a haystack is for append.k alone", field));
      }
      break;
    case TensorSource::kNeedle:
      if (field != "query.q" && field != "retrieve.q") {
        return absl::InvalidArgumentError(fmt::format(
            "{}: a needle is for queries; keys that carry it are in a haystack", field));
      }
      break;
    default:
      break;
  }
  const absl::Status given = CheckGivenRows(source, wanted);
  if (given.ok()) return given;
  return absl::Status(given.code(), fmt::format("{}.{}", field, std::string(given.message())));
}

absl::Status CheckAppend(const v1::Append& append, const ModelSpec& model) {
  WAVEKV_RETURN_IF_ERROR(CheckAtMost("append.tokens", append.tokens(), kTokensMax));
  // What the engine answers for a layer that it lacks is a case of its own.
  WAVEKV_RETURN_IF_ERROR(
      CheckAtMost("append.layer", append.layer(), std::numeric_limits<int32_t>::max()));
  WantedRows wanted{0, 0, static_cast<int64_t>(append.tokens()), model.num_kv_heads,
                    model.head_dim_k};
  WAVEKV_RETURN_IF_ERROR(CheckSource("append.k", append.k(), wanted));
  wanted.head_dim = model.head_dim_v;
  return CheckSource("append.v", append.v(), wanted);
}

// A query or a retrieve.
template <typename Asked>
absl::Status CheckAsked(const std::string& field, const Asked& asked, const ModelSpec& model) {
  WAVEKV_RETURN_IF_ERROR(CheckAtMost(field + ".rows", asked.rows(), kTokensMax));
  if (asked.has_recall_tokens() && asked.recall_tokens() == 0) {
    return absl::InvalidArgumentError(field + ".recall_tokens must be at least 1, got 0");
  }
  WAVEKV_RETURN_IF_ERROR(CheckAtMost(field + ".recall_tokens", asked.recall_tokens(), kTokensMax));
  return CheckSource(field + ".q", asked.q(),
                     {0, 0, std::max<int64_t>(1, asked.rows()), model.num_q_heads, model.head_dim_k,
                      model.gqa_group_size()});
}

absl::Status CheckExpectation(const v1::Step& step, const v1::Expectation& expectation,
                              bool in_group) {
  const Metric* const metric = FindMetric(expectation.metric());
  if (metric == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("metric must be one of {}, got \"{}\"", MetricNames(), expectation.metric()));
  }
  const auto& statuses = step.expect_status();
  const bool may_succeed =
      statuses.empty() || std::find(statuses.begin(), statuses.end(), "OK") != statuses.end();
  if (metric->of == MetricOf::kQuery && !(step.has_query() && may_succeed)) {
    return absl::InvalidArgumentError(fmt::format(
        "metric {} exists after a query that succeeds, got another step", metric->name));
  }
  const bool retrieves = step.has_query() || step.has_retrieve();
  if ((metric->of == MetricOf::kRetrieval || metric->of == MetricOf::kQueryOrRetrieve) &&
      !(retrieves && may_succeed)) {
    return absl::InvalidArgumentError(
        fmt::format("metric {} exists after a query or retrieve that succeeds, got another step",
                    metric->name));
  }
  if (in_group && (metric->of == MetricOf::kAnyStep || metric->of == MetricOf::kRetrieval)) {
    return absl::InvalidArgumentError(
        fmt::format("metric {} depends on what the other threads do meanwhile: expect it of the "
                    "group, or of a step behind it",
                    metric->name));
  }
  if (expectation.bound_case() == v1::Expectation::BOUND_NOT_SET) {
    return absl::InvalidArgumentError(fmt::format(
        "metric {} needs at_least, at_most or equal_to, got none of them", metric->name));
  }
  return absl::OkStatus();
}

bool IsStatusName(const std::string& name) {
  for (int code = 0; code <= 16; ++code) {
    if (absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) == name) return true;
  }
  return false;
}

absl::Status CheckStatuses(const v1::Step& step) {
  bool may_fail = false;
  for (const std::string& name : step.expect_status()) {
    if (!IsStatusName(name)) {
      return absl::InvalidArgumentError(fmt::format(
          "expect_status must be the name of an Abseil status code such as NOT_FOUND, got \"{}\"",
          name));
    }
    may_fail |= name != "OK";
  }
  if (step.has_parallel() && !step.expect_status().empty()) {
    return absl::InvalidArgumentError(
        "expect_status: a group has none of its own, only its steps have");
  }
  if (!step.expect_message().empty() && !may_fail) {
    return absl::InvalidArgumentError(
        "expect_message needs an expect_status other than OK, whose message it is part of");
  }
  return absl::OkStatus();
}

absl::Status CheckGroup(const v1::Step& step) {
  if (step.repeat() > 1) {
    return absl::InvalidArgumentError("repeat: repeat the steps of a group, not the group");
  }
  WAVEKV_RETURN_IF_ERROR(CheckParallel(step.parallel()));
  for (int s = 0; s < step.parallel().steps_size(); ++s) {
    const v1::Step& inner = step.parallel().steps(s);
    if (AnswersAreComparable(step.parallel(), s)) continue;
    for (const v1::Expectation& expectation : inner.expect()) {
      const std::string& name = expectation.metric();
      if (name != "rel_err" && name != "rel_err_mean" && name != "lse_err") continue;
      return absl::InvalidArgumentError(
          fmt::format("parallel.steps[{}]: metric {} needs to know what the sequence {} holds, "
                      "which the group truncates or creates",
                      s, name, SequenceOf(inner)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckStep(const v1::Step& step, const ModelSpec& model, bool in_group) {
  switch (step.op_case()) {
    case v1::Step::OP_NOT_SET:
      return absl::InvalidArgumentError("needs an operation, such as append or query, got none");
    case v1::Step::kAppend:
      WAVEKV_RETURN_IF_ERROR(CheckAppend(step.append(), model));
      break;
    case v1::Step::kQuery:
      WAVEKV_RETURN_IF_ERROR(CheckAsked("query", step.query(), model));
      break;
    case v1::Step::kRetrieve:
      WAVEKV_RETURN_IF_ERROR(CheckAsked("retrieve", step.retrieve(), model));
      break;
    case v1::Step::kFork:
      if (!step.fork().child().empty()) break;
      return absl::InvalidArgumentError("fork.child must name the new sequence, got nothing");
    case v1::Step::kParallel:
      if (in_group) return absl::InvalidArgumentError("parallel: a group has no groups in it");
      WAVEKV_RETURN_IF_ERROR(CheckGroup(step));
      break;
    default:
      break;
  }
  WAVEKV_RETURN_IF_ERROR(CheckAtMost("repeat", step.repeat(), kTokensMax));
  WAVEKV_RETURN_IF_ERROR(CheckStatuses(step));
  for (const v1::Expectation& expectation : step.expect()) {
    WAVEKV_RETURN_IF_ERROR(CheckExpectation(step, expectation, in_group));
  }
  return absl::OkStatus();
}

}  // namespace wavekv::testing
