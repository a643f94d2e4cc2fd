#include "buffer/lru_policy.h"

#include "gtest/gtest.h"
#include "tests/buffer/policy_model.h"

namespace wavekv {
namespace {

using testing::BlockReader;
using testing::EraseSlot;
using testing::SlotQueue;
using testing::TakeFirst;

// Slots in the order of their last reading.
class LruModel : public ReplacementPolicy {
 public:
  void Insert(uint32_t slot, uint64_t /*key*/) override { queue_.push_back(slot); }
  void Touch(uint32_t slot) override {
    EraseSlot(queue_, slot);
    queue_.push_back(slot);
  }
  void Remove(uint32_t slot) override { EraseSlot(queue_, slot); }
  std::optional<uint32_t> Victim(CanEvict can_evict) override {
    return TakeFirst(queue_, can_evict);
  }

 private:
  SlotQueue queue_;
};

TEST(LruPolicyTest, BehavesAsAListInTheOrderOfReading) {
  testing::ExpectBehavesAs(ReplacementKind::kLru,
                           [](uint32_t) { return std::make_unique<LruModel>(); });
}

TEST(LruPolicyTest, WhatWasNotReadForTheLongestTimeGoesFirst) {
  BlockReader cache(ReplacementKind::kLru, 3);
  for (const uint64_t key : {1, 2, 3, 1, 4}) cache.Read(key);
  EXPECT_TRUE(cache.Holds(1));
  EXPECT_FALSE(cache.Holds(2));
}

TEST(LruPolicyTest, ARoundThroughMoreThanItHoldsNeverHits) {
  BlockReader cache(ReplacementKind::kLru, 100);
  for (int round = 0; round < 5; ++round) {
    for (uint64_t key = 0; key < 101; ++key) EXPECT_FALSE(cache.Read(key));
  }
}

}  // namespace
}  // namespace wavekv
