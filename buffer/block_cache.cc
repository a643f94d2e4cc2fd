#include "buffer/block_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {

absl::StatusOr<std::unique_ptr<BlockCache>> BlockCache::Create(const Options& options) {
  if (options.tenants_max < 1) {
    return absl::InvalidArgumentError(
        fmt::format("tenants_max must be at least 1, got {}", options.tenants_max));
  }
  if (options.memory.num_slots > kPolicySlotsMax) {
    return absl::InvalidArgumentError(fmt::format("num_slots must be at most {}, got {}",
                                                  kPolicySlotsMax, options.memory.num_slots));
  }
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<SlotMemory> memory, SlotMemory::Create(options.memory));
  return std::unique_ptr<BlockCache>(new BlockCache(options, std::move(memory)));
}

BlockCache::BlockCache(const Options& options, std::unique_ptr<SlotMemory> memory)
    : replacement_(options.replacement),
      memory_(std::move(memory)),
      slots_(std::make_unique<Slot[]>(memory_->num_slots())),
      tenants_(options.tenants_max),
      cannot_pay_(options.tenants_max) {
  // The lowest slots are taken first.
  for (int64_t i = memory_->num_slots(); i > 0; --i) free_.push_back(static_cast<uint32_t>(i - 1));
}

absl::StatusOr<BlockCache::TenantId> BlockCache::AddTenant(const CacheShare& share) {
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
  WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<ReplacementPolicy> policy,
                          MakeReplacementPolicy(replacement_, memory_->num_slots()));
  std::lock_guard<std::mutex> lock(mutex_);
  const auto place = std::find_if(tenants_.begin(), tenants_.end(),
                                  [](const Tenant& tenant) { return !tenant.is_open; });
  if (place == tenants_.end()) {
    return absl::ResourceExhaustedError(
        fmt::format("the cache takes {} tenants, and has them", tenants_.size()));
  }
  if (share.floor_slots > memory_->num_slots() - floors_) {
    return absl::ResourceExhaustedError(
        fmt::format("a floor of {} slots: {} of {} slots are reserved for others",
                    share.floor_slots, floors_, memory_->num_slots()));
  }
  floors_ += share.floor_slots;
  *place = {.is_open = true, .share = share, .stats = {}, .policy = std::move(policy)};
  return static_cast<TenantId>(place - tenants_.begin());
}

void BlockCache::RemoveTenant(TenantId tenant) {
  std::lock_guard<std::mutex> lock(mutex_);
  floors_ -= tenants_[tenant].share.floor_slots;
  tenants_[tenant] = {};
}

std::optional<BlockCache::Pinned> BlockCache::Pin(const Block& block) {
  const uint32_t slot = block.table->slot(block.number);
  if (slot == BlockTable::kNoSlot) return std::nullopt;
  std::atomic<int32_t>& pins = slots_[slot].pins;
  int32_t count = pins.load(std::memory_order_relaxed);
  do {
    if (count == kClosed) return std::nullopt;
  } while (!pins.compare_exchange_weak(count, count + 1, std::memory_order_acquire,
                                       std::memory_order_relaxed));
  // The slot may have got another block before it was pinned, never after.
  if (block.table->slot(block.number) != slot) {
    pins.fetch_sub(1, std::memory_order_release);
    return std::nullopt;
  }
  return Pinned{block, slot};
}

void BlockCache::Release(absl::Span<const Pinned> pinned) {
  for (const Pinned& pin : pinned) slots_[pin.slot].pins.fetch_sub(1, std::memory_order_release);
}

void BlockCache::Finish(TenantId tenant, uint64_t step, absl::Span<const Pinned> pinned,
                        absl::Span<const Missed> missed) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Pinned& pin : pinned) {
      tenants_[tenant].policy->Touch(pin.slot);
      slots_[pin.slot].step = step;
    }
    tenants_[tenant].stats.hits_total += static_cast<int64_t>(pinned.size());
    tenants_[tenant].stats.misses_total += static_cast<int64_t>(missed.size());
  }
  Release(pinned);
  for (size_t i = 0; i < missed.size(); ++i) {
    const Missed& miss = missed[i];
    uint32_t slot;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Tenant& owner = tenants_[tenant];
      // Another step may have brought it.
      if (miss.block.table->slot(miss.block.number) != BlockTable::kNoSlot) continue;
      const std::optional<uint32_t> taken = TakeSlot(tenant, step);
      if (!taken.has_value()) {
        // Nor for the others: a search in vain asks every slot.
        owner.stats.rejections_total += static_cast<int64_t>(missed.size() - i);
        return;
      }
      slot = *taken;
      slots_[slot].tenant = tenant;
      slots_[slot].block = miss.block;
      slots_[slot].step = step;
      owner.policy->Insert(slot, miss.block.table->key(miss.block.number));
      ++owner.stats.slots_used;
      ++owner.stats.admissions_total;
      // Known from here on, so that nobody brings it twice; closed until its bytes are there.
      miss.block.table->slots_[miss.block.number].store(slot, std::memory_order_release);
    }
    std::memcpy(memory_->slot(slot), miss.data, memory_->slot_bytes());
    slots_[slot].pins.store(0, std::memory_order_release);
  }
}

