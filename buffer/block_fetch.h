// What one call reads of the tiers: blocks that are pinned in the cache, and others that come from
// the backing file while the call computes.
#ifndef WAVEKV_BUFFER_BLOCK_FETCH_H_
#define WAVEKV_BUFFER_BLOCK_FETCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "buffer/block_cache.h"
#include "buffer/block_reader.h"
#include "buffer/tiered_rows.h"

namespace wavekv {

class RowTiers;

// In order: Find every block; Request those that it did not have, as far as there is room, and
// again whenever some was released; Start, to have them read while the caller computes; Wait for
// them; Release each when it has been read. What is pinned stays so until Unpin or the lease ends;
// what has come is then admitted to the cache by another thread.
//
// A block has one buffer however often it is requested, and comes once for each waiter. Room: when
// nothing is held there is some for RowTiersOptions::fetch_blocks_min at least.
// Allocates nothing, unless more is pinned than in any call before.
// Threads: one at a time, but for Find.
class BlockFetch {
 public:
  using Buffer = uint32_t;

  // A requested block that has come, or failed to.
  struct Arrival {
    uint32_t waiter = 0;
    Buffer buffer = 0;
    const std::byte* data = nullptr;  // nullptr: failed, as failure() says
  };

  enum class Requested : uint8_t { kComes, kNoRoom };

  // Look-ups are made in lists, each by one thread at a time and of one tenant's blocks; list
  // `number` follows those before it.
  void AddList(size_t number);
  // The block in its slot, pinned; nullptr when it is in none.
  const std::byte* Find(const TieredRows& rows, int64_t block, size_t list);
  // Hints that the block will be looked up: the first well before the second.
  static void PrefetchSlot(const TieredRows& rows, int64_t block) {
    rows.table().PrefetchSlot(block);
  }
  void PrefetchUse(const TieredRows& rows, int64_t block) const;

  // kComes: one of the next calls of Wait tells `waiter`.
  Requested Request(const TieredRows& rows, int64_t block, uint32_t waiter);

  // Hands to the device what has been requested. Does not block.
  void Start();

  // Blocks that have come since the last call: at least one unless `deadline` passes first or none
  // is to come. The span lives until the next call.
  absl::Span<const Arrival> Wait(BlockReader::TimePoint deadline);

  // One waiter of the buffer is done with it.
  void Release(Buffer buffer);

  // The first failure since the lease began; OK when there is none.
  const absl::Status& failure() const { return failure_; }

  // Lets go of all pinned blocks.
  void Unpin();

  // Keeps rows alive that the lease has requested, until they are admitted.
  void Keep(std::shared_ptr<const void> owner) { owners_.push_back(std::move(owner)); }
  // Whether something was requested that is not yet admitted.
  bool has_leftovers() const { return !by_block_.empty(); }

  // Look-ups since the lease began.
  int64_t num_hits() const;
  int64_t num_misses() const;
  int64_t bytes_read() const { return bytes_read_; }

 private:
  friend class FetchLease;
  friend class RowTiers;

  static constexpr int32_t kNone = -1;

  enum class State : uint8_t { kFree, kComing, kHere, kFailed };

  struct Held {
    State state = State::kFree;
    const TieredRows* rows = nullptr;
    int64_t block = 0;
    int32_t num_users = 0;  // told waiters that have not released it
    int32_t first_waiter = kNone;
  };
  struct Waiter {
    uint32_t waiter = 0;
    int32_t next = kNone;
  };
  struct List {
    std::vector<uint32_t> pinned;  // slots
    uint32_t tenant = 0;
    int64_t num_misses = 0;
  };

  BlockFetch(RowTiers& tiers, absl::Span<std::byte> memory, std::unique_ptr<BlockReader> reader);

  void Begin(uint32_t step);
  // Ends the lease: nothing is waited for or pinned any more.
  void End();
  // In the thread that admits: waits for reads that are still coming, admits all.
  void AdmitAll();

  absl::Span<std::byte> memory(Buffer buffer) const;
  void Tell(Buffer buffer, uint32_t waiter);
  void Settle(Buffer buffer, const absl::Status& status);
  // Admits blocks that nobody uses and frees their buffers.
  void Recycle();

  RowTiers& tiers_;
  const absl::Span<std::byte> memory_;
  const std::unique_ptr<BlockReader> reader_;
  uint32_t step_ = 0;

  std::vector<List> lists_;  // the first num_lists_; the others are kept for their memory
  size_t num_lists_ = 0;
  std::vector<Held> held_;  // by buffer
  std::vector<Buffer> free_;
  absl::flat_hash_map<std::pair<const TieredRows*, int64_t>, Buffer> by_block_;
  std::vector<Waiter> waiters_;
  int32_t first_free_waiter_ = kNone;
  std::vector<BlockRead> to_submit_;
  std::vector<Arrival> arrivals_;
  bool arrivals_returned_ = false;
  std::vector<BlockCompletion> completions_;
  std::vector<BlockCache::Missed> missed_;
  std::vector<std::shared_ptr<const void>> owners_;
  absl::Status failure_;

  // Of lists that were unpinned.
  int64_t num_hits_ = 0;
  int64_t num_misses_ = 0;
  int64_t bytes_read_ = 0;
};

// Move-only; the destructor lets go of everything and gives the fetch back.
class FetchLease {
 public:
  FetchLease() = default;
  FetchLease(FetchLease&& other) noexcept
      : tiers_(std::exchange(other.tiers_, nullptr)),
        fetch_(std::exchange(other.fetch_, nullptr)) {}
  FetchLease& operator=(FetchLease&&) = delete;
  ~FetchLease();

  BlockFetch* get() const { return fetch_; }
  BlockFetch* operator->() const { return fetch_; }

 private:
  friend class RowTiers;
  FetchLease(RowTiers* tiers, BlockFetch* fetch) : tiers_(tiers), fetch_(fetch) {}

  RowTiers* tiers_ = nullptr;
  BlockFetch* fetch_ = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BLOCK_FETCH_H_
