// Files of recorded attention. docs/trace_format.md defines the format.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_FILE_H_
#define WAVEKV_TOOLS_TRACE_TRACE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/safetensors/safetensors.h"
#include "tools/trace/trace_head.h"

namespace wavekv {

// A trace on disk or in memory. Shapes, counts and positions have been checked, the numbers of
// keys, values and queries have not: who loads them does. Immutable, so thread-safe.
class TraceFile {
 public:
  // INVALID_ARGUMENT naming file, tensor or metadata key, expected and got; NOT_FOUND for a file
  // that does not exist. The file is mapped: see safetensors::File::Read.
  static absl::StatusOr<TraceFile> Open(const std::string& path);
  static absl::StatusOr<TraceFile> FromFile(safetensors::File file);

  const std::string& name() const { return file_.name(); }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_queries() const { return static_cast<int64_t>(positions_.size()); }
  const std::vector<int32_t>& positions() const { return positions_; }

  // Names of the kinds of queries; "0", "1", ... where the file numbers them alone, none when it
  // does not tell them apart.
  const std::vector<std::string>& query_types() const { return query_types_; }
  // Numbers of the queries of a type: none for a type that the file does not have.
  std::vector<int64_t> QueriesOfType(absl::string_view type) const;

  // The recorded heads, by layer and kv head.
  struct HeadName {
    int64_t layer = 0;
    int64_t kv_head = 0;
  };
  const std::vector<HeadName>& heads() const { return heads_; }
  // Views of this object.
  TraceHead head(size_t index) const;

 private:
  explicit TraceFile(safetensors::File file) : file_(std::move(file)) {}

  absl::Status ReadHeads();
  absl::Status ReadQueries();
  absl::Status CheckHead(const HeadName& head);
  absl::Status CheckMetadata() const;
  absl::Status CheckCount(const char* key, int64_t expected) const;
  absl::StatusOr<int64_t> Count(const char* key, int64_t otherwise) const;
  absl::Status ReadSoftmaxScale();
  const safetensors::Tensor& Rows(const HeadName& head, const char* which) const;
  RowsView View(const HeadName& head, const char* which) const;
  absl::Status BadTensor(absl::string_view tensor, absl::string_view what) const;
  absl::Status BadMetadata(absl::string_view key, absl::string_view what) const;

  safetensors::File file_;
  std::vector<HeadName> heads_;
  int64_t num_tokens_ = 0;
  double softmax_scale_ = 0.0;  // 0: 1 / sqrt(head_dim)
  std::vector<int32_t> positions_;
  std::vector<int32_t> query_type_;  // empty: not recorded
  std::vector<std::string> query_types_;
};

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_FILE_H_
