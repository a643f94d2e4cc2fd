// What the queries of recorded attention read of a head's sealed tokens: the input of studies of
// caches.
#ifndef WAVEKV_TOOLS_TRACE_ACCESS_LOG_H_
#define WAVEKV_TOOLS_TRACE_ACCESS_LOG_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/trace/trace_eval.h"
#include "tools/trace/trace_head.h"
#include "wavekv/engine.h"

namespace wavekv {

// The unit of caching and transfer: so many consecutive tokens of a cluster, of K and V.
struct BlockShape {
  int64_t token_bytes = 0;
  int64_t block_tokens = 0;
  int64_t block_bytes = 0;

  int64_t num_blocks(int64_t num_tokens) const {
    return (num_tokens + block_tokens - 1) / block_tokens;
  }
};

// Blocks of 4096 bytes, or of one token where that is more; a multiple of 512 bytes, as devices
// transfer.
BlockShape BlockShapeOf(int64_t token_bytes);

// The bytes of K and V of a token as EvaluateHead stores them.
int64_t StoredTokenBytes(const TraceHead& head, const TraceEvalOptions& options);

// What the queries of one head read with one budget.
struct HeadAccesses {
  struct Segment {
    int64_t first_token = 0;
    std::vector<int64_t> cluster_tokens;
  };
  struct TokenRead {
    uint32_t segment = 0;  // in `segments`
    uint32_t cluster = 0;  // of the segment
    uint32_t place = 0;    // of the token in the cluster
  };
  struct Query {
    int64_t number = 0;  // in the recording
    int64_t position = 0;
    std::vector<TokenRead> reads;  // cluster by cluster, best cluster first
  };

  // All that any query found sealed. With TraceEvalOptions::grow, also those that others replaced.
  std::vector<Segment> segments;
  std::vector<Query> queries;  // by position
};

// Collects what one head's queries read, a HeadAccesses for each budget.
class AccessRecorder {
 public:
  // Sets options.on_retrieved, which calls the recorder: it must outlive the evaluation.
  AccessRecorder(const TraceHead& head, TraceEvalOptions& options);
  AccessRecorder(const AccessRecorder&) = delete;
  AccessRecorder& operator=(const AccessRecorder&) = delete;

  std::vector<HeadAccesses> Take() { return std::move(accesses_); }

 private:
  void Add(int64_t query, size_t budget, const std::vector<RankedCluster>& sealed,
           const RetrievedTokens& retrieved);

  const TraceHead& head_;
  std::vector<HeadAccesses> accesses_;
};

// Errors as EvaluateHead.
absl::StatusOr<std::vector<HeadAccesses>> RecordAccesses(const TraceHead& head,
                                                         TraceEvalOptions options);

// A head's lines of the format in docs/trace_format.md ("Accesses"), after a line that names it.
std::string FormatAccesses(const HeadAccesses& accesses, const BlockShape& shape);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_ACCESS_LOG_H_
