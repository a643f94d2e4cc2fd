#ifndef WAVEKV_CUDA_MERGE_TENSORS_H_
#define WAVEKV_CUDA_MERGE_TENSORS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "cuda/gpu_types.h"

namespace wavekv {

// An attention state of every row and head, in any strides; strides count elements.
struct MergeTensor {
  const void* output = nullptr;  // [num_rows, num_heads, head_dim]
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  const float* lse = nullptr;  // [num_rows, num_heads]
  int64_t lse_row_stride = 0;
  int64_t lse_head_stride = 0;
};

// Where their merger goes; output and lse may be those of state 0.
struct MergedTensor {
  void* output = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  float* lse = nullptr;  // nullptr: not wanted
  int64_t lse_row_stride = 0;
  int64_t lse_head_stride = 0;
};

}  // namespace wavekv

// api/merge_states.h on GPUs. states [num_states], read by the device. to_natural: what a logarithm
// is multiplied by to be a natural one. A NaN among the lses marks an empty state, as -infinity
// does.
WAVEKV_GPU_OPERATION(absl::Status MergeTensors(const MergeTensor* states, int64_t num_states,
                                               int64_t num_rows, int64_t num_heads, int head_dim,
                                               float to_natural, const MergedTensor& merged,
                                               GpuStream stream))

#endif  // WAVEKV_CUDA_MERGE_TENSORS_H_
