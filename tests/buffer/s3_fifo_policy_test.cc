#include "buffer/s3_fifo_policy.h"

#include <algorithm>
#include <deque>
#include <map>

#include "gtest/gtest.h"
#include "tests/buffer/policy_model.h"

namespace wavekv {
namespace {

using testing::BlockReader;
using testing::EraseSlot;
using testing::SlotQueue;

// As published, with whole keys for ghosts. Pinned slots go round.
class S3FifoModel : public ReplacementPolicy {
 public:
  explicit S3FifoModel(uint32_t num_slots)
      : num_ghosts_(std::max<size_t>(1, num_slots - std::max<size_t>(1, num_slots / 10))) {}

  void Insert(uint32_t slot, uint64_t key) override {
    blocks_[slot] = {key, 0};
    const auto ghost = std::find(ghosts_.begin(), ghosts_.end(), std::optional<uint64_t>(key));
    if (ghost != ghosts_.end()) ghost->reset();
    (ghost != ghosts_.end() ? main_ : small_).push_back(slot);
  }
  void Touch(uint32_t slot) override {
    blocks_[slot].num_reads = std::min(3, blocks_[slot].num_reads + 1);
  }
  void Remove(uint32_t slot) override {
    if (!EraseSlot(small_, slot)) EraseSlot(main_, slot);
  }
  std::optional<uint32_t> Victim(CanEvict can_evict) override {
    bool from_main = small_.size() < std::max<size_t>(1, (small_.size() + main_.size()) / 10);
    for (int turn = 0; turn < 4; ++turn, from_main = !from_main) {
      const auto slot = from_main ? FromMain(can_evict) : FromSmall(can_evict);
      if (slot.has_value()) return slot;
    }
    return std::nullopt;
  }

 private:
  struct Block {
    uint64_t key = 0;
    int num_reads = 0;
  };

  static uint32_t Pop(SlotQueue& queue) {
    const uint32_t slot = queue.front();
    queue.erase(queue.begin());
    return slot;
  }

  std::optional<uint32_t> FromSmall(CanEvict can_evict) {
    for (size_t left = small_.size(); left > 0; --left) {
      const uint32_t slot = Pop(small_);
      if (!can_evict(slot)) {
        small_.push_back(slot);
      } else if (blocks_[slot].num_reads > 0) {
        blocks_[slot].num_reads = 0;
        main_.push_back(slot);
      } else {
        ghosts_.emplace_back(blocks_[slot].key);
        if (ghosts_.size() > num_ghosts_) ghosts_.pop_front();
        return slot;
      }
    }
    return std::nullopt;
  }

  std::optional<uint32_t> FromMain(CanEvict can_evict) {
    while (std::any_of(main_.begin(), main_.end(), can_evict)) {
      const uint32_t slot = Pop(main_);
      if (!can_evict(slot)) {
        main_.push_back(slot);
      } else if (blocks_[slot].num_reads > 0) {
        --blocks_[slot].num_reads;
        main_.push_back(slot);
      } else {
        return slot;
      }
    }
    return std::nullopt;
  }

  const size_t num_ghosts_;
  std::map<uint32_t, Block> blocks_;
  SlotQueue small_;
  SlotQueue main_;
  std::deque<std::optional<uint64_t>> ghosts_;
};

TEST(S3FifoPolicyTest, BehavesAsThreeQueues) {
  testing::ExpectBehavesAs(ReplacementKind::kS3Fifo, [](uint32_t num_slots) {
    return std::make_unique<S3FifoModel>(num_slots);
  });
}

TEST(S3FifoPolicyTest, AScanPushesOutNothingThatWasReadTwice) {
  BlockReader cache(ReplacementKind::kS3Fifo, 100);
  for (int round = 0; round < 2; ++round) {
    for (uint64_t key = 0; key < 90; ++key) cache.Read(key);
  }
  for (uint64_t key = 1000; key < 11000; ++key) cache.Read(key);
  for (uint64_t key = 0; key < 90; ++key) EXPECT_TRUE(cache.Holds(key)) << key;
}

TEST(S3FifoPolicyTest, WhatComesBackSoonStays) {
  BlockReader cache(ReplacementKind::kS3Fifo, 100);
  for (uint64_t key = 0; key < 190; ++key) cache.Read(key);
  ASSERT_FALSE(cache.Holds(5));
  for (uint64_t key = 5; key < 15; ++key) EXPECT_FALSE(cache.Read(key));  // left, but remembered
  for (uint64_t key = 1000; key < 3000; ++key) cache.Read(key);
  for (uint64_t key = 5; key < 15; ++key) EXPECT_TRUE(cache.Holds(key)) << key;
}

TEST(S3FifoPolicyTest, WhatCeasedToExistIsNotRemembered) {
  const auto policy = testing::MakePolicy(ReplacementKind::kS3Fifo, 10);
  const auto any = [](uint32_t) { return true; };
  policy->Insert(0, 7);
  policy->Remove(0);
  policy->Insert(0, 7);  // new, so in the small queue
  policy->Insert(1, 8);
  policy->Insert(2, 9);
  EXPECT_EQ(policy->Victim(any), 0u);
  policy->Insert(0, 7);  // back, so in the main queue
  EXPECT_EQ(policy->Victim(any), 1u);
  EXPECT_EQ(policy->Victim(any), 2u);
  EXPECT_EQ(policy->Victim(any), 0u);
}

}  // namespace
}  // namespace wavekv
