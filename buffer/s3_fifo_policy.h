#ifndef WAVEKV_BUFFER_S3_FIFO_POLICY_H_
#define WAVEKV_BUFFER_S3_FIFO_POLICY_H_

#include <memory>

#include "buffer/policy_slots.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// S3-FIFO (Yang et al.: FIFO queues are all you need for cache eviction, SOSP 2023). New slots
// enter a small queue, a tenth of those in use; what leaves it unread goes, and its key is
// remembered (PolicySlots). What was read, or comes back while it is remembered, enters
// the main queue, whose oldest slot goes unless it was read since: then it goes round again, at
// most three times for what was read in one round.
//
// Blocks that are read once leave through the small queue, however many they are.
class S3FifoPolicy : public ReplacementPolicy {
 public:
  explicit S3FifoPolicy(std::shared_ptr<PolicySlots> all);

  void Insert(uint32_t slot, uint64_t key) override;
  void Touch(uint32_t slot) override;
  void Remove(uint32_t slot) override;
  std::optional<uint32_t> Victim(CanEvict can_evict) override;

 private:
  static constexpr uint8_t kReadsMax = 3;

  // Of a slot's mark.
  static constexpr uint8_t kReads = 3;  // since it entered its queue, at most kReadsMax
  static constexpr uint8_t kIsMain = 4;

  void PushMain(uint32_t slot);
  std::optional<uint32_t> TakeSmall(CanEvict can_evict);
  std::optional<uint32_t> TakeMain(CanEvict can_evict);

  const std::shared_ptr<PolicySlots> all_;
  SlotList small_;
  SlotList main_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_S3_FIFO_POLICY_H_
