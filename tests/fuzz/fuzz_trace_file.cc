#include "tests/fuzz/fuzz_trace_file.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/safetensors/safetensors.h"
#include "tools/trace/trace_file.h"

namespace wavekv::testing {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

// Refusals say why, shortly, and blame the file.
void CheckRefusal(const absl::Status& status) {
  constexpr size_t kMessageMax = 2000;
  Require(status.code() == absl::StatusCode::kInvalidArgument, "a bad file is INVALID_ARGUMENT");
  Require(!status.message().empty(), "a refusal has a message");
  Require(status.message().size() < kMessageMax, "messages are short");
  for (const char c : status.message()) Require(c >= ' ' && c <= '~', "messages are printable");
}

void UseTensors(const safetensors::File& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    int64_t sum = 0;
    for (int64_t i = 0; i < tensor.num_bytes; ++i) sum += std::to_integer<int64_t>(tensor.data[i]);
    Require(sum >= 0, "every byte of a tensor can be read");
    const auto floats = file.Floats(name, tensor.shape);
    const auto ints = file.Int32s(name, tensor.shape);
    Require(!(floats.ok() && ints.ok()), "a tensor has one type");
    if (!floats.ok() && !ints.ok()) {
      Require(floats.status().code() == absl::StatusCode::kInvalidArgument, "of a wrong type");
    }
  }
}

absl::Status UseRows(const RowsView& rows, int64_t part_elements) {
  Require(rows.num_rows >= 1 && rows.row_elements >= 1, "tensors of a head are not empty");
  Require(rows.row_elements % part_elements == 0, "rows are whole heads");
  const int64_t num_parts = rows.row_elements / part_elements;
  std::vector<float> padded(rows.num_rows * num_parts * (part_elements + 1));
  return LoadRows(rows, 0, rows.num_rows, part_elements, part_elements + 1, padded.data());
}

absl::Status UseTrace(const TraceFile& trace) {
  Require(!trace.heads().empty(), "a trace has a head");
  for (const int32_t position : trace.positions()) {
    Require(position >= 0 && position < trace.num_tokens(), "positions are tokens");
  }
  int64_t num_typed = 0;
  for (const std::string& type : trace.query_types()) {
    for (const int64_t query : trace.QueriesOfType(type)) {
      Require(query >= 0 && query < trace.num_queries(), "queries of a type are queries");
      ++num_typed;
    }
  }
  Require(trace.query_types().empty() || num_typed >= trace.num_queries(),
          "every query has a type");
  absl::Status status;
  for (size_t i = 0; i < trace.heads().size(); ++i) {
    const TraceHead head = trace.head(i);
    Require(head.softmax_scale > 0.0, "the scale is positive");
    Require(head.keys.num_rows == trace.num_tokens(), "keys of every token");
    Require(head.values.num_rows == trace.num_tokens(), "values of every token");
    Require(head.queries.num_rows == trace.num_queries(), "a row for every query");
    status.Update(UseRows(head.keys, head.head_dim_k));
    status.Update(UseRows(head.values, head.values.row_elements));
    status.Update(UseRows(head.queries, head.head_dim_k));
  }
  return status;
}

absl::Status Use(const uint8_t* data, size_t size) {
  const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(data), size);
  const auto file = safetensors::File::Parse(bytes, "input");
  if (!file.ok()) return file.status();
  UseTensors(*file);
  const auto trace = TraceFile::FromFile(*file);
  return trace.ok() ? UseTrace(*trace) : trace.status();
}

}  // namespace

absl::Status FuzzTraceFile(const uint8_t* data, size_t size) {
  absl::Status status = Use(data, size);
  if (!status.ok()) CheckRefusal(status);
  return status;
}

}  // namespace wavekv::testing
