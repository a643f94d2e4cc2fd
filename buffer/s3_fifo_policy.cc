#include "buffer/s3_fifo_policy.h"

#include <algorithm>
#include <utility>

namespace wavekv {

S3FifoPolicy::S3FifoPolicy(std::shared_ptr<PolicySlots> all)
    : all_(std::move(all)), small_(all_->links.data()), main_(all_->links.data()) {}

void S3FifoPolicy::PushMain(uint32_t slot) {
  all_->marks[slot] = kIsMain;
  main_.PushNewest(slot);
}

void S3FifoPolicy::Insert(uint32_t slot, uint64_t key) {
  const uint32_t fingerprint = KeyFingerprint(key);
  all_->fingerprints[slot] = fingerprint;
  if (all_->ghosts->Take(fingerprint)) {
    PushMain(slot);
  } else {
    all_->marks[slot] = 0;
    small_.PushNewest(slot);
  }
}

void S3FifoPolicy::Touch(uint32_t slot) {
  uint8_t& mark = all_->marks[slot];
  if ((mark & kReads) < kReadsMax) ++mark;
}

void S3FifoPolicy::Remove(uint32_t slot) {
  ((all_->marks[slot] & kIsMain) != 0 ? main_ : small_).Erase(slot);
}

std::optional<uint32_t> S3FifoPolicy::Victim(CanEvict can_evict) {
  const uint64_t num_used = uint64_t{small_.size()} + main_.size();
  if (small_.size() >= std::max<uint64_t>(1, num_used / 10)) {
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
    if ((all_->marks[slot] & kReads) > 0) {
      PushMain(slot);
      continue;
    }
    all_->ghosts->Add(all_->fingerprints[slot]);
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
    if ((all_->marks[slot] & kReads) == 0) {
      main_.Erase(slot);
      return slot;
    }
    --all_->marks[slot];
    main_.MoveToNewest(slot);
  }
  return std::nullopt;
}

}  // namespace wavekv
