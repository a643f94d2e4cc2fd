#include "buffer/block_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// A tenant that never hits counts as one that hits this often, so that it gets a little.
constexpr double kHitRatioMin = 0.05;

// Hits among a tenant's last look-ups: beyond the window both numbers are halved.
struct RecentLookups {
  static constexpr uint64_t kWindow = 1 << 16;
  // What a new tenant begins with, all of them hits: else it would give way before it can hit.
  static constexpr uint64_t kBenefit = 1 << 12;

  uint64_t hits = kBenefit;
  uint64_t all = kBenefit;

  static RecentLookups Unpack(uint64_t packed) { return {packed >> 32, packed & 0xffffffff}; }
  uint64_t Pack() const { return hits << 32 | all; }
  double ratio() const { return static_cast<double>(hits) / static_cast<double>(all); }

  void Add(uint64_t num_hits, uint64_t num_misses) {
    hits += num_hits;
    all += num_hits + num_misses;
    while (all > kWindow) {
      hits /= 2;
      all /= 2;
    }
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockCache>> BlockCache::Create(const Options& options) {
  if (options.memory.num_slots > kPolicySlotsMax) {
    return absl::InvalidArgumentError(fmt::format("num_slots must be at most {}, got {}",
                                                  kPolicySlotsMax, options.memory.num_slots));
  }
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<SlotMemory> memory, SlotMemory::Create(options.memory));
  try {
    WAVEKV_ASSIGN_OR_RETURN(std::shared_ptr<PolicySlots> policy_slots,
                            MakePolicySlots(options.replacement, options.memory.num_slots));
    return std::unique_ptr<BlockCache>(new BlockCache(std::move(memory), std::move(policy_slots)));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        fmt::format("no memory for the bookkeeping of {} slots", options.memory.num_slots));
  }
}

BlockCache::BlockCache(std::unique_ptr<SlotMemory> memory,
                       std::shared_ptr<PolicySlots> policy_slots)
    : memory_(std::move(memory)),
      uses_(std::make_unique<Use[]>(memory_->num_slots())),
      owners_(std::make_unique<Owner[]>(memory_->num_slots())),
      policy_slots_(std::move(policy_slots)) {
  free_.reserve(memory_->num_slots());
  // The lowest slots are taken first.
  for (int64_t i = memory_->num_slots(); i > 0; --i) {
    uses_[i - 1].pins.store(kClosed, std::memory_order_relaxed);
    free_.push_back(static_cast<uint32_t>(i - 1));
  }
}

absl::Status BlockCache::CheckShare(const CacheShare& share) const {
  if (share.floor_slots < 0 || share.ceiling_slots < 0 ||
      (share.ceiling_slots > 0 && share.ceiling_slots < share.floor_slots)) {
    return absl::InvalidArgumentError(fmt::format(
        "a floor must be at least 0 and not above the ceiling, got {} slots and {} slots",
        share.floor_slots, share.ceiling_slots));
  }
  if (!(share.weight > 0.0) || !std::isfinite(share.weight)) {
    return absl::InvalidArgumentError(
        fmt::format("weight must be finite and above 0, got {}", share.weight));
  }
  return absl::OkStatus();
}

absl::Status BlockCache::CheckFloor(int64_t floor_slots, int64_t others_slots) const {
  if (floor_slots <= memory_->num_slots() - others_slots) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("a floor of {} slots: {} of {} slots are reserved for others", floor_slots,
                  others_slots, memory_->num_slots()));
}

absl::StatusOr<BlockCache::TenantId> BlockCache::AddTenant(const CacheShare& share) {
  WAVEKV_RETURN_IF_ERROR(CheckShare(share));
  std::lock_guard<std::mutex> lock(mutex_);
  WAVEKV_RETURN_IF_ERROR(CheckFloor(share.floor_slots, floors_));
  TenantId id = 0;
  while (id < num_tenants_ && tenant(id).is_open) ++id;
  if (id == num_tenants_) {
    const size_t num_chunks = chunk_memory_.size();
    const uint64_t room = ((uint64_t{1} << num_chunks) - 1) << kFirstChunkBits;
    if (id == room) {
      if (num_chunks == kChunks) {
        return absl::ResourceExhaustedError(fmt::format("the cache has {} tenants", id));
      }
      chunk_memory_.push_back(
          std::make_unique<Tenant[]>(uint64_t{1} << (num_chunks + kFirstChunkBits)));
      chunks_[num_chunks].store(chunk_memory_.back().get(), std::memory_order_release);
    }
    ++num_tenants_;
  }
  floors_ += share.floor_slots;
  Tenant& added = tenant(id);
  added.hits_total.store(0, std::memory_order_relaxed);
  added.misses_total.store(0, std::memory_order_relaxed);
  added.recent.store(RecentLookups().Pack(), std::memory_order_relaxed);
  added.is_open = true;
  added.share = share;
  added.stats = {};
  added.limit_slots = share.ceiling_slots;
  added.policy = MakeReplacementPolicy(policy_slots_);
  added.stuck_step.reset();
  added.stuck_admission = 0;
  return id;
}

