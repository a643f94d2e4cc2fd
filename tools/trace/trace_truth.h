// Exact attention over recorded rows: what an evaluation compares with.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_TRUTH_H_
#define WAVEKV_TOOLS_TRACE_TRACE_TRUTH_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/trace/trace_head.h"

namespace wavekv {

// Who asks. Positions [0, visible_end) are seen; of these, [indexed_begin, indexed_end) are indexed
// and the others in the steady zone.
struct TruthQuery {
  int64_t visible_end = 0;  // at least 1
  int64_t indexed_begin = 0;
  int64_t indexed_end = 0;
};

// Softmax attention in double precision.
struct Truth {
  std::vector<double> outputs;         // [num_queries, head_dim_v]
  std::vector<double> lses;            // [num_queries], natural, over all visible tokens
  std::vector<double> steady_masses;   // [num_queries]: their share of the softmax
  std::vector<double> indexed_masses;  // [num_queries]: what is left
  // [num_queries, ks]: the k-th largest logit of the indexed tokens, the smallest when there are
  // fewer than k, +infinity when there is none.
  std::vector<double> thresholds;
};

// queries: [num_queries, head_dim_k], scaled. keys and values have as many rows as the furthest
// query sees. Cost: num_queries * visible_end * (head_dim_k + head_dim_v) multiplications on
// matrices. INVALID_ARGUMENT naming the tensor that holds NaN or infinity.
// Results do not depend on num_threads.
absl::StatusOr<Truth> ComputeTruth(const RowsView& keys, const RowsView& values,
                                   const std::vector<double>& queries,
                                   absl::Span<const TruthQuery> asked, absl::Span<const int64_t> ks,
                                   int num_threads);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_TRUTH_H_
