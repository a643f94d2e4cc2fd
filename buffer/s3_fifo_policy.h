#ifndef WAVEKV_BUFFER_S3_FIFO_POLICY_H_
#define WAVEKV_BUFFER_S3_FIFO_POLICY_H_

#include <vector>

#include "buffer/ghost_queue.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// S3-FIFO (Yang et al.: FIFO queues are all you need for cache eviction, SOSP 2023). New slots
// enter a small queue, a tenth of all; what leaves it unread goes, and its key is remembered among
// as many as the main queue has slots. What was read, or comes back while it is remembered, enters
// the main queue, whose oldest slot goes unless it was read since: then it goes round again, at
// most three times for what was read in one round. About 28 bytes a slot.
//
// Blocks that are read once leave through the small queue, however many they are.
class S3FifoPolicy : public ReplacementPolicy {
 public:
  // REQUIRES: as MakeReplacementPolicy.
  explicit S3FifoPolicy(uint32_t num_slots);

  void Insert(uint32_t slot, uint64_t key) override;
  void Touch(uint32_t slot) override;
  void Remove(uint32_t slot) override;
  std::optional<uint32_t> Victim(CanEvict can_evict) override;

 private:
  static constexpr uint8_t kReadsMax = 3;

  struct Entry {
    uint32_t fingerprint = 0;
    uint8_t num_reads = 0;  // since it entered its queue, at most kReadsMax
    bool is_main = false;
  };

  void PushMain(uint32_t slot);
  std::optional<uint32_t> TakeSmall(CanEvict can_evict);
  std::optional<uint32_t> TakeMain(CanEvict can_evict);

  const uint32_t small_size_;  // above it the small queue gives way
  std::vector<Entry> entries_;
  std::vector<SlotLink> links_;
  SlotList small_;
  SlotList main_;
  GhostQueue ghosts_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_S3_FIFO_POLICY_H_
