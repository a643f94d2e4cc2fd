// One layer of a long context in an engine, and queries for it: what the benchmarks of whole steps
// run on.
#ifndef WAVEKV_BENCH_SYNTHETIC_LAYER_H_
#define WAVEKV_BENCH_SYNTHETIC_LAYER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/synthetic/synthetic_head.h"
#include "wavekv/engine.h"

namespace wavekv::bench {

struct SyntheticLayerSpec {
  int64_t num_tokens = 131072;
  int num_kv_heads = 8;
  int gqa_group_size = 4;
  int head_dim = 128;
  int64_t num_queries = 16;  // of the last positions
  DType kv_dtype = DType::kBFloat16;
  std::vector<synthetic::Sharpness> sharpness = {
      synthetic::Sharpness::kMid};  // head by head, round

  int num_q_heads() const { return num_kv_heads * gqa_group_size; }
  int64_t kv_bytes() const {
    return num_tokens * num_kv_heads * 2 * head_dim * DTypeBytes(kv_dtype);
  }
};

// A part of the rows of all kv heads, rounded to the layer's dtype, as the engine will store them.
struct LayerRows {
  int64_t num_rows = 0;
  std::vector<float> keys;  // [num_kv_heads, num_rows, head_dim]
  std::vector<float> values;
};

class SyntheticLayer {
 public:
  // Draws the heads, in parallel, with fixed seeds.
  static absl::StatusOr<SyntheticLayer> Create(const SyntheticLayerSpec& spec);

  const SyntheticLayerSpec& spec() const { return spec_; }
  const std::vector<synthetic::SyntheticHead>& heads() const { return heads_; }
  LayerRows Rows(int64_t begin, int64_t num_rows) const;
  // The same of one kv head: [num_rows, head_dim] each.
  void HeadRows(int kv_head, int64_t begin, int64_t num_rows, float* keys, float* values) const;

  // [num_queries, num_q_heads, head_dim]
  const std::vector<float>& queries() const { return queries_; }

  // Options for an engine that holds the layer once.
  EngineOptions Options(Device device = Device::kCpu) const;

  // Appends all rows to layer 0 of an empty sequence; waits for builds only where the arena is
  // full.
  absl::Status AppendTo(Engine& engine, const Sequence& sequence) const;

 private:
  explicit SyntheticLayer(const SyntheticLayerSpec& spec) : spec_(spec) {}

  SyntheticLayerSpec spec_;
  std::vector<synthetic::SyntheticHead> heads_;
  std::vector<float> queries_;
};

// The view of LayerRows for Append.
TensorView ViewOf(const std::vector<float>& rows, const SyntheticLayerSpec& spec, int64_t num_rows);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_SYNTHETIC_LAYER_H_