std::optional<uint32_t> BlockCache::TakeSlot(TenantId tenant, uint64_t step) {
  Tenant& owner = tenants_[tenant];
  const CacheShare& share = owner.share;
  if (share.ceiling_slots > 0 && owner.stats.slots_used >= share.ceiling_slots) {
    const std::optional<uint32_t> slot = EvictFrom(tenant, step);
    if (slot.has_value()) ++owner.stats.evictions_by_ceiling_total;
    return slot;
  }
  if (!free_.empty()) {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  std::fill(cannot_pay_.begin(), cannot_pay_.end(), false);
  while (const std::optional<TenantId> payer = Payer(tenant)) {
    const std::optional<uint32_t> slot = EvictFrom(*payer, step);
    if (slot.has_value()) {
      ++tenants_[*payer].stats.evictions_by_pressure_total;
      return slot;
    }
    cannot_pay_[*payer] = true;
  }
  return std::nullopt;
}

std::optional<BlockCache::TenantId> BlockCache::Payer(TenantId tenant) const {
  std::optional<TenantId> payer;
  double most = 0.0;
  for (TenantId t = 0; t < tenants_.size(); ++t) {
    const Tenant& other = tenants_[t];
    if (!other.is_open || cannot_pay_[t] || other.stats.slots_used == 0) continue;
    // Its own floor keeps nobody's blocks from giving way to newer ones of the same tenant; the one
    // more that it is about to hold counts.
    const int64_t used = other.stats.slots_used + (t == tenant ? 1 : 0);
    const auto beyond = static_cast<double>(used - other.share.floor_slots);
    if (t != tenant && beyond <= 0.0) continue;
    const double excess = beyond / other.share.weight;
    if (!payer.has_value() || excess > most) {
      payer = t;
      most = excess;
    }
  }
  return payer;
}

std::optional<uint32_t> BlockCache::EvictFrom(TenantId tenant, uint64_t step) {
  Tenant& owner = tenants_[tenant];
  const auto can_evict = [&](uint32_t slot) {
    return slots_[slot].pins.load(std::memory_order_relaxed) == 0 && slots_[slot].step != step;
  };
  // A look-up may pin the victim before it is closed, which is rare; then the next one.
  while (const std::optional<uint32_t> victim = owner.policy->Victim(can_evict)) {
    const Block& block = slots_[*victim].block;
    int32_t none = 0;
    if (!slots_[*victim].pins.compare_exchange_strong(none, kClosed, std::memory_order_acquire)) {
      owner.policy->Insert(*victim, block.table->key(block.number));
      continue;
    }
    block.table->slots_[block.number].store(BlockTable::kNoSlot, std::memory_order_release);
    --owner.stats.slots_used;
    return victim;
  }
  return std::nullopt;
}

void BlockCache::Drop(TenantId tenant, BlockTable& table) {
  for (int64_t block = 0; block < table.num_blocks(); ++block) {
    uint32_t slot;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      slot = table.slot(block);
      if (slot == BlockTable::kNoSlot) continue;
      slots_[slot].pins.store(kClosed, std::memory_order_relaxed);
      slots_[slot].block = {};
      table.slots_[block].store(BlockTable::kNoSlot, std::memory_order_release);
      tenants_[tenant].policy->Remove(slot);
      --tenants_[tenant].stats.slots_used;
    }
    std::memset(memory_->slot(slot), 0, memory_->slot_bytes());
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(slot);
  }
}

int64_t BlockCache::num_free() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(free_.size());
}

CacheTenantStats BlockCache::stats(TenantId tenant) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return tenants_[tenant].stats;
}

absl::Status BlockCache::Audit() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto broken = [](const auto&... args) {
    return absl::FailedPreconditionError(absl::StrCat(args...));
  };
  std::vector<int64_t> used(tenants_.size());
  std::vector<bool> is_free(memory_->num_slots());
  for (const uint32_t slot : free_) {
    if (is_free[slot]) return broken("slot ", slot, " is free twice");
    is_free[slot] = true;
  }
  for (int64_t i = 0; i < memory_->num_slots(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.pins.load() > 0) return broken("slot ", i, " is pinned");
    if (is_free[i]) {
      if (slot.pins.load() != kClosed) return broken("slot ", i, " is free and open");
      continue;
    }
    ++used[slot.tenant];
    if (slot.block.table->slot(slot.block.number) != static_cast<uint32_t>(i)) {
      return broken("slot ", i, " holds a block that its table has in slot ",
                    slot.block.table->slot(slot.block.number));
    }
  }
  for (size_t t = 0; t < tenants_.size(); ++t) {
    const Tenant& tenant = tenants_[t];
    if (used[t] != tenant.stats.slots_used) {
      return broken("tenant ", t, " holds ", used[t], " slots and counts ",
                    tenant.stats.slots_used);
    }
    if (tenant.share.ceiling_slots > 0 && used[t] > tenant.share.ceiling_slots) {
      return broken("tenant ", t, " holds ", used[t], " slots, its ceiling is ",
                    tenant.share.ceiling_slots);
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
