#ifndef WAVEKV_BUFFER_LRU_POLICY_H_
#define WAVEKV_BUFFER_LRU_POLICY_H_

#include <memory>
#include <utility>

#include "buffer/policy_slots.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// The slot that was not read for the longest time goes first.
//
// A step that reads more than there are slots leaves nothing for the next one that reads the same.
class LruPolicy : public ReplacementPolicy {
 public:
  explicit LruPolicy(std::shared_ptr<PolicySlots> all)
      : all_(std::move(all)), slots_(all_->links.data()) {}

  void Insert(uint32_t slot, uint64_t key) override;
  void Touch(uint32_t slot) override;
  void Remove(uint32_t slot) override;
  std::optional<uint32_t> Victim(CanEvict can_evict) override;

 private:
  const std::shared_ptr<PolicySlots> all_;
  SlotList slots_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_LRU_POLICY_H_
