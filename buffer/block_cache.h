// The block cache of the fast tier: which blocks lie in which slots, for whom, and which give way.
#ifndef WAVEKV_BUFFER_BLOCK_CACHE_H_
#define WAVEKV_BUFFER_BLOCK_CACHE_H_

#include <array>
#include <atomic>
#include <bit>
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
// others do, and never holds more than its ceiling. In between, who has most of
//   (slots beyond the floor) / (weight * max(0.05, recent hit ratio))
// gives way, so that slots go where they are read again, and a tenant that scans gives way first.
struct CacheShare {
  int64_t floor_slots = 0;
  int64_t ceiling_slots = 0;  // 0: all
  double weight = 1.0;
};

struct CacheTenantStats {
  int64_t slots_used = 0;
  int64_t hits_total = 0;  // these two as CountLookups was told
  int64_t misses_total = 0;
  // Of about the last 64 thousand look-ups; a new tenant's begins at 1 and takes some thousands to
  // tell.
  double recent_hit_ratio = 0.0;
  int64_t admissions_total = 0;
  // Blocks that found no slot: all are pinned, used by the step itself, or others' floors.
  int64_t rejections_total = 0;
  int64_t evictions_by_ceiling_total = 0;   // its own blocks, for its own
  int64_t evictions_by_pressure_total = 0;  // its blocks, for anybody's, as all slots were in use
  int64_t evictions_by_share_total = 0;     // its blocks, as SetShare lowered its ceiling
};

// Blocks of sealed clusters in slots of one size. The backing tier has all of them, so that a block
// may be dropped at any time, and is never changed.
//
//   Look-up, in a step:    Pin each block; attend to the pinned ones in place and Release them,
//                          read the others into memory of the step's own.
//   Admission, behind it:  Admit what was read, CountLookups.
//
// A step sees the same bytes whether they lie in a slot or come from the backing tier, so the cache
// changes no result. Nothing allocates after Create and AddTenant. A slot costs 36 bytes besides
// its own and a block of a table 4, with LRU (other policies: MakePolicySlots); a tenant a few
// hundred.
//
// A hit costs two atomic operations on its slot's counter and one store, no lock: the replacement
// policy learns of a use when it names the slot as its victim, and then the slot stays (so LRU
// orders slots by when that happened, like a clock; docs/wave_buffer.md, "Policies").
//
// Step numbers tell steps apart, no more: take them from a counter, which may wrap.
//
// Invariants: slots in use + free slots = slots; slots in use is the sum over the tenants; no
// tenant is above its ceiling (but see SetShare); none within its floor loses a slot to another; a
// pinned slot keeps its block. Threads: safe, but for tables, whose creator says when they go.
class BlockCache {
 public:
  using TenantId = uint32_t;

  static constexpr uint32_t kNoSlot = BlockTable::kNoSlot;

  struct Options {
    SlotMemoryOptions memory;
    ReplacementKind replacement = ReplacementKind::kLru;
  };

  // A block that was not found, with its bytes from the backing tier, slot_bytes of them.
  struct Missed {
    BlockTable* table = nullptr;
    int64_t block = 0;
    const std::byte* data = nullptr;
  };

  // INVALID_ARGUMENT or RESOURCE_EXHAUSTED, as the memory's.
  static absl::StatusOr<std::unique_ptr<BlockCache>> Create(const Options& options);

  // INVALID_ARGUMENT for a negative floor or weight, or a ceiling below the floor;
  // RESOURCE_EXHAUSTED when the floors of all tenants exceed the slots.
  absl::StatusOr<TenantId> AddTenant(const CacheShare& share);
  // Errors as AddTenant's, which change nothing. Blocks beyond the new ceiling are evicted at once,
  // but for those that are pinned or just being admitted; while these are more than the ceiling,
  // nothing of the tenant is admitted, and every Admit of a block of it first evicts, down to the
  // ceiling, what can go by then. What it holds never grows beyond max(ceiling, what it held).
  absl::Status SetShare(TenantId tenant, const CacheShare& share);
  // REQUIRES: none of its tables has a block here; no call names it any more.
  void RemoveTenant(TenantId tenant);

  // The block's slot, pinned until Release and used by `step`; kNoSlot when it is in none.
  // Lock-free.
  uint32_t Pin(const BlockTable& table, int64_t block, uint32_t step) {
    const uint32_t slot = table.slot(block);
    if (slot == kNoSlot) return kNoSlot;
    std::atomic<int32_t>& pins = uses_[slot].pins;
    // The slot may have got another block before it was pinned, never after.
    if (pins.fetch_add(1, std::memory_order_acquire) < 0 || table.slot(block) != slot) {
      pins.fetch_sub(1, std::memory_order_release);
      return kNoSlot;
    }
    uses_[slot].stamp.store(step, std::memory_order_relaxed);
    return slot;
  }
  // Hints for those who pin many blocks, and know them beforehand: what Pin will look at first, and
  // a while later the rest.
  void PrefetchUse(uint32_t slot) const { __builtin_prefetch(&uses_[slot], /*rw=*/1); }
  void PrefetchUse(const BlockTable& table, int64_t block) const {
    const uint32_t slot = table.slot(block);
    if (slot != kNoSlot) PrefetchUse(slot);
  }
  // Lets go of slots, once for each time they were pinned.
  void Release(absl::Span<const uint32_t> slots);
  // The bytes of a pinned slot.
  const std::byte* data(uint32_t slot) const { return memory_->slot(slot); }

