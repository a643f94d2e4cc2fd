#include "tools/trace/trace_file.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

using safetensors::kAnySize;
using safetensors::ShapeString;
using safetensors::Tensor;

// A number as names have it: digits, and no zero before others.
bool ConsumeNumber(absl::string_view* text, int64_t* number) {
  constexpr size_t kDigitsMax = 9;
  size_t digits = 0;
  while (digits < text->size() && absl::ascii_isdigit((*text)[digits])) ++digits;
  if (digits == 0 || digits > kDigitsMax || (digits > 1 && (*text)[0] == '0')) return false;
  if (!absl::SimpleAtoi(text->substr(0, digits), number)) return false;
  text->remove_prefix(digits);
  return true;
}

// "layer3.kvhead1.k": true, and the rest is "k".
bool ConsumeHeadName(absl::string_view* name, TraceFile::HeadName* head) {
  return absl::ConsumePrefix(name, "layer") && ConsumeNumber(name, &head->layer) &&
         absl::ConsumePrefix(name, ".kvhead") && ConsumeNumber(name, &head->kv_head) &&
         absl::ConsumePrefix(name, ".");
}

std::string TensorName(const TraceFile::HeadName& head, const char* which) {
  return absl::StrCat("layer", head.layer, ".kvhead", head.kv_head, ".", which);
}

bool IsFloat(safetensors::DType dtype) {
  return dtype == safetensors::DType::kF16 || dtype == safetensors::DType::kBF16 ||
         dtype == safetensors::DType::kF32;
}

DType ToDType(safetensors::DType dtype) {
  if (dtype == safetensors::DType::kF16) return DType::kFloat16;
  return dtype == safetensors::DType::kBF16 ? DType::kBFloat16 : DType::kFloat32;
}

}  // namespace

absl::StatusOr<TraceFile> TraceFile::Open(const std::string& path) {
  WAVEKV_ASSIGN_OR_RETURN(safetensors::File file, safetensors::File::Read(path));
  return FromFile(std::move(file));
}

absl::StatusOr<TraceFile> TraceFile::FromFile(safetensors::File file) {
  TraceFile trace(std::move(file));
  WAVEKV_RETURN_IF_ERROR(trace.ReadHeads());
  WAVEKV_RETURN_IF_ERROR(trace.ReadQueries());
  WAVEKV_RETURN_IF_ERROR(trace.CheckMetadata());
  WAVEKV_RETURN_IF_ERROR(trace.ReadSoftmaxScale());
  return trace;
}

absl::Status TraceFile::ReadHeads() {
  std::set<std::pair<int64_t, int64_t>> found;
  for (const auto& [name, tensor] : file_.tensors()) {
    absl::string_view rest = name;
    HeadName head;
    if (!ConsumeHeadName(&rest, &head)) continue;
    if (rest == "k" || rest == "v" || rest == "q") found.insert({head.layer, head.kv_head});
  }
  if (found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name(), ": expected tensors layer{l}.kvhead{h}.k, .v and .q, found none"));
  }
  for (const auto& [layer, kv_head] : found) heads_.push_back({layer, kv_head});
  const auto positions = file_.tensors().find("positions");
  if (positions == file_.tensors().end()) return BadTensor("positions", "is missing");
  if (positions->second.shape.size() != 1 || positions->second.shape[0] < 1) {
    return BadTensor("positions", absl::StrCat("expected shape [n_queries], at least 1, got ",
                                               ShapeString(positions->second.shape)));
  }
  WAVEKV_ASSIGN_OR_RETURN(positions_, file_.Int32s("positions", {kAnySize}));
  for (const HeadName& head : heads_) WAVEKV_RETURN_IF_ERROR(CheckHead(head));
  return absl::OkStatus();
}

