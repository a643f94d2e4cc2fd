#include "buffer/replacement_policy.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/buffer/policy_model.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using ::testing::HasSubstr;
using testing::MakePolicy;
using testing::Random;

bool Any(uint32_t) { return true; }
bool None(uint32_t) { return false; }

class EveryPolicyTest : public ::testing::TestWithParam<ReplacementKind> {};

TEST_P(EveryPolicyTest, GivesNothingWhenNoSlotIsInUse) {
  const auto policy = MakePolicy(GetParam(), 4);
  EXPECT_EQ(policy->Victim(Any), std::nullopt);
}

TEST_P(EveryPolicyTest, ReplacesTheOnlySlotOverAndOver) {
  const auto policy = MakePolicy(GetParam(), 1);
  for (uint64_t key = 0; key < 10; ++key) {
    policy->Insert(0, key);
    for (uint64_t reads = 0; reads < key; ++reads) policy->Touch(0);
    EXPECT_EQ(policy->Victim(None), std::nullopt);
    EXPECT_EQ(policy->Victim(Any), 0u);
    EXPECT_EQ(policy->Victim(Any), std::nullopt);
  }
}

TEST_P(EveryPolicyTest, GivesNothingWhenAllArePinnedAndKeepsThem) {
  const auto policy = MakePolicy(GetParam(), 50);
  for (uint32_t slot = 0; slot < 50; ++slot) policy->Insert(slot, slot);
  for (uint32_t slot = 0; slot < 50; slot += 2) policy->Touch(slot);
  EXPECT_EQ(policy->Victim(None), std::nullopt);
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(policy->Victim(Any).has_value());
  EXPECT_EQ(policy->Victim(Any), std::nullopt);
}

TEST_P(EveryPolicyTest, FindsTheOneThatIsNotPinned) {
  for (uint32_t free = 0; free < 50; ++free) {
    const auto policy = MakePolicy(GetParam(), 50);
    for (uint32_t slot = 0; slot < 50; ++slot) policy->Insert(slot, slot);
    for (uint32_t slot = 0; slot < 50; slot += 3) policy->Touch(slot);
    EXPECT_EQ(policy->Victim([&](uint32_t slot) { return slot == free; }), free);
  }
}

// As tenants do. What S3-FIFO remembers of one policy's keys the others' push out, so it is given
// none to remember.
TEST_P(EveryPolicyTest, DividesSlotsWithOthersAsIfItHadItsOwn) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  constexpr uint32_t kSlots = 60;
  constexpr int kPolicies = 3;
  const auto slots = MakePolicySlots(GetParam(), kSlots);
  ASSERT_TRUE(slots.ok()) << slots.status();
  std::vector<std::unique_ptr<ReplacementPolicy>> shared, own;
  for (int p = 0; p < kPolicies; ++p) {
    shared.push_back(MakeReplacementPolicy(*slots));
    own.push_back(MakePolicy(GetParam(), kSlots));
  }
  std::vector<int> user(kSlots, -1);
  uint64_t key = 0;
  for (int i = 0; i < 30000; ++i) {
    const auto slot = static_cast<uint32_t>(random.Integer(0, kSlots - 1));
    const int64_t dice = random.Integer(0, 9);
    const int p = user[slot] < 0 ? static_cast<int>(random.Integer(0, kPolicies - 1)) : user[slot];
    if (user[slot] < 0) {
      shared[p]->Insert(slot, ++key);
      own[p]->Insert(slot, key);
      user[slot] = p;
    } else if (dice < 4) {
      shared[p]->Touch(slot);
      own[p]->Touch(slot);
    } else if (dice == 4) {
      shared[p]->Remove(slot);
      own[p]->Remove(slot);
      user[slot] = -1;
    } else if (dice < 8) {
      const auto can_evict = [&](uint32_t asked) { return (asked + i) % 3 != 0; };
      const auto victim = shared[p]->Victim(can_evict);
      ASSERT_EQ(victim, own[p]->Victim(can_evict)) << "operation " << i;
      if (victim.has_value()) user[*victim] = -1;
    }
  }
}

TEST_P(EveryPolicyTest, HasAName) {
  const std::string name = ReplacementKindName(GetParam());
  EXPECT_EQ(*ParseReplacementKind(name), GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, EveryPolicyTest,
                         ::testing::Values(ReplacementKind::kLru, ReplacementKind::kSlru,
                                           ReplacementKind::kS3Fifo),
                         [](const auto& kind) { return ReplacementKindName(kind.param); });

TEST(ReplacementPolicyTest, RefusesSizesAndNamesItDoesNotKnow) {
  for (const int64_t num_slots : {int64_t{-1}, int64_t{0}, kPolicySlotsMax + 1}) {
    const auto policy = MakeReplacementPolicy(ReplacementKind::kLru, num_slots);
    EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(policy.status().message()), HasSubstr(std::to_string(num_slots)));
  }
  EXPECT_THAT(std::string(ParseReplacementKind("arc").status().message()),
              HasSubstr("expected lru, slru or s3fifo, got 'arc'"));
}

}  // namespace
}  // namespace wavekv