absl::Status BlockCache::SetShare(TenantId id, const CacheShare& share) {
  WAVEKV_RETURN_IF_ERROR(CheckShare(share));
  Search search;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Tenant& owner = tenant(id);
    WAVEKV_RETURN_IF_ERROR(CheckFloor(share.floor_slots, floors_ - owner.share.floor_slots));
    floors_ += share.floor_slots - owner.share.floor_slots;
    owner.share = share;
    owner.limit_slots =
        share.ceiling_slots == 0 ? 0 : std::max(share.ceiling_slots, owner.stats.slots_used);
    search.admission = ++num_admissions_;
  }
  while (true) {
    std::array<uint32_t, kGroup> evicted;
    size_t count = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Tenant& owner = tenant(id);
      while (count < kGroup && owner.share.ceiling_slots > 0 &&
             owner.stats.slots_used > owner.share.ceiling_slots) {
        const uint32_t slot = EvictFrom(owner, search, Reason::kShare);
        if (slot == kNoSlot) break;
        evicted[count++] = slot;
      }
    }
    Free({evicted.data(), count});
    if (count < kGroup) return absl::OkStatus();
  }
}

void BlockCache::RemoveTenant(TenantId id) {
  std::lock_guard<std::mutex> lock(mutex_);
  Tenant& removed = tenant(id);
  floors_ -= removed.share.floor_slots;
  removed.is_open = false;
  removed.share = {};
  removed.policy.reset();
}

void BlockCache::Release(absl::Span<const uint32_t> slots) {
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (i + kAhead < slots.size()) PrefetchUse(slots[i + kAhead]);
    uses_[slots[i]].pins.fetch_sub(1, std::memory_order_release);
  }
}

void BlockCache::CountLookups(TenantId id, int64_t hits, int64_t misses) {
  Tenant& counted = tenant(id);
  counted.hits_total.fetch_add(hits, std::memory_order_relaxed);
  counted.misses_total.fetch_add(misses, std::memory_order_relaxed);
  uint64_t packed = counted.recent.load(std::memory_order_relaxed);
  RecentLookups recent;
  do {
    recent = RecentLookups::Unpack(packed);
    recent.Add(hits, misses);
  } while (!counted.recent.compare_exchange_weak(packed, recent.Pack(), std::memory_order_relaxed));
}

void BlockCache::Admit(uint32_t step, absl::Span<const Missed> missed) {
  Search search{.step = step, .admission = 0};
  for (size_t begin = 0; begin < missed.size(); begin += kGroup) {
    const absl::Span<const Missed> group = missed.subspan(begin, kGroup);
    std::array<uint32_t, kGroup> slots;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (search.admission == 0) search.admission = ++num_admissions_;
      search.has_prices = false;
      for (size_t i = 0; i < group.size(); ++i) {
        const Missed& miss = group[i];
        slots[i] = kNoSlot;
        // Another step may have brought it.
        if (miss.table->slot(miss.block) != kNoSlot) continue;
        Tenant& owner = tenant(miss.table->tenant());
        const uint32_t slot = TakeSlot(miss.table->tenant(), search);
        if (slot == kNoSlot) {
          ++owner.stats.rejections_total;
          continue;
        }
        slots[i] = slot;
        owners_[slot] = {miss.table, static_cast<uint32_t>(miss.block), step};
        uses_[slot].stamp.store(step, std::memory_order_relaxed);
        owner.policy->Insert(slot, miss.table->key(miss.block));
        ++owner.stats.slots_used;
        ++owner.stats.admissions_total;
        // Known from here on, so that nobody brings it twice; closed until its bytes are there.
        miss.table->slots_[miss.block].store(slot, std::memory_order_release);
      }
    }
    for (size_t i = 0; i < group.size(); ++i) {
      if (slots[i] == kNoSlot) continue;
      std::memcpy(memory_->slot(slots[i]), group[i].data, memory_->slot_bytes());
      uses_[slots[i]].pins.fetch_sub(kClosed, std::memory_order_release);
    }
  }
}

