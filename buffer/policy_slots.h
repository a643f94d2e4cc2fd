#ifndef WAVEKV_BUFFER_POLICY_SLOTS_H_
#define WAVEKV_BUFFER_POLICY_SLOTS_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "buffer/ghost_queue.h"
#include "buffer/replacement_policy.h"
#include "buffer/slot_list.h"

namespace wavekv {

// What replacement policies of one kind know of the slots that they divide among them: a slot is in
// use in at most one of them, so they share arrays of an entry a slot, and a policy of its own
// costs a tenant no more than a few words.
//
// S3-FIFO's memory of keys that have left is shared too, and as long as for one policy with all the
// slots: a policy whose blocks come and go fast is remembered for most of it.
struct PolicySlots {
  // REQUIRES: as MakePolicySlots.
  PolicySlots(ReplacementKind the_kind, uint32_t num_slots) : kind(the_kind), links(num_slots) {
    if (kind != ReplacementKind::kLru) marks.resize(num_slots);
    if (kind != ReplacementKind::kS3Fifo) return;
    fingerprints.resize(num_slots);
    // As many as the main queue has slots when all are in use.
    ghosts.emplace(std::max(1u, num_slots - std::max(1u, num_slots / 10)));
  }

  const ReplacementKind kind;
  std::vector<SlotLink> links;
  std::vector<uint8_t> marks;          // what SLRU or S3-FIFO note of a slot
  std::vector<uint32_t> fingerprints;  // of the keys of the blocks in the slots, for S3-FIFO
  std::optional<GhostQueue> ghosts;    // for S3-FIFO
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_POLICY_SLOTS_H_
