#ifndef WAVEKV_BUFFER_SLRU_POLICY_H_
#define WAVEKV_BUFFER_SLRU_POLICY_H_

#include <memory>

#include "buffer/policy_slots.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// Segmented LRU (Karedla, Love, Wherry: Caching strategies to improve disk system performance,
// 1994). New slots are on probation; one that is read again is protected. If more than four fifths
// of the slots in use then are, the least recently read of them return to probation, as its newest.
// The least recently read on probation goes first, a protected one only when none on probation may
// be taken.
//
// Blocks that are read once, however many, never push out a protected one.
class SlruPolicy : public ReplacementPolicy {
 public:
  explicit SlruPolicy(std::shared_ptr<PolicySlots> all);

  void Insert(uint32_t slot, uint64_t key) override;
  void Touch(uint32_t slot) override;
  void Remove(uint32_t slot) override;
  std::optional<uint32_t> Victim(CanEvict can_evict) override;

 private:
  bool is_protected(uint32_t slot) const { return all_->marks[slot] != 0; }
  void Protect(uint32_t slot);
  void PutOnProbation(uint32_t slot);

  const std::shared_ptr<PolicySlots> all_;
  SlotList probation_;
  SlotList protected_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_SLRU_POLICY_H_
