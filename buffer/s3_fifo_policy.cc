#include "buffer/s3_fifo_policy.h"

#include <algorithm>

namespace wavekv {

S3FifoPolicy::S3FifoPolicy(uint32_t num_slots)
    : small_size_(std::max<uint32_t>(1, num_slots / 10)),
      entries_(num_slots),
      links_(num_slots),
      small_(links_.data()),
      main_(links_.data()),
      ghosts_(std::max<uint32_t>(1, num_slots - small_size_)) {}

void S3FifoPolicy::PushMain(uint32_t slot) {
  entries_[slot].num_reads = 0;
  entries_[slot].is_main = true;
  main_.PushNewest(slot);
}

void S3FifoPolicy::Insert(uint32_t slot, uint64_t key) {
  const uint32_t fingerprint = KeyFingerprint(key);
  entries_[slot] = {.fingerprint = fingerprint};
  if (ghosts_.Take(fingerprint)) {
    PushMain(slot);
  } else {
    small_.PushNewest(slot);
  }
}

void S3FifoPolicy::Touch(uint32_t slot) {
  uint8_t& num_reads = entries_[slot].num_reads;
  if (num_reads < kReadsMax) ++num_reads;
}

void S3FifoPolicy::Remove(uint32_t slot) { (entries_[slot].is_main ? main_ : small_).Erase(slot); }

std::optional<uint32_t> S3FifoPolicy::Victim(CanEvict can_evict) {
  if (small_.size() >= small_size_) {
    if (const auto slot = TakeSmall(can_evict)) return slot;
  }
  if (const auto slot = TakeMain(can_evict)) return slot;
  if (const auto slot = TakeSmall(can_evict)) return slot;
  return TakeMain(can_evict);  // what the small queue has just passed on
}

// Each slot is asked once: it goes, moves to the main queue, or is pinned and goes round.
std::optional<uint32_t> S3FifoPolicy::TakeSmall(CanEvict can_evict) {
  for (uint32_t left = small_.size(); left > 0; --left) {
    const uint32_t slot = small_.oldest();
    if (!can_evict(slot)) {
      small_.MoveToNewest(slot);
      continue;
    }
    small_.Erase(slot);
    if (entries_[slot].num_reads > 0) {
      PushMain(slot);
      continue;
    }
    ghosts_.Add(entries_[slot].fingerprint);
    return slot;
  }
  return std::nullopt;
}

// Ends when all slots in a row are pinned; another one is asked at most kReadsMax + 1 times.
std::optional<uint32_t> S3FifoPolicy::TakeMain(CanEvict can_evict) {
  for (uint32_t num_pinned = 0; num_pinned < main_.size();) {
    const uint32_t slot = main_.oldest();
    if (!can_evict(slot)) {
      ++num_pinned;
      main_.MoveToNewest(slot);
      continue;
    }
    num_pinned = 0;
    if (entries_[slot].num_reads == 0) {
      main_.Erase(slot);
      return slot;
    }
    --entries_[slot].num_reads;
    main_.MoveToNewest(slot);
  }
  return std::nullopt;
}

}  // namespace wavekv
