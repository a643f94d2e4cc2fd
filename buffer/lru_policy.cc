#include "buffer/lru_policy.h"

namespace wavekv {

void LruPolicy::Insert(uint32_t slot, uint64_t /*key*/) { slots_.PushNewest(slot); }

void LruPolicy::Touch(uint32_t slot) { slots_.MoveToNewest(slot); }

void LruPolicy::Remove(uint32_t slot) { slots_.Erase(slot); }

std::optional<uint32_t> LruPolicy::Victim(CanEvict can_evict) {
  return slots_.TakeOldest(can_evict);
}

}  // namespace wavekv
