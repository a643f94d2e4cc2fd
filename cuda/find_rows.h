// Which tokens a block attends, and where their rows stand.
#ifndef WAVEKV_CUDA_FIND_ROWS_H_
#define WAVEKV_CUDA_FIND_ROWS_H_

#include "cuda/attend_rows.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

inline constexpr int64_t kNeverVisible = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kAlwaysVisible = std::numeric_limits<int64_t>::min();

struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
};

// The tokens of a split: equal parts but for rounding to what a block takes at once.
WAVEKV_DEVICE TokenSpan TokensOfSplit(int64_t num_tokens, int num_splits, int split) {
  constexpr int64_t kTokensAtOnce = 64;
  const int64_t of_each = (num_tokens + num_splits - 1) / num_splits;
  const int64_t per_split = (of_each + kTokensAtOnce - 1) / kTokensAtOnce * kTokensAtOnce;
  return {Min(split * per_split, num_tokens), Min((split + 1) * per_split, num_tokens)};
}

// A block's part of a task, in its shared memory: it is needed with every token, and registers are
// dear.
struct AttendPart {
  GpuAttendTask task;
  int64_t tokens_of_ranges;
  TokenSpan tokens;
};

// All threads call.
WAVEKV_DEVICE const AttendPart* SharePart(const GpuAttendTask& task, int num_splits, int split,
                                          SharedMemory& shared) {
  AttendPart* const part = shared.Take<AttendPart>(1);
  if (ThreadIndex() == 0) {
    part->task = task;
    part->tokens_of_ranges = task.num_ranges > 0 ? task.range_begins[task.num_ranges] : 0;
    const int64_t num_rows = task.num_rows != nullptr ? *task.num_rows : 0;
    part->tokens = TokensOfSplit(part->tokens_of_ranges + num_rows, num_splits, split);
  }
  SyncBlock();
  return part;
}

// Finds tokens' rows for a thread that asks in ascending order: within a range this costs no
// search, and in the next ones a short one.
class RowFinder {
 public:
  struct Row {
    TokenRow at;
    int64_t position = 0;  // kAlwaysVisible where no query has a mask
  };

  WAVEKV_DEVICE RowFinder(const AttendPart* part, int64_t key_bytes, int64_t value_bytes)
      : part_(part), key_bytes_(key_bytes), value_bytes_(value_bytes) {}

  // REQUIRES: token is one of the part's, and not below the one before.
  WAVEKV_DEVICE Row Find(int64_t token) {
    const GpuAttendTask& task = part_->task;
    if (token >= part_->tokens_of_ranges) {
      return {task.rows[token - part_->tokens_of_ranges], kAlwaysVisible};
    }
    if (token >= range_end_) EnterRangeOf(token);
    const KvRange& range = task.ranges[range_];
    const int64_t index = token - range_begin_;
    Row row = {{range.keys + index * key_bytes_, range.values + index * value_bytes_},
               kAlwaysVisible};
    if (task.visible_end != nullptr) {
      row.position =
          range.position_begin + (range.positions == nullptr ? index : range.positions[index]);
    }
    return row;
  }

 private:
  // Of the ranges from range_ on, the last one that begins at or before the token is not empty.
  WAVEKV_DEVICE void EnterRangeOf(int64_t token) {
    const int64_t num_ranges = part_->task.num_ranges;
    const int64_t* const range_begins = part_->task.range_begins;
    int64_t low = range_, step = 1;
    while (low + step < num_ranges && range_begins[low + step] <= token) {
      low += step;
      step *= 2;
    }
    int64_t high = Min(low + step, num_ranges);
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      if (range_begins[middle] <= token) {
        low = middle;
      } else {
        high = middle;
      }
    }
    range_ = low;
    range_begin_ = range_begins[low];
    range_end_ = range_begins[low + 1];
  }

  const AttendPart* part_;
  int64_t key_bytes_;
  int64_t value_bytes_;
  int64_t range_ = 0;
  int64_t range_begin_ = 0;
  int64_t range_end_ = 0;
};

// Inner products of finite numbers may overflow; as scores they must have finite differences.
WAVEKV_DEVICE float ClampScore(float score) {
  constexpr float kCeiling = 1e37f;
  return Max(score < kCeiling ? score : kCeiling, -kCeiling);  // NaN too
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_FIND_ROWS_H_
