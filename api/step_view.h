// What a step sees of the sequences of its batch: pinned for the length of one call.
#ifndef WAVEKV_API_STEP_VIEW_H_
#define WAVEKV_API_STEP_VIEW_H_

#include <cstdint>
#include <vector>

#include "storage/cluster_index.h"
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

// Pins the layer. Copies its list of segments and chunks, references only, to the memory that the
// view's last lists left behind.
void PinLayer(const StoredSequence& sequence, int layer, SequenceView& view);
// Lets go of all that is pinned. Nothing but PinLayer may look at the lists then.
void Unpin(SequenceView& view);

}  // namespace wavekv

#endif  // WAVEKV_API_STEP_VIEW_H_
