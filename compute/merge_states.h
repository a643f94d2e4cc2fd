#ifndef WAVEKV_COMPUTE_MERGE_STATES_H_
#define WAVEKV_COMPUTE_MERGE_STATES_H_

#include <cstdint>

#include "absl/types/span.h"

namespace wavekv {

// An attention state: the normalised output of a subset of tokens and the natural log of its mass.
// States of disjoint subsets merge into the state of their union:
//   lse = ln sum_s e^{lse_s},  output = sum_s e^{lse_s - lse} output_s.
// The empty state is output 0, lse -infinity.
struct AttentionState {
  const float* output = nullptr;  // [num_queries, head_dim_v]
  const float* lse = nullptr;     // [num_queries]
};

// Merges in the order of `states`. output and lse may be those of states[0].
struct MergeStatesTask {
  absl::Span<const AttentionState> states;
  int num_queries = 0;
  int head_dim_v = 0;
  float* output = nullptr;
  float* lse = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_MERGE_STATES_H_
