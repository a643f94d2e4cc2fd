// Evaluates recorded attention: what wavekv would have read for it, and how far its answers would
// have been from exact ones.
//
// A head is one kv head of one layer with the query heads of its GQA group. It is stored in an
// engine of its own through the public API and asked the recorded queries; the truth is naive
// attention over the recorded values in double precision, so rounding of stored values counts as
// an error. docs/trace_format.md defines format and metrics.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_EVAL_H_
#define WAVEKV_TOOLS_TRACE_TRACE_EVAL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/trace/trace_head.h"
#include "tools/trace/trace_summary.h"
#include "wavekv/engine.h"
#include "wavekv/options.h"

namespace wavekv {

struct TraceEvalOptions {
  std::vector<AttendOptions> budgets = {AttendOptions()};
  std::vector<int64_t> recall_ks = {100};
  // Queries to ask, numbers in [0, num_queries); all, when left out. The index is that of the whole
  // recording in any case: it is built before the first of all queries.
  std::optional<std::vector<int64_t>> queries;
  double scale_factor = 1.0;  // on top of the head's softmax scale: sharper attention
  // As stored; left out: as recorded, fp32 where keys and values differ.
  std::optional<DType> kv_dtype;
  IndexOptions index;
  // false: tokens [sink_tokens, first query position - window_tokens + 1) are indexed, in multiples
  // of 64; all others are in the steady zone of every query. true: segments are also sealed behind
  // the first query, and in multiples of index.update_tokens, as while an engine decodes.
  bool grow = false;
  // With grow: tokens behind so many are generated ones, appended one by one, also before the first
  // query; left out: those behind the first query.
  std::optional<int64_t> prompt_tokens;
  Device device = Device::kCpu;  // of the engine; the truth is computed on the processor
  int num_threads = 0;           // 0: one per processor; results do not depend on it
  // Called from time to time with the number of queries answered since the last call.
  std::function<void(int64_t)> on_progress;
  // Called for each query that is answered, in ascending order of their positions, with its number,
  // that of the budget, all sealed clusters as the query finds them, and what it reads of them.
  // Budgets come one after another, each for a batch of queries.
  std::function<void(int64_t query, size_t budget, const std::vector<RankedCluster>& sealed,
                     const RetrievedTokens& retrieved)>
      on_retrieved;
};

// One result per budget. INVALID_ARGUMENT naming what does not fit (a shape, a position, an option,
// a tensor with NaN); UNIMPLEMENTED for a head_dim beyond the engine's; RESOURCE_EXHAUSTED when
// the engine's arena cannot be had; UNIMPLEMENTED or UNAVAILABLE without the device.
// Deterministic.
//
// Memory: about three times the head's bytes, whatever the number of queries.
absl::StatusOr<std::vector<TraceSamples>> EvaluateHead(const TraceHead& head,
                                                       const TraceEvalOptions& options);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_EVAL_H_
