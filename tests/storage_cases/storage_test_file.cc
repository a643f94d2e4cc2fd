#include "tests/storage_cases/storage_test_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "api/engine_config.h"
#include "fmt/format.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/metrics.h"

namespace wavekv::testing {
namespace {

using google::protobuf::TextFormat;

constexpr char kSmallEngine[] = R"(
    model { num_layers: 2 num_q_heads: 4 num_kv_heads: 2 head_dim_k: 32 }
    index { segment_tokens: 256 update_tokens: 128 }
    arena_bytes: 16777216
    worker_threads: 1)";

// Above this a case is no test of one behaviour any more, and the naive reference takes minutes.
constexpr uint64_t kTokensMax = 100000;

class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(const std::string& file) : file_(file) {}
  void AddError(int line, int column, const std::string& message) override {
    if (text_.empty()) text_ = fmt::format("{}:{}:{}: {}", file_, line + 1, column + 1, message);
  }
  const std::string& text() const { return text_; }

 private:
  const std::string& file_;
  std::string text_;
};

absl::Status CheckSource(const char* field, const v1::TensorSource& source) {
  if (source.kind_case() == v1::TensorSource::KIND_NOT_SET) {
    return absl::InvalidArgumentError(
        fmt::format("{} must be gaussian, clustered or constant, got nothing", field));
  }
  if (source.has_clustered() && source.clustered().clusters() == 0) {
    return absl::InvalidArgumentError(
        fmt::format("{}.clustered.clusters must be at least 1, got 0", field));
  }
  return absl::OkStatus();
}

absl::Status CheckExpectation(const v1::Step& step, const v1::Expectation& expectation) {
  const Metric* const metric = FindMetric(expectation.metric());
  if (metric == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("metric must be one of {}, got \"{}\"", MetricNames(), expectation.metric()));
  }
  const bool answered =
      step.has_query() && (step.expect_status().empty() || step.expect_status() == "OK");
  if (metric->of_query && !answered) {
    return absl::InvalidArgumentError(fmt::format(
        "metric {} exists after a query that succeeds, got another step", metric->name));
  }
  if (expectation.bound_case() == v1::Expectation::BOUND_NOT_SET) {
    return absl::InvalidArgumentError(fmt::format(
        "metric {} needs at_least, at_most or equal_to, got none of them", metric->name));
  }
  return absl::OkStatus();
}

absl::Status CheckStatus(const v1::Step& step) {
  if (step.expect_status().empty() || step.expect_status() == "OK") {
    if (step.expect_message().empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "expect_message needs an expect_status other than OK, whose message it is part of");
  }
  for (int code = 1; code <= 16; ++code) {
    if (absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) == step.expect_status()) {
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("expect_status must be the name of an Abseil status code such as NOT_FOUND, got "
                  "\"{}\"",
                  step.expect_status()));
}

absl::Status CheckStep(const v1::Step& step) {
  if (step.op_case() == v1::Step::OP_NOT_SET) {
    return absl::InvalidArgumentError("needs an operation, such as append or query, got none");
  }
  if (step.has_append()) {
    WAVEKV_RETURN_IF_ERROR(CheckSource("append.k", step.append().k()));
    WAVEKV_RETURN_IF_ERROR(CheckSource("append.v", step.append().v()));
    if (step.append().tokens() > kTokensMax) {
      return absl::InvalidArgumentError(fmt::format("append.tokens must be at most {}, got {}",
                                                    kTokensMax, step.append().tokens()));
    }
  }
  if (step.has_query()) {
    WAVEKV_RETURN_IF_ERROR(CheckSource("query.q", step.query().q()));
    if (step.query().rows() > kTokensMax) {
      return absl::InvalidArgumentError(
          fmt::format("query.rows must be at most {}, got {}", kTokensMax, step.query().rows()));
    }
  }
  if (step.has_fork() && step.fork().child().empty()) {
    return absl::InvalidArgumentError("fork.child must name the new sequence, got nothing");
  }
  WAVEKV_RETURN_IF_ERROR(CheckStatus(step));
  for (const v1::Expectation& expectation : step.expect()) {
    WAVEKV_RETURN_IF_ERROR(CheckExpectation(step, expectation));
  }
  return absl::OkStatus();
}

bool IsCamelCase(const std::string& name) {
  return !name.empty() && name[0] >= 'A' && name[0] <= 'Z' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c); });
}

absl::Status CheckCase(const v1::StorageTestCase& test_case) {
  if (!IsCamelCase(test_case.name())) {
    return absl::InvalidArgumentError(fmt::format(
        "name must be a sentence in CamelCase, such as ForkSharesItsParentsTokens, got \"{}\"",
        test_case.name()));
  }
  if (test_case.description().empty()) {
    return absl::InvalidArgumentError("description must say what a user may rely on, got nothing");
  }
  if (test_case.steps().empty()) return absl::InvalidArgumentError("needs steps, got none");
  return OptionsOf(test_case).status();
}

int LineOf(const TextFormat::ParseInfoTree* tree, const google::protobuf::Message& message,
           const char* field, int index) {
  if (tree == nullptr) return 0;
  return tree->GetLocation(message.GetDescriptor()->FindFieldByName(field), index).line + 1;
}

}  // namespace

absl::StatusOr<EngineOptions> OptionsOf(const v1::StorageTestCase& test_case) {
  v1::EngineConfig config;
  if (!TextFormat::ParseFromString(kSmallEngine, &config)) {
    return absl::InternalError("the small engine of storage tests does not parse");
  }
  config.MergeFrom(test_case.given());
  return EngineOptionsFromProto(config);
}

absl::StatusOr<v1::StorageTestSuite> ParseStorageTests(const std::string& file,
                                                       const std::string& text) {
  v1::StorageTestSuite suite;
  FirstError error(file);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&tree);
  if (!parser.ParseFromString(text, &suite)) return absl::InvalidArgumentError(error.text());
  if (suite.cases().empty()) {
    return absl::InvalidArgumentError(file + ": needs at least one case, got none");
  }

  std::set<std::string> names;
  for (int c = 0; c < suite.cases_size(); ++c) {
    const v1::StorageTestCase& test_case = suite.cases(c);
    absl::Status status = CheckCase(test_case);
    if (status.ok() && !names.insert(test_case.name()).second) {
      status = absl::InvalidArgumentError("name is used twice");
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: case {}: {}", file, LineOf(&tree, suite, "cases", c),
                      test_case.name(), std::string(status.message())));
    }
    const auto* const case_tree =
        tree.GetTreeForNested(suite.GetDescriptor()->FindFieldByName("cases"), c);
    for (int s = 0; s < test_case.steps_size(); ++s) {
      status = CheckStep(test_case.steps(s));
      if (status.ok()) continue;
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: case {}, step {}: {}", file, LineOf(case_tree, test_case, "steps", s),
                      test_case.name(), s + 1, std::string(status.message())));
    }
  }
  return suite;
}

absl::StatusOr<v1::StorageTestSuite> LoadStorageTests(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  }
  std::stringstream text;
  text << file.rdbuf();
  return ParseStorageTests(path, text.str());
}

}  // namespace wavekv::testing
