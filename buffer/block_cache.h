// The block cache of the fast tier: which blocks lie in which slots, for whom, and which give way.
#ifndef WAVEKV_BUFFER_BLOCK_CACHE_H_
#define WAVEKV_BUFFER_BLOCK_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "buffer/block_table.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_memory.h"

namespace wavekv {

// What a tenant may hold of the fast tier, in slots. It keeps what is within its floor whatever the
// others do, never holds more than its ceiling, and in between gives way in proportion to
// (slots beyond the floor) / weight.
struct CacheShare {
  int64_t floor_slots = 0;
  int64_t ceiling_slots = 0;  // 0: all
  double weight = 1.0;
};

struct CacheTenantStats {
  int64_t slots_used = 0;
  int64_t hits_total = 0;
  int64_t misses_total = 0;
  int64_t admissions_total = 0;
  int64_t rejections_total =
      0;  // blocks that found no slot: all are pinned, used by the step itself, or others' floors
  int64_t evictions_by_ceiling_total = 0;   // its own blocks, for its own
  int64_t evictions_by_pressure_total = 0;  // its blocks, for anybody's, as all slots were in use
};

// Blocks of sealed clusters in slots of one size. The backing tier has all of them, so that a block
// may be dropped at any time, and is never changed.
//
//   Look-up, in a step:    Pin each block; attend to the pinned ones in place, read the others
//                          into memory of the step's own.
//   Admission, behind it:  Finish, with the blocks that were pinned and those that were read.
//
// A step sees the same bytes whether they lie in a slot or come from the backing tier, so the cache
// changes no result. Nothing allocates after Create and AddTenant. Look-up takes no lock.
//
// Invariants: slots in use + free slots = slots; slots in use is the sum over the tenants; no
// tenant is above its ceiling; none within its floor loses a slot to another; a pinned slot keeps
// its block. Threads: safe, but for tables, whose creator says when they go.
class BlockCache {
 public:
  using TenantId = uint32_t;

  struct Options {
    SlotMemoryOptions memory;
    ReplacementKind replacement = ReplacementKind::kLru;
    int tenants_max = 64;
  };

  // A block of a table.
  struct Block {
    BlockTable* table = nullptr;
    int64_t number = 0;
  };
  // A block that was found, held in its slot until Finish.
  struct Pinned {
    Block block;
    uint32_t slot = 0;
  };
  // A block that was not, with its bytes from the backing tier, slot_bytes of them.
  struct Missed {
    Block block;
    const std::byte* data = nullptr;
  };

  // INVALID_ARGUMENT or RESOURCE_EXHAUSTED, as the memory's.
  static absl::StatusOr<std::unique_ptr<BlockCache>> Create(const Options& options);

  // INVALID_ARGUMENT for a negative floor or weight, or a ceiling below the floor;
  // RESOURCE_EXHAUSTED when the floors of all tenants exceed the slots, or there are tenants_max.
  absl::StatusOr<TenantId> AddTenant(const CacheShare& share);
  // REQUIRES: none of its tables has a block here.
  void RemoveTenant(TenantId tenant);

  // The block's slot, pinned; nothing when it is in none. Lock-free.
  std::optional<Pinned> Pin(const Block& block);
  const std::byte* data(const Pinned& pinned) const { return memory_->slot(pinned.slot); }

  // Ends the use of the cache in one layer of step `step`, a number that no other step has: the
  // pinned blocks have been used, in this order, and are let go of; the missed ones are admitted,
  // in this order, as far as slots can be had. All are the tenant's.
  //
  // What a step has used does not give way to its own misses: steps read their layers in a circle,
  // and where one reads more than there is room for, the least recently used block is the next to
  // be read (docs/wave_buffer.md, "Policies").
  void Finish(TenantId tenant, uint64_t step, absl::Span<const Pinned> pinned,
              absl::Span<const Missed> missed);
  // Lets go of blocks without having used them: the step failed.
  void Release(absl::Span<const Pinned> pinned);

  // Forgets the table's blocks and zeroes their slots. REQUIRES: no call uses the table, and none
  // of its blocks is pinned.
  void Drop(TenantId tenant, BlockTable& table);

  const SlotMemory& memory() const { return *memory_; }
  int64_t num_free() const;
  CacheTenantStats stats(TenantId tenant) const;

  // For tests: FAILED_PRECONDITION naming the invariant that does not hold. REQUIRES: no other
  // call.
  absl::Status Audit() const;

 private:
  // Pins of a slot: a number of them, or that it has no block to pin.
  static constexpr int32_t kClosed = -1;

  struct Slot {
    std::atomic<int32_t> pins{kClosed};
    // Guarded by mutex_ as long as the slot has an owner that is not pinned.
    TenantId tenant = 0;
    Block block;
    uint64_t step = 0;  // that used it last
  };

  struct Tenant {
    bool is_open = false;
    CacheShare share;
    CacheTenantStats stats;
    std::unique_ptr<ReplacementPolicy> policy;
  };

  BlockCache(const Options& options, std::unique_ptr<SlotMemory> memory);

  // A slot for one more block of the tenant, closed and of nobody; nothing when none can be had.
  std::optional<uint32_t> TakeSlot(TenantId tenant, uint64_t step);
  std::optional<uint32_t> EvictFrom(TenantId tenant, uint64_t step);
  // The tenant that gives way to `tenant` next, skipping those that cannot.
  std::optional<TenantId> Payer(TenantId tenant) const;

  const ReplacementKind replacement_;
  const std::unique_ptr<SlotMemory> memory_;
  const std::unique_ptr<Slot[]> slots_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<uint32_t> free_;  // a stack
  std::vector<Tenant> tenants_;
  std::vector<bool> cannot_pay_;  // as tenants_: no block of it may go, in this admission
  int64_t floors_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BLOCK_CACHE_H_
