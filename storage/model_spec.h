// The shape of the model whose KV cache is stored.
#ifndef WAVEKV_STORAGE_MODEL_SPEC_H_
#define WAVEKV_STORAGE_MODEL_SPEC_H_

#include <cmath>
#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// Constant for the life of an engine. Query head h reads kv head h / gqa_group_size()
// (contiguous groups, as in HF, FlashAttention, ggml and TensorRT-LLM).
struct ModelSpec {
  int num_layers = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim_k = 0;                 // of keys and queries; a multiple of 8, at most 576
  int head_dim_v = 0;                 // of values and outputs; 0 means head_dim_k
  DType kv_dtype = DType::kBFloat16;  // as stored; appended rows are converted
  float softmax_scale = 0.0f;         // 0 means 1 / sqrt(head_dim_k)

  int gqa_group_size() const { return num_q_heads / num_kv_heads; }
  int64_t key_row_bytes() const { return head_dim_k * DTypeBytes(kv_dtype); }
  int64_t value_row_bytes() const { return head_dim_v * DTypeBytes(kv_dtype); }

  // K and V of one token in one layer, all kv heads.
  int64_t token_bytes() const { return num_kv_heads * (key_row_bytes() + value_row_bytes()); }

  float scale() const {
    return softmax_scale > 0.0f ? softmax_scale : 1.0f / std::sqrt(static_cast<float>(head_dim_k));
  }
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_MODEL_SPEC_H_
