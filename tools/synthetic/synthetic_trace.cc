#include "tools/synthetic/synthetic_trace.h"

#include <cstddef>
#include <cstdint>
#include <utility>

#include "fmt/format.h"
#include "storage/float16.h"
#include "storage/status_macros.h"
#include "tools/safetensors/safetensors.h"

namespace wavekv::synthetic {
namespace {

safetensors::DType FileDType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return safetensors::DType::kF32;
    case DType::kFloat16:
      return safetensors::DType::kF16;
    case DType::kBFloat16:
      return safetensors::DType::kBF16;
  }
  return safetensors::DType::kF32;
}

std::string Encode(absl::Span<const float> values, DType dtype) {
  std::string bytes(values.size() * DTypeBytes(dtype), '\0');
  auto* const data = reinterpret_cast<std::byte*>(bytes.data());
  for (size_t i = 0; i < values.size(); ++i) StoreElement(data, dtype, i, values[i]);
  return bytes;
}

absl::Status CheckAlike(absl::Span<const SyntheticHead> heads) {
  if (heads.empty()) return absl::InvalidArgumentError("heads: expected at least one, got none");
  const SyntheticHeadSpec& first = heads[0].spec();
  for (const SyntheticHead& head : heads) {
    const SyntheticHeadSpec& spec = head.spec();
    if (spec.num_tokens != first.num_tokens || spec.num_queries != first.num_queries ||
        spec.head_dim != first.head_dim || spec.gqa_group_size != first.gqa_group_size ||
        spec.num_needles != first.num_needles) {
      return absl::InvalidArgumentError(
          "heads: expected the same tokens, queries, head_dim, group and needles of all");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteSyntheticTrace(absl::Span<const SyntheticHead> heads, DType dtype,
                                 const std::string& path) {
  WAVEKV_RETURN_IF_ERROR(CheckAlike(heads));
  const SyntheticHeadSpec& spec = heads[0].spec();
  const int64_t dim = spec.head_dim;
  safetensors::Writer writer;
  // head_dim^-0.5 is the default of the format, so that softmax_scale needs no rounding.
  writer.SetMetadata("n_tokens", fmt::format("{}", spec.num_tokens));
  writer.SetMetadata("n_context", fmt::format("{}", spec.num_tokens - spec.num_queries));
  writer.SetMetadata("head_dim", fmt::format("{}", dim));
  writer.SetMetadata("n_layers", "1");
  writer.SetMetadata("n_kv_heads", fmt::format("{}", heads.size()));
  writer.SetMetadata("q_heads_per_kv", fmt::format("{}", spec.gqa_group_size));
  writer.SetMetadata("query_types", "decode,needle");
  const safetensors::DType file_dtype = FileDType(dtype);
  for (size_t h = 0; h < heads.size(); ++h) {
    const TokenStream* const tokens = &heads[h].tokens();
    const std::string name = fmt::format("layer0.kvhead{}", h);
    writer.SetMetadata(name, SharpnessName(heads[h].spec().sharpness));
    using ReadRows = void (TokenStream::*)(int64_t, int64_t, float*) const;
    const auto add = [&](const char* which, ReadRows read) {
      return writer.AddStreamed(name + which, file_dtype, {spec.num_tokens, dim},
                                [=](int64_t first, int64_t count) {
                                  std::vector<float> rows(count * dim);
                                  (tokens->*read)(first, count, rows.data());
                                  return Encode(rows, dtype);
                                });
    };
    WAVEKV_RETURN_IF_ERROR(add(".k", &TokenStream::Keys));
    WAVEKV_RETURN_IF_ERROR(add(".v", &TokenStream::Values));
    WAVEKV_RETURN_IF_ERROR(writer.Add(name + ".q", file_dtype,
                                      {spec.num_queries, spec.gqa_group_size, dim},
                                      Encode(heads[h].queries(), dtype)));
  }
  std::vector<int32_t> positions;
  std::vector<int32_t> types;
  for (int64_t query = 0; query < spec.num_queries; ++query) {
    positions.push_back(static_cast<int32_t>(heads[0].position(query)));
    types.push_back(heads[0].needle_of(query) >= 0 ? 1 : 0);
  }
  WAVEKV_RETURN_IF_ERROR(writer.AddInt32s("positions", {spec.num_queries}, positions));
  WAVEKV_RETURN_IF_ERROR(writer.AddInt32s("query_type", {spec.num_queries}, types));
  return writer.Write(path);
}

}  // namespace wavekv::synthetic
