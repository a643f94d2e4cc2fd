// The rows that a step attends exactly: where they are, and in which pieces.
#ifndef WAVEKV_API_STEP_ROWS_H_
#define WAVEKV_API_STEP_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "api/step_view.h"
#include "buffer/block_fetch.h"
#include "buffer/tiered_rows.h"
#include "compute/token_bits.h"
#include "storage/kv_range.h"
#include "storage/segment.h"

namespace wavekv {

// Tokens of a piece: as few as keeps the cost of partial states small, so that there is something
// to attend while rows are coming.
inline constexpr int64_t kExactPieceTokens = 1024;
inline constexpr int64_t kZonePieceTokens = 256;

// Consecutive ranges of a group that are attended together, to one partial state of each query.
struct RowPiece {
  size_t first_range = 0;
  size_t num_ranges = 0;
  int64_t num_tokens = 0;
  int64_t position_begin = 0;  // no token of the piece stands before it
  size_t first_missing = 0;    // of its missing parts
  size_t num_missing = 0;
  size_t num_coming = 0;  // of those, not yet here
};

// The rows of some queries of one kv head, cut into pieces by the data alone: neither the number of
// threads nor what lies in which tier changes a result. Rows of a tier are looked up at the end;
// those that are in no slot are missing.
//
// Threads: one at a time; groups are independent.
class RowGroup {
 public:
  // Some tokens of a sealed cluster.
  struct ClusterRun {
    const SealedHead* head = nullptr;
    int64_t cluster = 0;
    int64_t first = 0;  // in the cluster
    int64_t num_tokens = 0;
    // Names the run's first token (the next ones follow) or the run, should it be given up. < 0: it
    // never is.
    int64_t item = -1;
  };

  // A piece ends with the run that brings it to its size.
  void Add(const KvRange& range);
  void Add(const ClusterRun& run);
  // The cluster's tokens that are in the set, where its first has number `first_bit`: each run of
  // neighbours, with the address of each value row in value_rows(). `item` names its first token.
  void AddChosen(const SealedHead& head, int64_t cluster, const TokenBits& chosen,
                 int64_t first_bit, int64_t item);
  // After the last one: at least one piece, which may be empty.
  void End();

  const std::vector<RowPiece>& pieces() const { return pieces_; }
  absl::Span<const KvRange> ranges(const RowPiece& piece) const {
    return absl::MakeConstSpan(ranges_).subspan(piece.first_range, piece.num_ranges);
  }
  size_t num_values() const { return value_rows_.size(); }
  // nullptr for rows that were given up. REQUIRES: all pieces are here or were given up.
  const std::byte* const* value_rows() const { return value_rows_.data(); }
  // Closes the gaps that given up rows left among rows [first, first + count).
  void CompactValues(size_t first, int64_t count);

 private:
  friend class StepRows;

  static constexpr size_t kNone = static_cast<size_t>(-1);

  // Rows of a tier, in one range for each block.
  struct Run {
    const TieredRows* rows = nullptr;
    size_t first_range = 0;
    size_t end_range = 0;
    size_t first_value = kNone;  // in value_rows_, if they are listed
    int64_t item = -1;
  };
  struct LookedUp {
    uint32_t block = 0;
    uint32_t at = 0;  // in the block
    uint32_t range = 0;
    uint32_t run = 0;
    uint32_t first = 0;  // of its tokens in the run
  };
  // Rows in one block that is in no slot.
  struct Missing {
    const TieredRows* rows = nullptr;
    int64_t block = 0;
    int64_t at = 0;  // in the block
    size_t piece = 0;
    size_t range = 0;
    size_t first_value = kNone;  // of its rows in value_rows_, if they are listed
    // Its run.
    size_t first_range = 0;
    size_t end_range = 0;
    int64_t item = -1;
    int64_t first = 0;  // of its tokens in the run
    enum class State : uint8_t { kComing, kHere, kFailed, kDone } state = State::kComing;
    BlockFetch::Buffer buffer = 0;
  };

  void Begin(BlockFetch* fetch, size_t number, int64_t piece_tokens);
  void AddTieredRun(const ClusterRun& run, bool with_values);
  // Adds what a range, or several, have to the open piece, and ends it where it is full.
  void CountRange(int64_t num_tokens, int64_t position_begin);
  void EndPiece();
  void LookUp();
  void ListValues(const std::byte* values, int64_t count, const BlockShape& shape, size_t first);
  // The missing rows are here, for a while: values that are listed are copied.
  void Place(const std::byte* block, const Missing& missing);

