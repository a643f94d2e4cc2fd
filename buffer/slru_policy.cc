#include "buffer/slru_policy.h"

#include <utility>

namespace wavekv {

SlruPolicy::SlruPolicy(std::shared_ptr<PolicySlots> all)
    : all_(std::move(all)), probation_(all_->links.data()), protected_(all_->links.data()) {}

void SlruPolicy::PutOnProbation(uint32_t slot) {
  all_->marks[slot] = 0;
  probation_.PushNewest(slot);
}

void SlruPolicy::Protect(uint32_t slot) {
  all_->marks[slot] = 1;
  protected_.PushNewest(slot);
}

void SlruPolicy::Insert(uint32_t slot, uint64_t /*key*/) { PutOnProbation(slot); }

void SlruPolicy::Touch(uint32_t slot) {
  Remove(slot);
  Protect(slot);
  const uint64_t num_used = uint64_t{probation_.size()} + protected_.size();
  while (protected_.size() > num_used * 4 / 5) {
    const uint32_t demoted = protected_.oldest();
    protected_.Erase(demoted);
    PutOnProbation(demoted);
  }
}

void SlruPolicy::Remove(uint32_t slot) {
  (is_protected(slot) ? protected_ : probation_).Erase(slot);
}

std::optional<uint32_t> SlruPolicy::Victim(CanEvict can_evict) {
  if (const auto slot = probation_.TakeOldest(can_evict)) return slot;
  return protected_.TakeOldest(can_evict);
}

}  // namespace wavekv
