// What the tests of replacement policies share.
#ifndef WAVEKV_TESTS_BUFFER_POLICY_MODEL_H_
#define WAVEKV_TESTS_BUFFER_POLICY_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "buffer/replacement_policy.h"

namespace wavekv::testing {

// A policy without slots in use, of `kind`.
std::unique_ptr<ReplacementPolicy> MakePolicy(ReplacementKind kind, int64_t num_slots);

// Where the slots stand in a model, the one to go first in front.
using SlotQueue = std::vector<uint32_t>;

// Erases `slot`; whether it was there.
bool EraseSlot(SlotQueue& queue, uint32_t slot);
// Erases and returns the first slot that may be taken; those before it go to the end.
std::optional<uint32_t> TakeFirst(SlotQueue& queue, CanEvict can_evict);

// Does random operations, all that the contract allows, on the policy and on a model of it, with
// all numbers of pinned slots, and expects the same victims: slots in use, never pinned ones, and
// one whenever one may be taken. Several numbers of slots, 1 among them; 240,000 operations in all.
void ExpectBehavesAs(ReplacementKind kind,
                     const std::function<std::unique_ptr<ReplacementPolicy>(uint32_t)>& make_model);

// A cache of num_slots blocks that reads keys one by one, each admitted.
class BlockReader {
 public:
  BlockReader(ReplacementKind kind, uint32_t num_slots);

  // Whether the block was there.
  bool Read(uint64_t key);
  // The same, without reading it.
  bool Holds(uint64_t key) const;

 private:
  std::unique_ptr<ReplacementPolicy> policy_;
  std::vector<uint64_t> keys_;  // per slot in use
  uint32_t num_slots_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_BUFFER_POLICY_MODEL_H_
