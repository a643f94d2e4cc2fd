// Contiguous rows of keys and values of one kv head: the unit that exact attention reads in place.
#ifndef WAVEKV_STORAGE_KV_RANGE_H_
#define WAVEKV_STORAGE_KV_RANGE_H_

#include <cstddef>
#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// Shapes: keys [num_tokens, head_dim_k], values [num_tokens, head_dim_v], dense, of the model's
// kv_dtype. Positions: token i stands at position_begin + (positions == nullptr ? i :
// positions[i]).
struct KvRange {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  int64_t num_tokens = 0;
  int64_t position_begin = 0;
  const uint16_t* positions = nullptr;
};

// What is common to all ranges of a model.
struct KvShape {
  int head_dim_k = 0;
  int head_dim_v = 0;
  DType dtype = DType::kBFloat16;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_KV_RANGE_H_
