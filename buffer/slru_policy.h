#ifndef WAVEKV_BUFFER_SLRU_POLICY_H_
#define WAVEKV_BUFFER_SLRU_POLICY_H_

#include <vector>

#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// Segmented LRU (Karedla, Love, Wherry: Caching strategies to improve disk system performance,
// 1994). New slots are on probation; one that is read again is protected. Protected slots are at
// most four fifths: the least recently read of them returns to probation, as its newest. The least
// recently read on probation goes first, a protected one only when none on probation may be taken.
// 9 bytes a slot.
//
// Blocks that are read once, however many, never push out a protected one.
class SlruPolicy : public ReplacementPolicy {
 public:
  // REQUIRES: as MakeReplacementPolicy.
  explicit SlruPolicy(uint32_t num_slots);

  void Insert(uint32_t slot, uint64_t key) override;
  void Touch(uint32_t slot) override;
  void Remove(uint32_t slot) override;
  std::optional<uint32_t> Victim(CanEvict can_evict) override;

 private:
  const uint32_t protected_max_;
  std::vector<SlotLink> links_;
  std::vector<uint8_t> is_protected_;
  SlotList probation_;
  SlotList protected_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_SLRU_POLICY_H_
