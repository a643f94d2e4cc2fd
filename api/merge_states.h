// Merging attention states across shards, devices or libraries.
#ifndef WAVEKV_API_MERGE_STATES_H_
#define WAVEKV_API_MERGE_STATES_H_

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "wavekv/export.h"
#include "wavekv/tensor_view.h"
#include "wavekv/types.h"

namespace wavekv {

// The attention state of the union of disjoint token subsets, merged in the order given:
//   lse = log sum_s base^lse_s,  output = sum_s base^(lse_s - lse) output_s.
//
// Shapes: outputs[s] and output [num_rows, num_heads, head_dim], lses[s] and lse [num_rows,
// num_heads], all in `base`. output and lse may be those of state 0. An lse of -infinity marks the
// empty state; if all are empty the result is output 0 and lse -infinity. Errors: INVALID_ARGUMENT
// for no states, differing shapes, null pointers, an lse that is NaN or +infinity.
WAVEKV_EXPORT absl::Status MergeStates(absl::Span<const TensorView> outputs,
                                       absl::Span<const PerHeadView> lses, LseBase base,
                                       const MutableTensorView& output, const PerHeadView& lse);

}  // namespace wavekv

#endif  // WAVEKV_API_MERGE_STATES_H_