uint32_t BlockCache::TakeSlot(TenantId id, Search& search) {
  Tenant& owner = tenant(id);
  const int64_t ceiling = owner.share.ceiling_slots;
  if (ceiling > 0 && owner.stats.slots_used >= ceiling) {
    while (true) {
      const bool is_last = owner.stats.slots_used == ceiling;
      const uint32_t slot = EvictFrom(owner, search, is_last ? Reason::kCeiling : Reason::kShare);
      if (is_last || slot == kNoSlot) return slot;
      // Few, those that were pinned when the ceiling came down: so under the lock.
      std::memset(memory_->slot(slot), 0, memory_->slot_bytes());
      free_.push_back(slot);
    }
  }
  if (!free_.empty()) {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  while (const std::optional<TenantId> payer = Payer(id, search)) {
    const uint32_t slot = EvictFrom(tenant(*payer), search, Reason::kPressure);
    if (slot != kNoSlot) return slot;
  }
  return kNoSlot;
}

std::optional<BlockCache::TenantId> BlockCache::Payer(TenantId id, Search& search) {
  if (!search.has_prices) {
    for (TenantId t = 0; t < num_tenants_; ++t) {
      Tenant& other = tenant(t);
      const double ratio =
          RecentLookups::Unpack(other.recent.load(std::memory_order_relaxed)).ratio();
      other.price = 1.0 / (other.share.weight * std::max(kHitRatioMin, ratio));
    }
    search.has_prices = true;
  }
  std::optional<TenantId> payer;
  double most = 0.0;
  for (TenantId t = 0; t < num_tenants_; ++t) {
    const Tenant& other = tenant(t);
    if (!other.is_open || other.stats.slots_used == 0) continue;
    // Its own floor keeps nobody's blocks from giving way to newer ones of the same tenant; the one
    // more that it is about to hold counts.
    const int64_t used = other.stats.slots_used + (t == id ? 1 : 0);
    const auto beyond = static_cast<double>(used - other.share.floor_slots);
    if (t != id && beyond <= 0.0) continue;
    if (other.stuck_admission == search.admission || other.stuck_step == search.step) continue;
    const double excess = beyond * other.price;
    if (!payer.has_value() || excess > most) {
      payer = t;
      most = excess;
    }
  }
  return payer;
}

uint32_t BlockCache::EvictFrom(Tenant& owner, const Search& search, Reason reason) {
  if (owner.stuck_admission == search.admission) return kNoSlot;
  if (search.step.has_value() && owner.stuck_step == search.step) return kNoSlot;
  bool met_pins = false;
  const auto can_evict = [&](uint32_t slot) {
    const bool is_pinned = uses_[slot].pins.load(std::memory_order_acquire) != 0;
    if (uses_[slot].stamp.load(std::memory_order_relaxed) == search.step) return false;
    met_pins |= is_pinned;
    return !is_pinned;
  };
  // What was used since the policy heard of it goes back. Each slot does so once, unless steps use
  // it again in this moment; the bound ends that race.
  int64_t passes_left = 2 * owner.stats.slots_used;
  while (const std::optional<uint32_t> victim = owner.policy->Victim(can_evict)) {
    Owner& place = owners_[*victim];
    const uint64_t key = place.table->key(place.block);
    const uint32_t stamp = uses_[*victim].stamp.load(std::memory_order_relaxed);
    int32_t none = 0;
    if (stamp != place.seen_stamp && passes_left > 0) {
      --passes_left;
      owner.policy->Insert(*victim, key);
      owner.policy->Touch(*victim);
      place.seen_stamp = stamp;
      continue;
    }
    // A look-up may pin the victim before it is closed, which is rare; then the next one.
    if (!uses_[*victim].pins.compare_exchange_strong(none, kClosed, std::memory_order_acquire)) {
      owner.policy->Insert(*victim, key);
      continue;
    }
    place.table->slots_[place.block].store(kNoSlot, std::memory_order_release);
    place = {};
    Loses(owner);
    switch (reason) {
      case Reason::kCeiling:
        ++owner.stats.evictions_by_ceiling_total;
        break;
      case Reason::kPressure:
        ++owner.stats.evictions_by_pressure_total;
        break;
      case Reason::kShare:
        ++owner.stats.evictions_by_share_total;
        break;
    }
    return *victim;
  }
  owner.stuck_admission = search.admission;
  if (!met_pins) owner.stuck_step = search.step;
  return kNoSlot;
}

void BlockCache::Loses(Tenant& owner) {
  --owner.stats.slots_used;
  if (owner.share.ceiling_slots > 0) {
    owner.limit_slots = std::max(owner.share.ceiling_slots, owner.stats.slots_used);
  }
}

void BlockCache::Free(absl::Span<const uint32_t> slots) {
  if (slots.empty()) return;
  for (const uint32_t slot : slots) {
    std::memset(memory_->slot(slot), 0, memory_->slot_bytes());
    // A late look-up of a block that lay here before may be about to find that it does not any
    // more. It must not find a new one halfway.
    while (uses_[slot].pins.load(std::memory_order_acquire) != kClosed) std::this_thread::yield();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  free_.insert(free_.end(), slots.begin(), slots.end());
}

void BlockCache::Drop(BlockTable& table) {
  for (int64_t block = 0; block < table.num_blocks();) {
    std::array<uint32_t, kGroup> dropped;
    size_t count = 0;
    while (block < table.num_blocks() && table.slot(block) == kNoSlot) ++block;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Tenant& owner = tenant(table.tenant());
      for (; block < table.num_blocks() && count < kGroup; ++block) {
        const uint32_t slot = table.slot(block);
        if (slot == kNoSlot) continue;
        uses_[slot].pins.fetch_add(kClosed, std::memory_order_acquire);
        owners_[slot] = {};
        table.slots_[block].store(kNoSlot, std::memory_order_release);
        owner.policy->Remove(slot);
        Loses(owner);
        dropped[count++] = slot;
      }
    }
    Free({dropped.data(), count});
  }
}

int64_t BlockCache::num_free() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(free_.size());
}

