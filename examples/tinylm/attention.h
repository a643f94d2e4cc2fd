// What the model asks of whoever keeps its KV cache.
#ifndef WAVEKV_EXAMPLES_TINYLM_ATTENTION_H_
#define WAVEKV_EXAMPLES_TINYLM_ATTENTION_H_

#include <cstdint>

#include "absl/status/status.h"
#include "wavekv/tensor_view.h"

namespace tinylm {

// Causal attention of one sequence. A step appends num_rows tokens; in each of its layers Append
// comes before Attend. All tensors are fp32 views into the model's own buffers.
class Attention {
 public:
  virtual ~Attention() = default;

  virtual absl::Status BeginStep(int64_t num_rows) = 0;

  // keys (after RoPE) and values [num_rows, num_kv_heads, head_dim] become the newest tokens.
  virtual absl::Status Append(int layer, const wavekv::TensorView& keys,
                              const wavekv::TensorView& values) = 0;

  // queries (after RoPE, not scaled) and output [num_rows, num_q_heads, head_dim]; row r sees the
  // tokens up to its own.
  virtual absl::Status Attend(int layer, const wavekv::TensorView& queries,
                              const wavekv::MutableTensorView& output) = 0;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_ATTENTION_H_