absl::Status TraceFile::CheckHead(const HeadName& head) {
  for (const char* which : {"k", "v", "q"}) {
    const std::string name = TensorName(head, which);
    const auto tensor = file_.tensors().find(name);
    if (tensor == file_.tensors().end()) return BadTensor(name, "is missing");
    if (!IsFloat(tensor->second.dtype)) {
      return BadTensor(name, absl::StrCat("expected dtype F32, F16 or BF16, got ",
                                          safetensors::DTypeName(tensor->second.dtype)));
    }
  }
  const auto check = [&](const char* which, const safetensors::Shape& expected,
                         const char* text) -> absl::Status {
    const safetensors::Shape& got = Rows(head, which).shape;
    const bool fits =
        std::equal(got.begin(), got.end(), expected.begin(), expected.end(),
                   [](int64_t a, int64_t b) { return b == kAnySize ? a >= 1 : a == b; });
    if (fits) return absl::OkStatus();
    return BadTensor(TensorName(head, which),
                     absl::StrCat("expected shape ", text, " = ", ShapeString(expected),
                                  " without zeros, got ", ShapeString(got)));
  };
  // The first head says how many tokens there are.
  const int64_t num_tokens = num_tokens_ > 0 ? num_tokens_ : kAnySize;
  WAVEKV_RETURN_IF_ERROR(check("k", {num_tokens, kAnySize}, "[n_tokens, head_dim]"));
  num_tokens_ = Rows(head, "k").shape[0];
  WAVEKV_RETURN_IF_ERROR(check("v", {num_tokens_, kAnySize}, "[n_tokens, head_dim of the values]"));
  return check("q", {num_queries(), kAnySize, Rows(head, "k").shape[1]},
               "[n_queries, q_heads_per_kv, head_dim]");
}

absl::Status TraceFile::ReadQueries() {
  for (size_t i = 0; i < positions_.size(); ++i) {
    if (positions_[i] >= 0 && positions_[i] < num_tokens_) continue;
    return BadTensor("positions", absl::StrCat("expected positions in [0, ", num_tokens_, "), got ",
                                               positions_[i], " for query ", i));
  }
  const auto names = file_.metadata().find("query_types");
  if (names != file_.metadata().end() && !names->second.empty()) {
    for (absl::string_view type : absl::StrSplit(names->second, ',')) {
      query_types_.emplace_back(absl::StripAsciiWhitespace(type));
    }
  }
  if (file_.tensors().contains("query_correct")) {
    WAVEKV_RETURN_IF_ERROR(file_.Int32s("query_correct", {num_queries()}).status());
  }
  if (file_.tensors().contains("tokens")) {
    WAVEKV_RETURN_IF_ERROR(file_.Int32s("tokens", {num_tokens_}).status());
  }
  if (!file_.tensors().contains("query_type")) {
    query_types_.clear();
    return absl::OkStatus();
  }
  WAVEKV_ASSIGN_OR_RETURN(query_type_, file_.Int32s("query_type", {num_queries()}));
  constexpr int32_t kUnnamedMax = 1000;
  const auto num_types =
      query_types_.empty() ? kUnnamedMax : static_cast<int32_t>(query_types_.size());
  for (size_t i = 0; i < query_type_.size(); ++i) {
    if (query_type_[i] >= 0 && query_type_[i] < num_types) continue;
    return BadTensor("query_type", absl::StrCat("expected types in [0, ", num_types, "), got ",
                                                query_type_[i], " for query ", i));
  }
  if (query_types_.empty()) {
    const int32_t last = *std::max_element(query_type_.begin(), query_type_.end());
    for (int32_t type = 0; type <= last; ++type) query_types_.push_back(absl::StrCat(type));
  }
  return absl::OkStatus();
}