int64_t BlockCache::num_pinned() const {
  return std::count_if(uses_.get(), uses_.get() + memory_->num_slots(),
                       [](const Use& use) { return use.pins.load(std::memory_order_relaxed) > 0; });
}

CacheTenantStats BlockCache::stats(TenantId id) const {
  const Tenant& owner = tenant(id);
  CacheTenantStats stats;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats = owner.stats;
  }
  stats.hits_total = owner.hits_total.load(std::memory_order_relaxed);
  stats.misses_total = owner.misses_total.load(std::memory_order_relaxed);
  stats.recent_hit_ratio =
      RecentLookups::Unpack(owner.recent.load(std::memory_order_relaxed)).ratio();
  return stats;
}

absl::Status BlockCache::Audit() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto broken = [](const auto&... args) {
    return absl::FailedPreconditionError(absl::StrCat(args...));
  };
  std::vector<int64_t> used(num_tenants_);
  std::vector<bool> is_free(memory_->num_slots());
  for (const uint32_t slot : free_) {
    if (is_free[slot]) return broken("slot ", slot, " is free twice");
    is_free[slot] = true;
  }
  for (int64_t i = 0; i < memory_->num_slots(); ++i) {
    const int32_t pins = uses_[i].pins.load();
    if (is_free[i]) {
      if (pins != kClosed) return broken("slot ", i, " is free and has ", pins, " pins");
      continue;
    }
    if (pins != 0) return broken("slot ", i, " is in use and has ", pins, " pins");
    const Owner& owner = owners_[i];
    ++used[owner.table->tenant()];
    if (owner.table->slot(owner.block) != static_cast<uint32_t>(i)) {
      return broken("slot ", i, " holds a block that its table has in slot ",
                    owner.table->slot(owner.block));
    }
  }
  int64_t floors = 0;
  for (TenantId t = 0; t < num_tenants_; ++t) {
    const Tenant& owner = tenant(t);
    floors += owner.share.floor_slots;
    if (used[t] != owner.stats.slots_used) {
      return broken("tenant ", t, " holds ", used[t], " slots and counts ", owner.stats.slots_used);
    }
    if (owner.limit_slots > 0 && used[t] > owner.limit_slots) {
      return broken("tenant ", t, " holds ", used[t], " slots, its limit is ", owner.limit_slots);
    }
  }
  if (floors != floors_ || floors > memory_->num_slots()) {
    return broken("floors of ", floors, " slots are counted as ", floors_);
  }
  return absl::OkStatus();
}

}  // namespace wavekv
