#include "storage/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "fmt/format.h"

namespace wavekv {

absl::StatusOr<std::shared_ptr<Arena>> Arena::Create(int64_t bytes) {
  const int64_t num_blocks = bytes / kBlockBytes;
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(
        fmt::format("arena_bytes must be at least {}, got {}", kBlockBytes, bytes));
  }
  void* base = mmap(nullptr, num_blocks * kBlockBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("arena_bytes: cannot map {} bytes: {}", bytes, std::strerror(errno)));
  }
  // Random reads of cluster rows miss the TLB on small pages; where huge pages are off this is a
  // no-op.
  madvise(base, num_blocks * kBlockBytes, MADV_HUGEPAGE);
  return std::shared_ptr<Arena>(new Arena(static_cast<std::byte*>(base), num_blocks));
}

Arena::Arena(std::byte* base, int64_t num_blocks) : base_(base), num_blocks_(num_blocks) {
  InsertFreeRun(0, num_blocks);
}

Arena::~Arena() { munmap(base_, num_blocks_ * kBlockBytes); }

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
  std::memset(data, 0, count * kBlockBytes);
  std::lock_guard<std::mutex> lock(mutex_);
  used_blocks_ -= count;
  InsertFreeRun((data - base_) / kBlockBytes, count);
}

void Arena::ReleasePages() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (used_blocks_ == 0) madvise(base_, num_blocks_ * kBlockBytes, MADV_DONTNEED);
}

void Arena::FailAllocations(int64_t after, int64_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  allocations_until_failure_ = after;
  failures_left_ = count;
}

bool Arena::FreeBlocksAreZero() const {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [first, count] : free_by_first_) {
    const std::byte* const begin = base_ + first * kBlockBytes;
    if (begin[0] != std::byte{0} || std::memcmp(begin, begin + 1, count * kBlockBytes - 1) != 0) {
      return false;
    }
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
