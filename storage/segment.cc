#include "storage/segment.h"

#include <utility>

#include "storage/status_macros.h"

namespace wavekv {

absl::StatusOr<std::shared_ptr<RowChunk>> RowChunk::Create(MemoryAccount& account,
                                                           const ModelSpec& model, int64_t capacity,
                                                           int64_t position_begin) {
  WAVEKV_ASSIGN_OR_RETURN(Extent extent, account.Allocate(capacity * model.token_bytes()));
  return std::shared_ptr<RowChunk>(
      new RowChunk(std::move(extent), model, capacity, position_begin));
}

RowChunk::RowChunk(Extent extent, const ModelSpec& model, int64_t capacity, int64_t position_begin)
    : extent_(std::move(extent)),
      capacity_(capacity),
      position_begin_(position_begin),
      key_row_bytes_(model.key_row_bytes()),
      value_row_bytes_(model.value_row_bytes()) {}

bool RowChunk::Claim(int64_t row, int64_t count) {
  return claimed_.compare_exchange_strong(row, row + count);
}

void RowChunk::Unclaim(int64_t row, int64_t count) {
  int64_t end = row + count;
  claimed_.compare_exchange_strong(end, row);
}

std::byte* RowChunk::keys(int kv_head, int64_t row) const {
  return extent_.data() + kv_head * capacity_ * (key_row_bytes_ + value_row_bytes_) +
         row * key_row_bytes_;
}

std::byte* RowChunk::values(int kv_head, int64_t row) const {
  return keys(kv_head, capacity_) + row * value_row_bytes_;
}

KvRange RowChunk::Range(int kv_head, int64_t count) const {
  return {keys(kv_head, 0), values(kv_head, 0), count, position_begin_, nullptr};
}

Segment::Pin Segment::Read() const {
  Pin pin;
  ReadTo(pin);
  return pin;
}

void Segment::ReadTo(Pin& pin) const {
  pin.sealed.reset();
  pin.chunks.clear();
  std::lock_guard<std::mutex> lock(mutex_);
  pin.sealed = sealed_;
  if (sealed_ == nullptr) pin.chunks = chunks_;
}

Segment::State Segment::state() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return state_;
}

void Segment::Seal(std::shared_ptr<const SealedSegment> sealed) {
  RowChunks released;  // freed, and zeroed, outside the lock
  std::lock_guard<std::mutex> lock(mutex_);
  state_ = State::kSealed;
  sealed_ = std::move(sealed);
  released.swap(chunks_);
}

void Segment::MarkUnsealable() {
  std::lock_guard<std::mutex> lock(mutex_);
  state_ = State::kUnsealable;
}

bool Segment::RetryUnsealable() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (state_ != State::kUnsealable) return false;
  state_ = State::kPending;
  return true;
}

bool Segment::BeginMerge() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_merging_ || !merged_.expired()) return false;
  is_merging_ = true;
  return true;
}

void Segment::EndMerge(const std::shared_ptr<Segment>& merged) {
  std::lock_guard<std::mutex> lock(mutex_);
  is_merging_ = false;
  merged_ = merged;
}

bool Segment::is_merging() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return is_merging_;
}

std::shared_ptr<Segment> Segment::merged() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return merged_.lock();
}

absl::Status ForEachRow(
    const SealedHead& head,
    absl::FunctionRef<void(int64_t token, const std::byte* key, const std::byte* value)> use) {
  const ClusterIndex& index = head.index;
  const int64_t key_bytes = index.key_row_bytes();
  const int64_t value_bytes = index.value_row_bytes();
  if (head.rows != nullptr) {
    std::vector<std::byte> keys(index.num_tokens * key_bytes);
    std::vector<std::byte> values(index.num_tokens * value_bytes);
    WAVEKV_RETURN_IF_ERROR(head.rows->Copy(keys.data(), values.data()));
    for (int64_t i = 0; i < index.num_tokens; ++i) {
      use(index.positions[i], keys.data() + i * key_bytes, values.data() + i * value_bytes);
    }
    return absl::OkStatus();
  }
  for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
    const KvRange range = index.cluster_range(cluster);
    for (int64_t i = 0; i < range.num_tokens; ++i) {
      use(range.positions[i], range.keys + i * key_bytes, range.values + i * value_bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
