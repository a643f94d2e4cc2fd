#include "examples/tinylm/eval_set.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "examples/tinylm/status_macros.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

using safetensors::File;
using safetensors::kAnySize;

absl::StatusOr<std::vector<int32_t>> ReadIndices(const File& file, const std::string& tensor,
                                                 const safetensors::Shape& shape, int limit) {
  TINYLM_ASSIGN_OR_RETURN(std::vector<int32_t> indices, file.Int32s(tensor, shape));
  for (const int32_t index : indices) {
    if (index < 0 || index >= limit) {
      return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor '", tensor,
                                                     "': expected values from 0 to ", limit - 1,
                                                     ", got ", index));
    }
  }
  return indices;
}

// Row i of a ragged tensor is tokens[offsets[i], offsets[i + 1]).
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadRagged(const File& file,
                                                             const std::string& prefix,
                                                             int64_t num_rows, int vocab_size) {
  TINYLM_ASSIGN_OR_RETURN(const std::vector<int32_t> offsets,
                          file.Int32s(prefix + "_off", {num_rows + 1}));
  TINYLM_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          ReadIndices(file, prefix + "_tok", {kAnySize}, vocab_size));
  std::vector<std::vector<int32_t>> rows;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int32_t begin = offsets[i];
    const int32_t end = offsets[i + 1];
    if (begin < 0 || end <= begin || end > static_cast<int64_t>(tokens.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.name(), ": tensor '", prefix, "_off': expected rows of at least one of ",
          tokens.size(), " tokens, got [", begin, ", ", end, ") in row ", i));
    }
    rows.emplace_back(tokens.begin() + begin, tokens.begin() + end);
  }
  return rows;
}

}  // namespace

absl::StatusOr<EvalSet> ReadEvalSet(const std::string& path, int vocab_size) {
  TINYLM_ASSIGN_OR_RETURN(const File file, File::Read(path));
  const auto tasks_text = file.metadata().find("tasks");
  if (tasks_text == file.metadata().end()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the metadata 'tasks' is missing"));
  }
  const std::vector<std::string> tasks = absl::StrSplit(tasks_text->second, ',');

  EvalSet set;
  TINYLM_ASSIGN_OR_RETURN(const std::vector<int32_t> documents,
                          ReadIndices(file, "contexts", {kAnySize, kAnySize}, vocab_size));
  const safetensors::Shape& shape = file.tensors().at("contexts").shape;
  if (documents.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor 'contexts' is empty"));
  }
  for (int64_t i = 0; i < shape[0]; ++i) {
    set.documents.emplace_back(documents.begin() + i * shape[1],
                               documents.begin() + (i + 1) * shape[1]);
  }
  TINYLM_ASSIGN_OR_RETURN(
      const std::vector<int32_t> question_documents,
      ReadIndices(file, "q_ctx", {kAnySize}, static_cast<int>(set.documents.size())));
  const auto num_questions = static_cast<int64_t>(question_documents.size());
  TINYLM_ASSIGN_OR_RETURN(
      const std::vector<int32_t> question_tasks,
      ReadIndices(file, "q_task", {num_questions}, static_cast<int>(tasks.size())));
  TINYLM_ASSIGN_OR_RETURN(auto prompts, ReadRagged(file, "prefix", num_questions, vocab_size));
  TINYLM_ASSIGN_OR_RETURN(auto answers, ReadRagged(file, "answer", num_questions, vocab_size));
  for (int64_t i = 0; i < num_questions; ++i) {
    set.questions.push_back({.document = question_documents[i],
                             .task = tasks[question_tasks[i]],
                             .prompt = std::move(prompts[i]),
                             .answer = std::move(answers[i])});
  }
  return set;
}

}  // namespace tinylm
