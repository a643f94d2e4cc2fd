#include "storage/arena.h"

#include <utility>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {

absl::StatusOr<std::shared_ptr<Arena>> Arena::Create(int64_t bytes, int prefault_threads) {
  const int64_t num_blocks = bytes / kBlockBytes;
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(
        fmt::format("arena_bytes must be at least {}, got {}", kBlockBytes, bytes));
  }
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<ArenaMemory> memory,
                          MapHostMemory(bytes, prefault_threads));
  return Create(std::move(memory));
}

std::shared_ptr<Arena> Arena::Create(std::unique_ptr<ArenaMemory> memory) {
  return std::shared_ptr<Arena>(new Arena(std::move(memory)));
}

Arena::Arena(std::unique_ptr<ArenaMemory> memory)
    : memory_(std::move(memory)),
      base_(memory_->data()),
      num_blocks_(memory_->bytes() / kBlockBytes) {
  InsertFreeRun(0, num_blocks_);
}

std::byte* Arena::Allocate(int64_t bytes) {
  const int64_t count = RoundUp(bytes) / kBlockBytes;
  std::lock_guard<std::mutex> lock(mutex_);
  if (failures_left_ > 0 && allocations_until_failure_-- <= 0) {
    --failures_left_;
    return nullptr;
  }
  const auto best = free_by_count_.lower_bound({count, 0});
  if (best == free_by_count_.end()) return nullptr;
  const auto [run_count, first] = *best;
  free_by_count_.erase(best);
  free_by_first_.erase(first);
  if (run_count > count) {
    free_by_first_.emplace(first + count, run_count - count);
    free_by_count_.emplace(run_count - count, first + count);
  }
  used_blocks_ += count;
  return base_ + first * kBlockBytes;
}

void Arena::Free(std::byte* data, int64_t bytes) {
  const int64_t count = RoundUp(bytes) / kBlockBytes;
  memory_->Zero(data, count * kBlockBytes);
  std::lock_guard<std::mutex> lock(mutex_);
  used_blocks_ -= count;
  InsertFreeRun((data - base_) / kBlockBytes, count);
}

void Arena::ReleasePages() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (used_blocks_ != 0 || !memory_->ReleasePages()) return;
  free_by_first_.clear();
  free_by_count_.clear();
}

void Arena::FailAllocations(int64_t after, int64_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  allocations_until_failure_ = after;
  failures_left_ = count;
}

bool Arena::FreeBlocksAreZero() const {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [first, count] : free_by_first_) {
    if (!memory_->IsZero(base_ + first * kBlockBytes, count * kBlockBytes)) return false;
  }
  return true;
}

void Arena::InsertFreeRun(int64_t first, int64_t count) {
  auto next = free_by_first_.lower_bound(first);
  if (next != free_by_first_.end() && first + count == next->first) {
    count += next->second;
    free_by_count_.erase({next->second, next->first});
    next = free_by_first_.erase(next);
  }
  if (next != free_by_first_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == first) {
      free_by_count_.erase({previous->second, previous->first});
      first = previous->first;
      count += previous->second;
      free_by_first_.erase(previous);
    }
  }
  free_by_first_.emplace(first, count);
  free_by_count_.emplace(count, first);
}

int64_t Arena::used_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return used_blocks_ * kBlockBytes;
}

int64_t Arena::largest_free_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return free_by_count_.empty() ? 0 : free_by_count_.rbegin()->first * kBlockBytes;
}

}  // namespace wavekv
