#include "buffer/slru_policy.h"

namespace wavekv {

SlruPolicy::SlruPolicy(uint32_t num_slots)
    : protected_max_(static_cast<uint32_t>(uint64_t{num_slots} * 4 / 5)),
      links_(num_slots),
      is_protected_(num_slots),
      probation_(links_.data()),
      protected_(links_.data()) {}

void SlruPolicy::Insert(uint32_t slot, uint64_t /*key*/) {
  is_protected_[slot] = 0;
  probation_.PushNewest(slot);
}

void SlruPolicy::Touch(uint32_t slot) {
  if (is_protected_[slot] != 0) return protected_.MoveToNewest(slot);
  probation_.Erase(slot);
  protected_.PushNewest(slot);
  is_protected_[slot] = 1;
  if (protected_.size() <= protected_max_) return;
  const uint32_t demoted = protected_.oldest();
  protected_.Erase(demoted);
  probation_.PushNewest(demoted);
  is_protected_[demoted] = 0;
}

void SlruPolicy::Remove(uint32_t slot) {
  (is_protected_[slot] != 0 ? protected_ : probation_).Erase(slot);
}

std::optional<uint32_t> SlruPolicy::Victim(CanEvict can_evict) {
  if (const auto slot = probation_.TakeOldest(can_evict)) return slot;
  return protected_.TakeOldest(can_evict);
}

}  // namespace wavekv
