// Segments: contiguous runs of positions of one layer, all kv heads; growing until they are sealed.
#ifndef WAVEKV_STORAGE_SEGMENT_H_
#define WAVEKV_STORAGE_SEGMENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/cluster_index.h"
#include "storage/kv_range.h"
#include "storage/memory_account.h"
#include "storage/sealed_rows.h"
#include "wavekv/model_spec.h"

namespace wavekv {

// A fixed number of rows in the order of appending: the unit in which growing tokens are stored and
// shared.
//
// Layout: per kv head [capacity, head_dim_k] keys, then [capacity, head_dim_v] values.
// Invariant: a row is written at most once. Sequences that share a chunk see different numbers of
// its rows; the first to append claims the rows behind the last claimed one, every other copies
// what it sees. Threads: any number of readers of rows that were published to them; claims are
// atomic.
class RowChunk {
 public:
  static absl::StatusOr<std::shared_ptr<RowChunk>> Create(MemoryAccount& account,
                                                          const ModelSpec& model, int64_t capacity,
                                                          int64_t position_begin);

  // True when rows [row, row + count) are now this caller's to write.
  bool Claim(int64_t row, int64_t count);
  // Takes back a claim whose rows were never published.
  void Unclaim(int64_t row, int64_t count);

  // Where row `row` of the head's keys and values lies.
  std::byte* keys(int kv_head, int64_t row) const;
  std::byte* values(int kv_head, int64_t row) const;

  // Rows [0, count) of one head.
  KvRange Range(int kv_head, int64_t count) const;

  int64_t capacity() const { return capacity_; }
  int64_t bytes() const { return extent_.bytes(); }
  int64_t position_begin() const { return position_begin_; }

 private:
  RowChunk(Extent extent, const ModelSpec& model, int64_t capacity, int64_t position_begin);

  const Extent extent_;
  const int64_t capacity_;
  const int64_t position_begin_;
  const int64_t key_row_bytes_;
  const int64_t value_row_bytes_;
  std::atomic<int64_t> claimed_{0};
};

using RowChunks = std::vector<std::shared_ptr<RowChunk>>;

// One kv head of a sealed segment: an extent formatted as cluster_index.h says. Its rows are its
// last section or, where there is a tier for them, there: index.rows is nullptr then, and the
// extent ends before them.
struct SealedHead {
  Extent extent;
  ClusterIndex index;
  std::unique_ptr<const SealedRows> rows;  // nullptr: in the extent
};

// Calls use() for every token in cluster order: its position within the segment, its key and its
// value. UNAVAILABLE or DATA_LOSS, before any call, when rows of another tier cannot be read.
absl::Status ForEachRow(
    const SealedHead& head,
    absl::FunctionRef<void(int64_t token, const std::byte* key, const std::byte* value)> use);

// Who pays for the sealed form of a segment.
struct SealTarget {
  std::shared_ptr<MemoryAccount> account;
  std::shared_ptr<RowTier> row_tier;  // nullptr: rows stay in the arena
};

// Immutable; freed when the last sequence, build or running call lets go of it.
struct SealedSegment {
  std::vector<SealedHead> heads;  // one per kv head
};

// A closed run of positions [begin, end), shared by all sequences that have it as a prefix. Its
// tokens are in row chunks and attended exactly until Seal() replaces them by clusters.
//
// Threads: safe. A reader pins what it saw and keeps it however long the call takes.
class Segment {
 public:
  enum class State : uint8_t {
    kPending,     // waits for a build thread, or is being built
    kUnsealable,  // a build failed for want of memory
    kSealed,
  };

  Segment(int64_t begin, int64_t end, RowChunks chunks)
      : begin_(begin), end_(end), chunks_(std::move(chunks)) {}

  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  int64_t num_tokens() const { return end_ - begin_; }

  // One of the two: the sealed form, or the chunks.
  struct Pin {
    std::shared_ptr<const SealedSegment> sealed;
    RowChunks chunks;
  };
  Pin Read() const;
  // The same, in the memory of `pin`.
  void ReadTo(Pin& pin) const;

  State state() const;
  void Seal(std::shared_ptr<const SealedSegment> sealed);
  void MarkUnsealable();
  // True when the caller is the one to queue it again.
  bool RetryUnsealable();

  // A run of sealed segments may be replaced by one segment of the same tokens. What comes before a
  // segment is the same in all sequences that hold it, so the last segment of a run knows of it for
  // all of them. Nothing keeps the replacement alive but the sequences that have taken it up.
  //
  // True when the caller is the one to merge the run that ends here.
  bool BeginMerge();
  // nullptr: it could not be done, and may be begun again.
  void EndMerge(const std::shared_ptr<Segment>& merged);
  bool is_merging() const;
  // The replacement of the run that ends here, or nullptr.
  std::shared_ptr<Segment> merged() const;

 private:
  const int64_t begin_;
  const int64_t end_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  State state_ = State::kPending;
  RowChunks chunks_;
  std::shared_ptr<const SealedSegment> sealed_;
  bool is_merging_ = false;
  std::weak_ptr<Segment> merged_;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_SEGMENT_H_
