#include "tests/storage_cases/storage_test_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "api/engine_config.h"
#include "fmt/format.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/step_rules.h"

namespace wavekv::testing {
namespace {

using google::protobuf::Message;
using google::protobuf::TextFormat;

constexpr char kSmallEngine[] = R"(
    model { num_layers: 2 num_q_heads: 4 num_kv_heads: 2 head_dim_k: 32 }
    index { segment_tokens: 256 update_tokens: 128 }
    arena_bytes: 16777216
    worker_threads: 1)";

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

int LineOf(const TextFormat::ParseInfoTree* tree, const Message& message, const char* field,
           int index) {
  if (tree == nullptr) return 0;
  return tree->GetLocation(message.GetDescriptor()->FindFieldByName(field), index).line + 1;
}

const TextFormat::ParseInfoTree* Nested(const TextFormat::ParseInfoTree* tree,
                                        const Message& message, const char* field, int index) {
  if (tree == nullptr) return nullptr;
  return tree->GetTreeForNested(message.GetDescriptor()->FindFieldByName(field), index);
}

// Paths of files are meant from `folder` on.
void ResolvePath(const std::string& folder, v1::TensorSource& source) {
  if (!source.has_file() || source.file().path().rfind('/', 0) == 0) return;
  source.mutable_file()->set_path(folder + source.file().path());
}

void ResolvePaths(const std::string& folder, v1::Step& step) {
  if (step.has_append()) {
    ResolvePath(folder, *step.mutable_append()->mutable_k());
    ResolvePath(folder, *step.mutable_append()->mutable_v());
  }
  if (step.has_query()) ResolvePath(folder, *step.mutable_query()->mutable_q());
  if (step.has_retrieve()) ResolvePath(folder, *step.mutable_retrieve()->mutable_q());
}

// Checks a file's cases, and makes paths in them absolute or relative to the working directory.
class FileCheck {
 public:
  FileCheck(const std::string& file, const TextFormat::ParseInfoTree& tree)
      : file_(file), folder_(file.substr(0, file.rfind('/') + 1)), tree_(&tree) {}

  absl::Status Check(v1::StorageTestSuite& suite) {
    if (suite.cases().empty()) {
      return absl::InvalidArgumentError(file_ + ": needs at least one case, got none");
    }
    std::set<std::string> names;
    for (int c = 0; c < suite.cases_size(); ++c) {
      v1::StorageTestCase& test_case = *suite.mutable_cases(c);
      place_ = "case " + test_case.name();
      absl::Status status = CheckCase(test_case);
      if (status.ok() && !names.insert(test_case.name()).second) {
        status = absl::InvalidArgumentError("name is used twice");
      }
      if (!status.ok()) return At(LineOf(tree_, suite, "cases", c), status);
      WAVEKV_RETURN_IF_ERROR(CheckSteps(test_case, Nested(tree_, suite, "cases", c)));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status CheckSteps(v1::StorageTestCase& test_case, const TextFormat::ParseInfoTree* tree) {
    WAVEKV_ASSIGN_OR_RETURN(EngineOptions options, OptionsOf(test_case));
    if (options.model.head_dim_v == 0) options.model.head_dim_v = options.model.head_dim_k;
    for (int s = 0; s < test_case.steps_size(); ++s) {
      v1::Step& step = *test_case.mutable_steps(s);
      place_ = fmt::format("case {}, step {}", test_case.name(), s + 1);
      const std::string place = place_;
      const auto* const step_tree = Nested(tree, test_case, "steps", s);
      const auto* const group_tree = Nested(step_tree, step, "parallel", -1);
      for (int i = 0; i < step.parallel().steps_size(); ++i) {
        v1::Parallel& group = *step.mutable_parallel();
        place_ = fmt::format("{}.{}", place, i + 1);
        ResolvePaths(folder_, *group.mutable_steps(i));
        const absl::Status status = CheckStep(group.steps(i), options.model, true);
        if (!status.ok()) return At(LineOf(group_tree, group, "steps", i), status);
      }
      place_ = place;
      ResolvePaths(folder_, step);
      const absl::Status status = CheckStep(step, options.model, false);
      if (!status.ok()) return At(LineOf(tree, test_case, "steps", s), status);
    }
    return absl::OkStatus();
  }

  absl::Status At(int line, const absl::Status& status) const {
    return absl::InvalidArgumentError(
        fmt::format("{}:{}: {}: {}", file_, line, place_, std::string(status.message())));
  }

  const std::string file_;
  const std::string folder_;
  const TextFormat::ParseInfoTree* const tree_;
  std::string place_;
};

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
  WAVEKV_RETURN_IF_ERROR(FileCheck(file, tree).Check(suite));
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
