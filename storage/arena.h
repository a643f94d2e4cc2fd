// The one piece of memory that holds all KV bytes and indexes of an engine.
#ifndef WAVEKV_STORAGE_ARENA_H_
#define WAVEKV_STORAGE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "absl/status/statusor.h"
#include "storage/arena_memory.h"

namespace wavekv {

// Hands out runs of consecutive blocks of a piece of memory that is reserved once. Blocks are one
// OS page, so a run is aligned for vector loads and for direct I/O; adjacent free runs coalesce.
//
// Units: bytes; requests are rounded up to blocks.
// Invariants: used_bytes() + free_bytes() == bytes(); a free block is all zeros.
// Threads: safe.
class Arena {
 public:
  static constexpr int64_t kBlockBytes = 4096;

  // RESOURCE_EXHAUSTED when the address space cannot be had; bytes >= kBlockBytes. Pages are
  // touched by `prefault_threads` threads, or by whoever uses them first.
  static absl::StatusOr<std::shared_ptr<Arena>> Create(int64_t bytes, int prefault_threads = 0);
  // Of whole blocks of this memory, at least one.
  static std::shared_ptr<Arena> Create(std::unique_ptr<ArenaMemory> memory);

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // The smallest free run that fits; nullptr when there is none. `bytes` > 0.
  std::byte* Allocate(int64_t bytes);

  // Zeroes the run and takes it back. `data` came from Allocate(bytes).
  void Free(std::byte* data, int64_t bytes);

  // Gives the memory back to the system if nothing is allocated: stale handles may keep the arena
  // itself alive much longer than its engine. Where that takes the addresses with it nothing is
  // allocated any more.
  void ReleasePages();

  // For tests. After `after` more allocations, the next `count` find no room.
  void FailAllocations(int64_t after, int64_t count);
  // For tests. Reads all free blocks.
  bool FreeBlocksAreZero() const;

  ArenaMemory& memory() const { return *memory_; }

  int64_t bytes() const { return num_blocks_ * kBlockBytes; }
  int64_t used_bytes() const;
  int64_t free_bytes() const { return bytes() - used_bytes(); }
  int64_t largest_free_bytes() const;

  static int64_t RoundUp(int64_t bytes) {
    return (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  }

 private:
  explicit Arena(std::unique_ptr<ArenaMemory> memory);

  void InsertFreeRun(int64_t first, int64_t count);

  const std::unique_ptr<ArenaMemory> memory_;
  std::byte* const base_;
  const int64_t num_blocks_;

  mutable std::mutex mutex_;
  // Guarded by mutex_. The same runs twice: by first block to coalesce, by length to find the best
  // fit.
  std::map<int64_t, int64_t> free_by_first_;
  std::set<std::pair<int64_t, int64_t>> free_by_count_;
  int64_t used_blocks_ = 0;
  int64_t allocations_until_failure_ = 0;
  int64_t failures_left_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_ARENA_H_