  // Copies missed blocks into slots, in this order, each on its table's tenant's account, as far as
  // slots can be had; those that lie in one by now are passed over. They are used by `step`.
  //
  // What a step has used does not give way to its own misses: steps read their layers in a circle,
  // and where one reads more than there is room for, the least recently used block is the next to
  // be read (docs/wave_buffer.md, "Policies"). A tenant all of whose blocks the step has used is
  // not asked again in that step.
  void Admit(uint32_t step, absl::Span<const Missed> missed);

  // Look-ups of the tenant's blocks, for its statistics and its recent hit ratio. Lock-free.
  void CountLookups(TenantId tenant, int64_t hits, int64_t misses);

  // Forgets the table's blocks and zeroes their slots. REQUIRES: no call uses the table, and none
  // of its blocks is pinned.
  void Drop(BlockTable& table);

  const SlotMemory& memory() const { return *memory_; }
  int64_t num_free() const;
  // Slots that somebody pins: a walk through all of them, while they change.
  int64_t num_pinned() const;
  CacheTenantStats stats(TenantId tenant) const;

  // For tests: FAILED_PRECONDITION naming the invariant that does not hold. REQUIRES: no other
  // call, nothing pinned.
  absl::Status Audit() const;

 private:
  // Added to the pins of a slot that has no block to pin. Look-ups that come too late add and
  // subtract one there too, so it is a region rather than a value.
  static constexpr int32_t kClosed = -(1 << 30);
  static constexpr int kGroup = 32;  // slots that are filled or zeroed between two locks

  // What look-ups touch of a slot.
  struct Use {
    std::atomic<int32_t> pins{0};
    std::atomic<uint32_t> stamp{0};  // the step that used it last
  };

  // What lies in a slot that is in use. Guarded by mutex_.
  struct Owner {
    BlockTable* table = nullptr;
    uint32_t block = 0;
    uint32_t seen_stamp = 0;  // the slot's when its policy last heard of it
  };

  struct alignas(64) Tenant {
    // Without the lock.
    std::atomic<int64_t> hits_total{0};
    std::atomic<int64_t> misses_total{0};
    std::atomic<uint64_t> recent{0};  // RecentLookups, packed

    // Guarded by mutex_. First what the search for a payer looks at, in a cache line.
    alignas(64) bool is_open = false;
    double price = 0.0;  // of a slot beyond the floor; Payer's
    // Where the last search of its slots was in vain:
    uint64_t stuck_admission = 0;        // some were pinned
    std::optional<uint32_t> stuck_step;  // and will be, as the step has used them all
    CacheShare share;
    CacheTenantStats stats;   // but for what is counted above
    int64_t limit_slots = 0;  // its ceiling, or what it holds since SetShare put that lower
    std::unique_ptr<ReplacementPolicy> policy;
  };

  enum class Reason { kCeiling, kPressure, kShare };

  // For whom slots are looked for: a call of Admit or SetShare.
  struct Search {
    std::optional<uint32_t> step;
    uint64_t admission = 0;
    bool has_prices = false;  // since the lock was taken
  };

  BlockCache(std::unique_ptr<SlotMemory> memory, std::shared_ptr<PolicySlots> policy_slots);

  // Tenants lie in chunks of 64, 128, 256, .. that never move, so that those who hold no lock find
  // theirs while others are added.
  static constexpr int kFirstChunkBits = 6;
  static constexpr int kChunks = 32 - kFirstChunkBits;
  Tenant& tenant(TenantId id) const {
    const uint64_t at = uint64_t{id} + (1 << kFirstChunkBits);
    const int chunk = std::bit_width(at) - 1 - kFirstChunkBits;
    return chunks_[chunk].load(std::memory_order_acquire)[at - (uint64_t{1} << (chunk + 6))];
  }
  absl::Status CheckShare(const CacheShare& share) const;
  absl::Status CheckFloor(int64_t floor_slots, int64_t others_slots) const;

  // All with mutex_ held.
  //
  // A slot for one more block of the tenant, closed and of nobody; kNoSlot when none can be had.
  uint32_t TakeSlot(TenantId id, Search& search);
  uint32_t EvictFrom(Tenant& owner, const Search& search, Reason reason);
  // The tenant that gives way to `id` next, skipping those that cannot.
  std::optional<TenantId> Payer(TenantId id, Search& search);
  void Loses(Tenant& owner);  // one slot

  // Without: zeroes closed slots of nobody, and makes them free.
  void Free(absl::Span<const uint32_t> slots);

  const std::unique_ptr<SlotMemory> memory_;
  // Per slot. Apart from the owners, so that look-ups touch eight bytes a slot.
  const std::unique_ptr<Use[]> uses_;

  mutable std::mutex mutex_;
  // Guarded by mutex_, but for the tenants' counters.
  const std::unique_ptr<Owner[]> owners_;
  const std::shared_ptr<PolicySlots> policy_slots_;
  std::vector<uint32_t> free_;  // a stack
  std::array<std::atomic<Tenant*>, kChunks> chunks_{};
  std::vector<std::unique_ptr<Tenant[]>> chunk_memory_;
  TenantId num_tenants_ = 0;  // places that have been used, open or not
  int64_t floors_ = 0;
  uint64_t num_admissions_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BLOCK_CACHE_H_
