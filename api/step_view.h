// What a step sees of the sequences of its batch: pinned for the length of one call.
#ifndef WAVEKV_API_STEP_VIEW_H_
#define WAVEKV_API_STEP_VIEW_H_

#include <cstdint>
#include <vector>

#include "storage/cluster_index.h"
#include "storage/kv_range.h"
#include "storage/layer_cache.h"
#include "storage/tenant_store.h"

namespace wavekv {

// One layer of one sequence, and which rows of the batch ask about it.
struct SequenceView {
  LayerContents contents;
  std::vector<Segment::Pin> pins;  // of contents.segments
  int64_t first_row = 0;           // in the batch
  int64_t num_rows = 0;
  bool causal = true;

  // Row r of the sequence sees the positions before this one.
  int64_t VisibleEnd(int64_t row) const {
    if (!causal) return contents.length;
    const int64_t end = contents.length - num_rows + 1 + row;
    return end > 0 ? end : 0;
  }

  // A sealed segment that the row sees as a whole can be answered by zones; all else is attended
  // exactly.
  bool AnswersByZones(size_t segment, int64_t visible_end) const {
    return pins[segment].sealed != nullptr && contents.segments[segment]->end() <= visible_end;
  }
};

// Pins the layer. Copies its list of segments and chunks, references only.
void PinLayer(const StoredSequence& sequence, int layer, SequenceView& view);
void Unpin(SequenceView& view);

// Appends the ranges of one kv head that begin before visible_end: the sinks, the segments, the
// tail, in this order. leave_out_zones: without the segments that AnswersByZones.
void AppendRanges(const SequenceView& view, int kv_head, int64_t visible_end, bool leave_out_zones,
                  std::vector<KvRange>& ranges);

// A run of consecutive ranges that one task attends.
struct RangePiece {
  size_t first = 0;
  size_t count = 0;
  int64_t num_tokens = 0;
  int64_t position_begin = 0;  // no token of the piece stands before it
};

// Divides ranges[first, end) into pieces of about kPieceTokens tokens: a function of the data
// alone, so that results do not depend on the number of threads. At least one piece, which may be
// empty.
inline constexpr int64_t kPieceTokens = 4096;
void SplitRanges(const std::vector<KvRange>& ranges, size_t first, std::vector<RangePiece>& pieces);

}  // namespace wavekv

#endif  // WAVEKV_API_STEP_VIEW_H_
