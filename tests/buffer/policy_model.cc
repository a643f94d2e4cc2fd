#include "tests/buffer/policy_model.h"

#include <algorithm>
#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr int64_t kOperations = 40'000;  // for each number of slots

// The slots of both sides, and what lies in them.
class Pair {
 public:
  Pair(std::unique_ptr<ReplacementPolicy> policy, std::unique_ptr<ReplacementPolicy> model,
       uint32_t num_slots, uint64_t seed)
      : policy_(std::move(policy)), model_(std::move(model)), random_(seed), keys_(num_slots) {
    for (uint32_t slot = 0; slot < num_slots; ++slot) free_.push_back(slot);
  }

  void Run() {
    WAVEKV_TRACE_SEED(random_);
    for (int64_t i = 0; i < kOperations && !::testing::Test::HasFailure(); ++i) {
      const int64_t dice = random_.Integer(0, 99);
      if (dice < 40) {
        Insert();
      } else if (dice < 80) {
        Touch();
      } else if (dice < 82) {
        Remove();
      } else {
        // Mostly few pins, as in an engine; sometimes many, or all.
        const int64_t pinned_percent = random_.Integer(0, 9) == 0 ? 100 : random_.Integer(0, 60);
        Evict(pinned_percent);
      }
    }
    // At last one after the other, in order.
    while (!used_.empty() && !::testing::Test::HasFailure()) Evict(0);
  }

 private:
  void Insert() {
    if (free_.empty()) Evict(20);
    if (free_.empty()) return;
    // Few keys, so that blocks come back; of those that are in no slot.
    const int64_t num_keys = 3 * static_cast<int64_t>(keys_.size());
    uint64_t key = random_.Integer(0, num_keys - 1);
    while (in_cache_.count(key) != 0) key = random_.Integer(0, num_keys - 1);
    const uint32_t slot = TakeAny(free_);
    used_.push_back(slot);
    keys_[slot] = key;
    in_cache_.insert(key);
    policy_->Insert(slot, key);
    model_->Insert(slot, key);
  }

  void Touch() {
    if (used_.empty()) return;
    const uint32_t slot = used_[random_.Integer(0, static_cast<int64_t>(used_.size()) - 1)];
    policy_->Touch(slot);
    model_->Touch(slot);
  }

  void Remove() {
    if (used_.empty()) return;
    const uint32_t slot = TakeAny(used_);
    policy_->Remove(slot);
    model_->Remove(slot);
    Free(slot);
  }

  void Evict(int64_t pinned_percent) {
    std::vector<bool> pinned(keys_.size());
    for (size_t slot = 0; slot < pinned.size(); ++slot) {
      pinned[slot] = random_.Integer(0, 99) < pinned_percent;
    }
    const bool possible =
        std::any_of(used_.begin(), used_.end(), [&](uint32_t slot) { return !pinned[slot]; });
    size_t num_asked = 0;
    const auto can_evict = [&](uint32_t slot) {
      ++num_asked;
      return !pinned[slot];
    };
    const std::optional<uint32_t> victim = policy_->Victim(can_evict);
    EXPECT_LE(num_asked, 12 * used_.size());
    EXPECT_EQ(victim, model_->Victim(can_evict));
    EXPECT_EQ(victim.has_value(), possible);
    if (!victim.has_value()) return;
    EXPECT_FALSE(pinned[*victim]);
    const auto at = std::find(used_.begin(), used_.end(), *victim);
    ASSERT_NE(at, used_.end());
    used_.erase(at);
    Free(*victim);
  }

  uint32_t TakeAny(std::vector<uint32_t>& slots) {
    std::swap(slots[random_.Integer(0, static_cast<int64_t>(slots.size()) - 1)], slots.back());
    const uint32_t slot = slots.back();
    slots.pop_back();
    return slot;
  }

  void Free(uint32_t slot) {
    in_cache_.erase(keys_[slot]);
    free_.push_back(slot);
  }

  std::unique_ptr<ReplacementPolicy> policy_;
  std::unique_ptr<ReplacementPolicy> model_;
  Random random_;
  std::vector<uint64_t> keys_;  // per slot
  std::set<uint64_t> in_cache_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> used_;
};

}  // namespace

std::unique_ptr<ReplacementPolicy> MakePolicy(ReplacementKind kind, int64_t num_slots) {
  auto policy = MakeReplacementPolicy(kind, num_slots);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *std::move(policy);
}

bool EraseSlot(SlotQueue& queue, uint32_t slot) {
  const auto at = std::find(queue.begin(), queue.end(), slot);
  if (at == queue.end()) return false;
  queue.erase(at);
  return true;
}

std::optional<uint32_t> TakeFirst(SlotQueue& queue, CanEvict can_evict) {
  for (size_t left = queue.size(); left > 0; --left) {
    const uint32_t slot = queue.front();
    queue.erase(queue.begin());
    if (can_evict(slot)) return slot;
    queue.push_back(slot);
  }
  return std::nullopt;
}

void ExpectBehavesAs(
    ReplacementKind kind,
    const std::function<std::unique_ptr<ReplacementPolicy>(uint32_t)>& make_model) {
  uint64_t seed = 1;
  for (const uint32_t num_slots : {1u, 2u, 3u, 10u, 33u, 100u}) {
    SCOPED_TRACE(num_slots);
    Pair(MakePolicy(kind, num_slots), make_model(num_slots), num_slots, seed++).Run();
  }
}

BlockReader::BlockReader(ReplacementKind kind, uint32_t num_slots)
    : policy_(MakePolicy(kind, num_slots)), num_slots_(num_slots) {}

bool BlockReader::Holds(uint64_t key) const {
  return std::find(keys_.begin(), keys_.end(), key) != keys_.end();
}

bool BlockReader::Read(uint64_t key) {
  const auto at = std::find(keys_.begin(), keys_.end(), key);
  if (at != keys_.end()) {
    policy_->Touch(static_cast<uint32_t>(at - keys_.begin()));
    return true;
  }
  auto slot = static_cast<uint32_t>(keys_.size());
  if (slot < num_slots_) {
    keys_.push_back(key);
  } else {
    slot = policy_->Victim([](uint32_t) { return true; }).value();
    keys_[slot] = key;
  }
  policy_->Insert(slot, key);
  return false;
}

}  // namespace wavekv::testing
