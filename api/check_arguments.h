// The checks that every call makes of its tensors and batches before anything is touched.
#ifndef WAVEKV_API_CHECK_ARGUMENTS_H_
#define WAVEKV_API_CHECK_ARGUMENTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "wavekv/tensor_view.h"
#include "wavekv/types.h"

namespace wavekv {

// Shape that a tensor argument must have; `name` is what messages call it.
struct ExpectedTensor {
  const char* name;
  int64_t num_rows;
  int64_t num_heads;
  int64_t head_dim;
  bool device_too = false;  // may lie in a device's memory
};

// INVALID_ARGUMENT for a wrong shape or dtype, a null or misaligned pointer, a stride that is too
// small or overflows; UNIMPLEMENTED for device memory. What is written to must also keep all its
// rows and heads apart: tasks write them at the same time.
absl::Status CheckTensor(const ExpectedTensor& expected, const TensorView& tensor);
absl::Status CheckTensor(const ExpectedTensor& expected, const MutableTensorView& tensor);

// The same for numbers per query head; data == nullptr passes.
absl::Status CheckPerHead(const char* name, int64_t num_rows, int64_t num_heads,
                          const PerHeadView& view);

// INVALID_ARGUMENT when one lies in a device's memory and the other does not.
absl::Status CheckSameMemory(const char* name, Memory memory, const char* other_name, Memory other);

// All that wavekv::MergeStates (api/merge_states.h) asks but for the numbers.
absl::Status CheckMergeArguments(absl::Span<const TensorView> outputs,
                                 absl::Span<const PerHeadView> lses, LseBase base,
                                 const MutableTensorView& output, const PerHeadView& lse,
                                 bool device_too);

// cu_seqlens has num_sequences + 1 entries, starts at 0 and does not decrease.
absl::Status CheckCuSeqlens(absl::Span<const int32_t> cu_seqlens, int64_t num_sequences);

}  // namespace wavekv

#endif  // WAVEKV_API_CHECK_ARGUMENTS_H_
