#include "buffer/slru_policy.h"

#include "gtest/gtest.h"
#include "tests/buffer/policy_model.h"

namespace wavekv {
namespace {

using testing::BlockReader;
using testing::EraseSlot;
using testing::SlotQueue;
using testing::TakeFirst;

class SlruModel : public ReplacementPolicy {
 public:
  void Insert(uint32_t slot, uint64_t /*key*/) override { probation_.push_back(slot); }
  void Touch(uint32_t slot) override {
    Remove(slot);
    protected_.push_back(slot);
    while (protected_.size() > (probation_.size() + protected_.size()) * 4 / 5) {
      probation_.push_back(protected_.front());
      protected_.erase(protected_.begin());
    }
  }
  void Remove(uint32_t slot) override {
    if (!EraseSlot(probation_, slot)) EraseSlot(protected_, slot);
  }
  std::optional<uint32_t> Victim(CanEvict can_evict) override {
    const auto slot = TakeFirst(probation_, can_evict);
    return slot.has_value() ? slot : TakeFirst(protected_, can_evict);
  }

 private:
  SlotQueue probation_;
  SlotQueue protected_;
};

TEST(SlruPolicyTest, BehavesAsTwoLists) {
  testing::ExpectBehavesAs(ReplacementKind::kSlru,
                           [](uint32_t) { return std::make_unique<SlruModel>(); });
}

TEST(SlruPolicyTest, AScanPushesOutNothingThatWasReadTwice) {
  BlockReader cache(ReplacementKind::kSlru, 100);
  for (uint64_t key = 500; key < 600; ++key) cache.Read(key);  // four fifths of what is in use
  for (int round = 0; round < 2; ++round) {
    for (uint64_t key = 0; key < 80; ++key) cache.Read(key);
  }
  for (uint64_t key = 1000; key < 11000; ++key) cache.Read(key);
  for (uint64_t key = 0; key < 80; ++key) EXPECT_TRUE(cache.Holds(key)) << key;
}

TEST(SlruPolicyTest, WhatIsNoLongerReadGivesWayToWhatIs) {
  BlockReader cache(ReplacementKind::kSlru, 100);
  for (uint64_t first = 0; first < 10'000; first += 1000) {
    for (int round = 0; round < 3; ++round) {
      for (uint64_t key = first; key < first + 20; ++key) cache.Read(key);
    }
    for (uint64_t key = first; key < first + 20; ++key) EXPECT_TRUE(cache.Holds(key)) << key;
  }
  EXPECT_FALSE(cache.Holds(0));
}

}  // namespace
}  // namespace wavekv