  BlockFetch* fetch_ = nullptr;
  size_t number_ = 0;  // of the group
  int64_t piece_tokens_ = 0;
  size_t first_piece_ = 0;  // among those of all groups
  RowPiece open_;
  std::vector<KvRange> ranges_;
  std::vector<RowPiece> pieces_;
  std::vector<const std::byte*> value_rows_;
  std::vector<Run> runs_;
  std::vector<LookedUp> lookups_;  // in the order of ranges
  std::vector<Missing> missing_;
  size_t first_waiter_ = 0;             // the first missing part's number among those of all groups
  std::vector<std::byte> late_values_;  // copies of value rows whose blocks go
  size_t late_values_used_ = 0;
  size_t late_values_needed_ = 0;
};

// All groups of a step, and the reading of what is missing: in the order of groups and pieces, of
// which each can be attended once all of its rows are here.
//
// Threads: one at a time, but that different groups may be filled at once.
class StepRows {
 public:
  // Rows that will not come.
  struct Late {
    int64_t item = 0;
    int64_t first = 0;  // of the run's tokens
    int64_t num_tokens = 0;
  };

  // `fetch` reads tiers, if there are any; it outlives what is added. nullptr where there are some:
  // none of their rows can be had, and none comes.
  void Begin(BlockFetch* fetch);
  // Forgets all rows, and lets go of those that were looked up.
  void Clear();

  // The number of a new group, to be filled and ended.
  size_t AddGroup(int64_t piece_tokens);
  RowGroup& group(size_t i) { return *groups_[i]; }
  const RowGroup& group(size_t i) const { return *groups_[i]; }
  // Numbers the pieces of new groups. REQUIRES: they have ended.
  void EndGroups();

  size_t num_pieces() const { return pieces_.size(); }
  size_t first_piece(size_t group) const { return groups_[group]->first_piece_; }
  const RowPiece& piece(size_t i) const { return pieces_[i].group->pieces_[pieces_[i].number]; }
  bool is_here(size_t piece) const { return this->piece(piece).num_coming == 0; }
  absl::Span<const KvRange> ranges(size_t piece) const {
    return pieces_[piece].group->ranges(this->piece(piece));
  }

  bool has_missing() const { return num_missing_ > 0; }
  // Requests as many missing rows as there is room for and has them read. Does not block.
  void Request();
  // Waits for some. False when none came before the deadline.
  bool Wait(BlockReader::TimePoint deadline);
  // The first read that failed since Begin; OK when none did.
  absl::Status failure() const { return fetch_ == nullptr ? absl::OkStatus() : fetch_->failure(); }
  // The piece has been attended: its rows may go.
  void Release(size_t piece);
  // Whether some of its rows could not be read, and were not given up.
  bool has_failed(size_t piece) const;
  // Gives up rows of the piece: those that could not be read, or all that are not here. `late` gets
  // rows of runs whose values are listed one by one, and of other runs the run.
  void GiveUp(size_t piece, bool failed_only, std::vector<Late>* late);

 private:
  using Missing = RowGroup::Missing;

  struct PieceRef {
    RowGroup* group = nullptr;
    size_t number = 0;
  };

  // The missing part with that number, or nullptr when it was cleared.
  Missing* MissingOf(uint32_t waiter, RowGroup** group);

  BlockFetch* fetch_ = nullptr;
  std::vector<std::unique_ptr<RowGroup>> groups_;  // kept for their memory
  size_t num_groups_ = 0;
  size_t num_numbered_ = 0;  // of the groups
  std::vector<PieceRef> pieces_;
  size_t num_missing_ = 0;
  uint32_t first_waiter_ = 0;  // number of the first missing part: what was cleared may still come
  size_t num_requested_ = 0;
  size_t requested_group_ = 0;  // of the next one
};

// Adds the rows of one kv head that begin before visible_end: the sinks, the segments, the tail, in
// this order. leave_out_zones: without the segments that AnswersByZones.
void AddRows(const SequenceView& view, int kv_head, int64_t visible_end, bool leave_out_zones,
             RowGroup& rows);

}  // namespace wavekv

#endif  // WAVEKV_API_STEP_ROWS_H_
