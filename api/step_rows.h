// The rows that a step attends exactly: where they are, and in which pieces.
#ifndef WAVEKV_API_STEP_ROWS_H_
#define WAVEKV_API_STEP_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "api/step_view.h"
#include "buffer/block_fetch.h"
#include "storage/kv_range.h"
#include "storage/segment.h"

namespace wavekv {

// Consecutive ranges that are attended together, to one partial state of each query.
struct RowPiece {
  size_t first_range = 0;
  size_t num_ranges = 0;
  int64_t num_tokens = 0;
  int64_t position_begin = 0;  // no token of the piece stands before it
  size_t first_missing = 0;    // of its missing parts
  size_t num_missing = 0;
  size_t num_coming = 0;  // of those, not yet here
};

// A group of consecutive pieces.
struct PieceGroup {
  size_t first_piece = 0;
  size_t num_pieces = 0;
  int64_t first_part = 0;  // where their partial states lie
};

// Ranges are added group by group and cut into pieces by the data alone: neither the number of
// threads nor what lies in which tier changes a result. Rows of a tier are looked up as they are
// added. Those that are in no slot are missing: they are requested in the order of their pieces,
// and a piece can be attended once all of its rows are here.
//
// Threads: one at a time.
class StepRows {
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
  // Rows that will not come.
  struct Late {
    int64_t item = 0;
    int64_t first = 0;  // of the run's tokens
    int64_t num_tokens = 0;
  };

  // `fetch` reads tiers, if there are any; it outlives what is added. nullptr where there are some:
  // none of their rows can be had, and none comes.
  void Begin(BlockFetch* fetch);
  // Forgets all rows.
  void Clear();

  // A piece ends with the run that brings it to piece_tokens.
  void BeginGroup(int64_t piece_tokens);
  void Add(const KvRange& range);
  void Add(const ClusterRun& run) { AddRun(run, /*with_values=*/false); }
  // And lists the address of each value row in value_rows(), good until Clear.
  void AddWithValues(const ClusterRun& run) { AddRun(run, /*with_values=*/true); }
  // At least one piece, which may be empty.
  PieceGroup EndGroup();

  size_t num_pieces() const { return pieces_.size(); }
  const RowPiece& piece(size_t i) const { return pieces_[i]; }
  bool is_here(size_t piece) const { return pieces_[piece].num_coming == 0; }
  absl::Span<const KvRange> ranges(size_t piece) const {
    return absl::MakeConstSpan(ranges_).subspan(pieces_[piece].first_range,
                                                pieces_[piece].num_ranges);
  }
  size_t num_values() const { return value_rows_.size(); }
  // nullptr for rows that were given up. REQUIRES: all pieces are here or were given up.
  const std::byte* const* value_rows() const { return value_rows_.data(); }
  // Closes the gaps that given up rows left among rows [first, first + count).
  void CompactValues(size_t first, int64_t count);

  bool has_missing() const { return !missing_.empty(); }
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
  static constexpr size_t kNone = static_cast<size_t>(-1);

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

  void AddRun(const ClusterRun& run, bool with_values);
  void AddTieredRun(const ClusterRun& run, bool with_values);
  void EndRun();
  void EndPiece();
  void Place(const std::byte* block, const Missing& missing);

  BlockFetch* fetch_ = nullptr;
  int64_t piece_tokens_ = 0;
  size_t first_piece_of_group_ = 0;
  RowPiece open_;
  std::vector<KvRange> ranges_;
  std::vector<RowPiece> pieces_;
  std::vector<const std::byte*> value_rows_;
  std::vector<Missing> missing_;
  size_t num_requested_ = 0;
  // Of missing_[0] among the waiters of this lease: what was cleared may still come.
  uint32_t first_waiter_ = 0;
  std::vector<std::byte> late_values_;  // copies of value rows whose blocks go
  size_t late_values_used_ = 0;
  size_t late_values_needed_ = 0;
  // The block that was looked up last.
  const TieredRows* last_rows_ = nullptr;
  int64_t last_block_ = -1;
  const std::byte* last_data_ = nullptr;
};

// Tokens of a piece: as few as keeps the cost of partial states small, so that there is something
// to attend while rows are coming.
inline constexpr int64_t kExactPieceTokens = 1024;
inline constexpr int64_t kZonePieceTokens = 256;

// Adds the rows of one kv head that begin before visible_end: the sinks, the segments, the tail, in
// this order. leave_out_zones: without the segments that AnswersByZones.
void AddRows(const SequenceView& view, int kv_head, int64_t visible_end, bool leave_out_zones,
             StepRows& rows);

}  // namespace wavekv

#endif  // WAVEKV_API_STEP_ROWS_H_
