#include "api/step_view.h"

#include <algorithm>
#include <limits>

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

void AppendRanges(const SequenceView& view, int kv_head, int64_t visible_end, bool leave_out_zones,
                  std::vector<KvRange>& ranges) {
  const int64_t end = std::min(visible_end, view.contents.length);
  const auto add_chunk = [&](const RowChunk& chunk) {
    const int64_t count = std::min(chunk.capacity(), end - chunk.position_begin());
    if (count > 0) ranges.push_back(chunk.Range(kv_head, count));
  };
  if (view.contents.sinks != nullptr) add_chunk(*view.contents.sinks);
  for (size_t i = 0; i < view.pins.size(); ++i) {
    if (view.contents.segments[i]->begin() >= end) break;
    if (leave_out_zones && view.AnswersByZones(i, visible_end)) continue;
    if (view.pins[i].sealed != nullptr) {
      const ClusterIndex& index = view.pins[i].sealed->heads[kv_head].index;
      for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
        ranges.push_back(index.cluster_range(cluster));
      }
    } else {
      for (const auto& chunk : view.pins[i].chunks) add_chunk(*chunk);
    }
  }
  for (const auto& chunk : view.contents.tail) add_chunk(*chunk);
}

void SplitRanges(const std::vector<KvRange>& ranges, size_t first,
                 std::vector<RangePiece>& pieces) {
  constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();
  RangePiece piece{first, 0, 0, kNowhere};
  for (size_t i = first; i < ranges.size(); ++i) {
    if (piece.num_tokens >= kPieceTokens) {
      pieces.push_back(piece);
      piece = {i, 0, 0, kNowhere};
    }
    ++piece.count;
    piece.num_tokens += ranges[i].num_tokens;
    piece.position_begin = std::min(piece.position_begin, ranges[i].position_begin);
  }
  pieces.push_back(piece);
}

}  // namespace wavekv
