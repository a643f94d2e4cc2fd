#include "bench/head_source.h"

#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {

absl::StatusOr<std::unique_ptr<HeadSource>> RecordedSource(const std::string& path) {
  auto source = std::make_unique<HeadSource>();
  source->name = "trace";
  WAVEKV_ASSIGN_OR_RETURN(source->trace, TraceFile::Open(path));
  for (size_t i = 0; i < source->trace->heads().size(); ++i) {
    source->heads.push_back(source->trace->head(i));
    source->layers.push_back(source->trace->heads()[i].layer);
  }
  if (auto decode = source->trace->QueriesOfType("decode"); !decode.empty()) {
    source->queries = std::move(decode);
  }
  return source;
}

absl::StatusOr<std::unique_ptr<HeadSource>> SyntheticSource(
    const std::vector<synthetic::Sharpness>& sharpness, int64_t num_tokens, int64_t num_queries) {
  SyntheticLayerSpec spec;
  spec.num_tokens = num_tokens;
  spec.num_kv_heads = 2 * static_cast<int>(sharpness.size());
  spec.num_queries = num_queries;
  spec.sharpness.clear();
  for (const auto kind : sharpness) spec.sharpness.insert(spec.sharpness.end(), 2, kind);
  WAVEKV_ASSIGN_OR_RETURN(const SyntheticLayer layer, SyntheticLayer::Create(spec));
  auto source = std::make_unique<HeadSource>();
  source->name = sharpness.size() == 1 ? synthetic::SharpnessName(sharpness[0]) : "synthetic";
  for (int64_t query = 0; query < spec.num_queries; ++query) {
    source->positions.push_back(static_cast<int32_t>(layer.heads()[0].position(query)));
  }
  for (int head = 0; head < spec.num_kv_heads; ++head) {
    source->layers.push_back(head / 2);
    LayerRows rows;
    rows.num_rows = num_tokens;
    rows.keys.resize(num_tokens * spec.head_dim);
    rows.values.resize(rows.keys.size());
    layer.HeadRows(head, 0, num_tokens, rows.keys.data(), rows.values.data());
    source->rows.push_back(std::move(rows));
    source->head_queries.push_back(layer.heads()[head].queries());
  }
  for (int head = 0; head < spec.num_kv_heads; ++head) {
    const auto view = [&](const char* what, const std::vector<float>& rows, int64_t num_rows) {
      return RowsView{.name = fmt::format("{}.{}", source->name, what),
                      .data = rows.data(),
                      .dtype = DType::kFloat32,
                      .num_rows = num_rows,
                      .row_elements = static_cast<int64_t>(rows.size()) / num_rows};
    };
    source->heads.push_back({.keys = view("k", source->rows[head].keys, num_tokens),
                             .values = view("v", source->rows[head].values, num_tokens),
                             .queries = view("q", source->head_queries[head], spec.num_queries),
                             .head_dim_k = spec.head_dim,
                             .positions = source->positions,
                             .softmax_scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim))});
  }
  return source;
}

}  // namespace wavekv::bench
