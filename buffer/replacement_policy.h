// Which slot of the fast tier gives way when a block needs one.
//
// A policy knows slots by their numbers alone, dense from 0; what lies in them is the owner's. It
// never learns of pins either: Victim() asks. Whatever it decides, results are the same and only
// the number of misses differs.
#ifndef WAVEKV_BUFFER_REPLACEMENT_POLICY_H_
#define WAVEKV_BUFFER_REPLACEMENT_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace wavekv {

// Says whether a slot may be taken now: it is not pinned. Must not call the policy.
using CanEvict = absl::FunctionRef<bool(uint32_t slot)>;

// The slots in use, in the order in which they should give way.
//
// Memory is allocated at creation alone, most of it for all policies that divide the same slots
// (MakePolicySlots): none of the calls below allocates, blocks or fails.
// Insert, Touch and Remove take constant time; so does Victim on average, apart from one question
// for each pinned slot that it passes, and it asks a slot at most a few times in a call.
//
// Threads: none of it is safe; whoever owns the slots locks.
class ReplacementPolicy {
 public:
  virtual ~ReplacementPolicy() = default;

  // The slot now holds the block `key`, read for the first time. `key` identifies the block as long
  // as it exists, also while it is not in any slot: policies remember keys that have left.
  // REQUIRES: slot < num_slots, and it is not in use.
  virtual void Insert(uint32_t slot, uint64_t key) = 0;

  // The block was read again. Within a step, the one to be kept longest comes last.
  // REQUIRES: the slot is in use.
  virtual void Touch(uint32_t slot) = 0;

  // The slot is free because its block has ceased to exist: its key is not remembered.
  // REQUIRES: the slot is in use.
  virtual void Remove(uint32_t slot) = 0;

  // Takes the slot that should give way out of use and returns it; nothing when no slot in use may
  // be taken, which changes no slot's being in use. Slots that may not be taken and stand in the
  // way go behind the others, as if they had just been read.
  // To find nothing takes a question to every slot: do not ask again before a slot was released.
  virtual std::optional<uint32_t> Victim(CanEvict can_evict) = 0;
};

enum class ReplacementKind : uint8_t {
  kLru,     // least recently used (lru_policy.h)
  kSlru,    // segmented LRU (slru_policy.h)
  kS3Fifo,  // three queues, first in first out (s3_fifo_policy.h)
};

// "lru", "slru" or "s3fifo".
const char* ReplacementKindName(ReplacementKind kind);
// INVALID_ARGUMENT for another name.
absl::StatusOr<ReplacementKind> ParseReplacementKind(absl::string_view name);

// The most slots that a policy takes.
inline constexpr int64_t kPolicySlotsMax = int64_t{1} << 31;

// What several policies of one kind share when each has some of the same slots: 8 bytes a slot for
// LRU, 9 for SLRU and 26 to 31 for S3-FIFO (policy_slots.h). INVALID_ARGUMENT unless num_slots is
// in [1, kPolicySlotsMax].
struct PolicySlots;
absl::StatusOr<std::shared_ptr<PolicySlots>> MakePolicySlots(ReplacementKind kind,
                                                             int64_t num_slots);

// One of these policies, with no slot in use; a few words. A slot is in use in at most one of them,
// and one thread at a time calls any of them.
std::unique_ptr<ReplacementPolicy> MakeReplacementPolicy(std::shared_ptr<PolicySlots> slots);

// A policy that has all slots for itself. Errors as MakePolicySlots's.
absl::StatusOr<std::unique_ptr<ReplacementPolicy>> MakeReplacementPolicy(ReplacementKind kind,
                                                                         int64_t num_slots);

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_REPLACEMENT_POLICY_H_
