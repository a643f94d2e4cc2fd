#include "api/step_view.h"

namespace wavekv {

void PinLayer(const StoredSequence& sequence, int layer, SequenceView& view) {
  sequence.layer(layer).SnapshotTo(view.contents);
  view.pins.resize(view.contents.segments.size());
  for (size_t i = 0; i < view.pins.size(); ++i) view.contents.segments[i]->ReadTo(view.pins[i]);
}

void Unpin(SequenceView& view) {
  view.contents.Clear();
  for (Segment::Pin& pin : view.pins) {
    pin.sealed.reset();
    pin.chunks.clear();
  }
}

}  // namespace wavekv