absl::Status TraceFile::CheckMetadata() const {
  WAVEKV_RETURN_IF_ERROR(CheckCount("n_tokens", num_tokens_));
  WAVEKV_ASSIGN_OR_RETURN(const int64_t num_context, Count("n_context", 0));
  if (num_context > num_tokens_) {
    return BadMetadata("n_context", absl::StrCat("expected at most the ", num_tokens_,
                                                 " tokens recorded, got ", num_context));
  }
  // Layers and heads may be left out of a recording, so these are bounds.
  int64_t layers_end = 0;
  int64_t kv_heads_end = 0;
  for (const HeadName& head : heads_) {
    layers_end = std::max(layers_end, head.layer + 1);
    kv_heads_end = std::max(kv_heads_end, head.kv_head + 1);
  }
  for (const auto& [key, end] : {std::pair{"n_layers", layers_end}, {"n_kv_heads", kv_heads_end}}) {
    WAVEKV_ASSIGN_OR_RETURN(const int64_t count, Count(key, end));
    if (count < end) {
      return BadMetadata(key,
                         absl::StrCat("expected at least ", end, ", as the tensors, got ", count));
    }
  }
  for (const HeadName& head : heads_) {
    const safetensors::Shape& queries = Rows(head, "q").shape;
    WAVEKV_RETURN_IF_ERROR(CheckCount("head_dim", queries[2]));
    WAVEKV_RETURN_IF_ERROR(CheckCount("q_heads_per_kv", queries[1]));
  }
  return absl::OkStatus();
}

absl::Status TraceFile::CheckCount(const char* key, int64_t expected) const {
  WAVEKV_ASSIGN_OR_RETURN(const int64_t count, Count(key, expected));
  if (count == expected) return absl::OkStatus();
  return BadMetadata(key, absl::StrCat("expected ", expected, ", as the tensors, got ", count));
}

absl::StatusOr<int64_t> TraceFile::Count(const char* key, int64_t otherwise) const {
  const auto found = file_.metadata().find(key);
  if (found == file_.metadata().end()) return otherwise;
  int64_t count = 0;
  if (absl::SimpleAtoi(found->second, &count) && count >= 0) return count;
  return BadMetadata(key, absl::StrCat("expected an integer >= 0, got '",
                                       safetensors::Printable(found->second), "'"));
}

absl::Status TraceFile::ReadSoftmaxScale() {
  const auto found = file_.metadata().find("softmax_scale");
  if (found == file_.metadata().end()) return absl::OkStatus();
  if (absl::SimpleAtod(found->second, &softmax_scale_) && std::isfinite(softmax_scale_) &&
      softmax_scale_ > 0.0) {
    return absl::OkStatus();
  }
  return BadMetadata("softmax_scale", absl::StrCat("expected a finite number > 0, got '",
                                                   safetensors::Printable(found->second), "'"));
}

std::vector<int64_t> TraceFile::QueriesOfType(absl::string_view type) const {
  std::vector<int64_t> queries;
  for (size_t i = 0; i < query_type_.size(); ++i) {
    if (query_types_[query_type_[i]] == type) queries.push_back(static_cast<int64_t>(i));
  }
  return queries;
}

const Tensor& TraceFile::Rows(const HeadName& head, const char* which) const {
  return file_.tensors().at(TensorName(head, which));
}

RowsView TraceFile::View(const HeadName& head, const char* which) const {
  const Tensor& tensor = Rows(head, which);
  RowsView view;
  view.name = absl::StrCat(name(), ": tensor '", TensorName(head, which), "'");
  view.data = tensor.data;
  view.dtype = ToDType(tensor.dtype);
  view.num_rows = tensor.shape[0];
  view.row_elements = tensor.num_bytes / safetensors::DTypeBytes(tensor.dtype) / view.num_rows;
  return view;
}

TraceHead TraceFile::head(size_t index) const {
  const HeadName& name = heads_[index];
  TraceHead head;
  head.keys = View(name, "k");
  head.values = View(name, "v");
  head.queries = View(name, "q");
  head.head_dim_k = head.keys.row_elements;
  head.positions = positions_;
  head.softmax_scale =
      softmax_scale_ > 0.0 ? softmax_scale_ : 1.0 / std::sqrt(static_cast<double>(head.head_dim_k));
  return head;
}

absl::Status TraceFile::BadTensor(absl::string_view tensor, absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(name(), ": tensor '", tensor, "': ", what));
}

absl::Status TraceFile::BadMetadata(absl::string_view key, absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(name(), ": metadata '", key, "': ", what));
}

}  // namespace wavekv
