#include "api/step_view.h"

namespace wavekv {

void PinLayer(const StoredSequence& sequence, int layer, SequenceView& view) {
  view.contents = sequence.layer(layer).Snapshot();
  view.pins.clear();
  for (const auto& segment : view.contents.segments) view.pins.push_back(segment->Read());
}

void Unpin(SequenceView& view) {
  view.contents = {};
  view.pins.clear();
}

}  // namespace wavekv
