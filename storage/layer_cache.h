// One layer of one sequence: its tokens, in position order, as sinks, segments and a growing tail.
#ifndef WAVEKV_STORAGE_LAYER_CACHE_H_
#define WAVEKV_STORAGE_LAYER_CACHE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/segment.h"
#include "wavekv/model_spec.h"

namespace wavekv {

// Rows of a growing chunk. Cuts fall on chunk boundaries, so segment lengths are multiples of it.
inline constexpr int64_t kChunkTokens = 64;

// When the tail is cut into segments; the meanings are those of IndexOptions.
struct CutRule {
  int64_t segment_tokens = 8192;
  int64_t update_tokens = 1024;
  int64_t sink_tokens = 4;
  int64_t window_tokens = 64;
  bool merge_segments = true;
};

// The tokens of a layer. A value: copying it shares everything, so a copy is a consistent view that
// stays readable whatever happens to the original.
//
// Positions: sinks hold [0, sink_tokens), segments the runs that follow one another from there, the
// tail all tokens behind the last segment, kChunkTokens a chunk.
struct LayerContents {
  int64_t length = 0;
  std::shared_ptr<RowChunk> sinks;
  std::vector<std::shared_ptr<Segment>> segments;
  RowChunks tail;

  // Lets go of everything but the vectors' memory.
  void Clear() {
    length = 0;
    sinks.reset();
    segments.clear();
    tail.clear();
  }

  int64_t tail_begin(const CutRule& rule) const {
    return segments.empty() ? rule.sink_tokens : segments.back()->end();
  }
};

// Where some of an append's rows go.
struct RowSlice {
  enum class Place : uint8_t {
    kInPlace,  // into the chunk that is last already
    kReplace,  // into a copy of it, because others have claimed its next rows
    kNew,      // into a chunk of its own
  };

  std::shared_ptr<RowChunk> chunk;
  Place place = Place::kNew;
  bool is_sink = false;
  int64_t row = 0;
  int64_t count = 0;
};

// Room for rows that are not yet part of a layer. Destroyed without Commit, it leaves no trace.
class PendingAppend {
 public:
  PendingAppend() = default;
  PendingAppend(PendingAppend&& other) noexcept { *this = std::move(other); }
  PendingAppend& operator=(PendingAppend&& other) noexcept {
    slices_.swap(other.slices_);
    std::swap(first_position_, other.first_position_);
    std::swap(num_rows_, other.num_rows_);
    return *this;
  }
  ~PendingAppend();

  // Of the first row: the length of the layer that the room was claimed in.
  int64_t first_position() const { return first_position_; }
  absl::Span<const RowSlice> slices() const { return slices_; }
  // Appends the rows to a view of the layer that the room was claimed in.
  void ApplyTo(LayerContents& contents) const;

 private:
  friend class LayerCache;
  absl::InlinedVector<RowSlice, 1> slices_;  // a decode row takes one
  int64_t first_position_ = 0;
  int64_t num_rows_ = 0;
};

// Adjacent segments that together are segment_tokens long, in the order of their positions.
using SegmentRun = std::vector<std::shared_ptr<Segment>>;

// Threads: one writer (AppendBytes, PrepareAppend, Commit, Cut, RetryUnsealable, BeginMerges,
// Replace, writer_length); any number of readers (Snapshot, length, TakeUpMerges).
class LayerCache {
 public:
  LayerCache(const ModelSpec& model, const CutRule& rule) : model_(model), rule_(rule) {}

  // Bytes that PrepareAppend allocates for num_rows rows, if no chunk has to be copied.
  int64_t AppendBytes(int64_t num_rows) const;

  // Claims room for num_rows rows behind the last; nothing is visible until they are written and
  // committed. RESOURCE_EXHAUSTED from the account.
  absl::StatusOr<PendingAppend> PrepareAppend(MemoryAccount& account, int64_t num_rows);
  void Commit(PendingAppend append);

  // Closes what the rule says may be closed: whole segments, and while tokens are generated
  // (`decoding`) also multiples of update_tokens. Returns the new segments, for building.
  std::vector<std::shared_ptr<Segment>> Cut(bool decoding);

  // The segments whose last build failed, pending again. A build costs as much when it fails: ask
  // when something may have changed, not at every append.
  std::vector<std::shared_ptr<Segment>> RetryUnsealable();

  // The runs of segments that are to be merged and that nobody merges yet; the caller is to merge
  // them once they are sealed, and to tell their last segments. Which segments form a run follows
  // from their lengths alone: from the first on, neighbours shorter than segment_tokens are taken
  // together until they have exactly that many tokens, and where they would have more the run
  // begins one segment later.
  std::vector<SegmentRun> BeginMerges();

  // Puts merged segments in the place of their runs, as every call that looks at the segments does
  // by itself: for layers that nobody looks at.
  void TakeUpMerges() const;

  LayerContents Snapshot() const;
  // The same, in the memory of `contents`.
  void SnapshotTo(LayerContents& contents) const;
  int64_t length() const;
  // For the writer, without a lock.
  int64_t writer_length() const { return contents_.length; }

  // The first num_tokens tokens of `contents`, a view of this layer; survivors of a sealed segment
  // are copied back into chunks in position order. OUT_OF_RANGE when there are not as many;
  // RESOURCE_EXHAUSTED from the account; UNAVAILABLE or DATA_LOSS when survivors cannot be read.
  absl::StatusOr<LayerContents> PrefixOf(LayerContents contents, MemoryAccount& account,
                                         int64_t num_tokens) const;
  // Of what the layer holds now.
  absl::StatusOr<LayerContents> Prefix(MemoryAccount& account, int64_t num_tokens) const {
    return PrefixOf(Snapshot(), account, num_tokens);
  }

  void Replace(LayerContents contents);

 private:
  absl::StatusOr<RowSlice> PrepareSlice(MemoryAccount& account, int64_t position,
                                        int64_t rows_left) const;
  absl::StatusOr<RowChunks> Unseal(MemoryAccount& account, const Segment& segment,
                                   const SealedSegment& sealed, int64_t num_tokens) const;

  const ModelSpec model_;
  const CutRule rule_;

  // REQUIRES: mutex_ is held. Returns what was replaced, for the caller to let go of afterwards.
  std::vector<std::shared_ptr<Segment>> TakeUpMergesLocked() const;
  // As LayerContents::tail_begin, of what only the writer changes.
  int64_t tail_begin() const;

  mutable std::mutex mutex_;
  // Written under mutex_ by the one writer, who may read it without, but for the segments: merged
  // ones may be taken up by anybody.
  mutable LayerContents contents_;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_LAYER_CACHE_H_
