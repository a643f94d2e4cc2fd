#include "bench/synthetic_layer.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "storage/float16.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

// Heads need so many tokens before their queries. Of those of shorter layers the first ones are
// taken.
constexpr int64_t kHeadTokensMin = 1024;

// Calls task(head) for every head, on all processors.
template <typename Task>
void ForEachHead(int num_heads, const Task& task) {
  const int num_threads =
      std::min<int>(num_heads, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&, t] {
      for (int head = t; head < num_heads; head += num_threads) task(head);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void Round(float* values, int64_t count, DType dtype) {
  for (int64_t i = 0; i < count; ++i) {
    std::byte element[sizeof(float)];
    StoreElement(element, dtype, 0, values[i]);
    values[i] = LoadElement(element, dtype, 0);
  }
}

}  // namespace

absl::StatusOr<SyntheticLayer> SyntheticLayer::Create(const SyntheticLayerSpec& spec) {
  std::vector<std::optional<absl::StatusOr<synthetic::SyntheticHead>>> heads(spec.num_kv_heads);
  ForEachHead(spec.num_kv_heads, [&](int head) {
    synthetic::SyntheticHeadSpec head_spec;
    head_spec.num_tokens = std::max(spec.num_tokens, kHeadTokensMin + spec.num_queries);
    head_spec.head_dim = spec.head_dim;
    head_spec.gqa_group_size = spec.gqa_group_size;
    head_spec.num_queries = spec.num_queries;
    head_spec.sharpness = spec.sharpness[head % spec.sharpness.size()];
    head_spec.seed = 1 + head;
    heads[head].emplace(synthetic::SyntheticHead::Create(head_spec));
  });
  SyntheticLayer layer(spec);
  for (auto& head : heads) {
    WAVEKV_RETURN_IF_ERROR(head->status());
    layer.heads_.push_back(**std::move(head));
  }
  const int64_t group_row = int64_t{spec.gqa_group_size} * spec.head_dim;
  for (int64_t query = 0; query < spec.num_queries; ++query) {
    for (const synthetic::SyntheticHead& head : layer.heads_) {
      const auto first = head.queries().begin() + query * group_row;
      layer.queries_.insert(layer.queries_.end(), first, first + group_row);
    }
  }
  return layer;
}

LayerRows SyntheticLayer::Rows(int64_t begin, int64_t num_rows) const {
  LayerRows rows;
  rows.num_rows = num_rows;
  const int64_t head_elements = num_rows * spec_.head_dim;
  rows.keys.resize(spec_.num_kv_heads * head_elements);
  rows.values.resize(spec_.num_kv_heads * head_elements);
  ForEachHead(spec_.num_kv_heads, [&](int head) {
    HeadRows(head, begin, num_rows, rows.keys.data() + head * head_elements,
             rows.values.data() + head * head_elements);
  });
  return rows;
}

void SyntheticLayer::HeadRows(int kv_head, int64_t begin, int64_t num_rows, float* keys,
                              float* values) const {
  heads_[kv_head].tokens().Keys(begin, num_rows, keys);
  heads_[kv_head].tokens().Values(begin, num_rows, values);
  Round(keys, num_rows * spec_.head_dim, spec_.kv_dtype);
  Round(values, num_rows * spec_.head_dim, spec_.kv_dtype);
}

TensorView ViewOf(const std::vector<float>& rows, const SyntheticLayerSpec& spec,
                  int64_t num_rows) {
  return {.data = rows.data(),
          .dtype = DType::kFloat32,
          .num_rows = num_rows,
          .num_heads = spec.num_kv_heads,
          .head_dim = spec.head_dim,
          .row_stride = spec.head_dim,
          .head_stride = num_rows * spec.head_dim};
}

EngineOptions SyntheticLayer::Options(Device device) const {
  EngineOptions options;
  options.device = device;
  options.model = {.num_layers = 1,
                   .num_q_heads = spec_.num_q_heads(),
                   .num_kv_heads = spec_.num_kv_heads,
                   .head_dim_k = spec_.head_dim,
                   .kv_dtype = spec_.kv_dtype};
  options.build_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  options.arena_bytes = ArenaBytesFor(options, spec_.num_tokens);
  options.prefault_threads = options.build_threads;
  return options;
}

absl::Status SyntheticLayer::AppendTo(Engine& engine, const Sequence& sequence) const {
  constexpr int64_t kChunk = 8192;
  for (int64_t begin = 0; begin < spec_.num_tokens; begin += kChunk) {
    const LayerRows rows = Rows(begin, std::min(kChunk, spec_.num_tokens - begin));
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows.num_rows)};
    const auto append = [&] {
      return engine.Append({{&sequence, 1}, cu_seqlens}, 0, ViewOf(rows.keys, spec_, rows.num_rows),
                           ViewOf(rows.values, spec_, rows.num_rows));
    };
    absl::Status status = append();
    if (absl::IsResourceExhausted(status)) {
      // Rows that wait to be sealed fill the arena.
      WAVEKV_RETURN_IF_ERROR(engine.WaitForBuilds(sequence));
      status = append();
    }
    WAVEKV_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace wavekv::bench
