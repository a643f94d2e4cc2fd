#include "buffer/block_cache.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::Random;

constexpr int64_t kSlotBytes = 512;

// What the backing tier has of a block: its key, all over.
std::vector<std::byte> BytesOf(uint64_t key) {
  std::vector<std::byte> bytes(kSlotBytes);
  for (size_t i = 0; i < bytes.size(); i += sizeof(key)) {
    std::memcpy(bytes.data() + i, &key, sizeof(key));
  }
  return bytes;
}

std::unique_ptr<BlockCache> Cache(int64_t num_slots,
                                  ReplacementKind replacement = ReplacementKind::kLru) {
  BlockCache::Options options;
  options.memory = {.num_slots = num_slots, .slot_bytes = kSlotBytes};
  options.replacement = replacement;
  auto cache = BlockCache::Create(options);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

BlockCache::TenantId Tenant(BlockCache& cache, const CacheShare& share = {}) {
  const auto tenant = cache.AddTenant(share);
  EXPECT_TRUE(tenant.ok()) << tenant.status();
  return *tenant;
}

// The steps of one thread, one after the other.
class Step {
 public:
  explicit Step(BlockCache& cache) : cache_(cache) {}

  // Pins or "reads" the blocks, and checks the bytes of those that were found.
  void Use(BlockTable& table, const std::vector<int64_t>& numbers) {
    int64_t num_found = 0;
    for (const int64_t number : numbers) {
      const std::vector<std::byte> want = BytesOf(table.key(number));
      const uint32_t slot = cache_.Pin(table, number, step_);
      if (slot != BlockCache::kNoSlot) {
        ASSERT_EQ(std::memcmp(cache_.data(slot), want.data(), kSlotBytes), 0) << "block " << number;
        pinned_.push_back(slot);
        ++num_found;
      } else {
        missed_.push_back({&table, number});
        read_.push_back(want);
      }
    }
    cache_.CountLookups(table.tenant(), num_found,
                        static_cast<int64_t>(numbers.size()) - num_found);
  }

  // Returns how many blocks were found. `last`: the step ends; else it goes on with another layer.
  int64_t Finish(bool last = true) {
    for (size_t i = 0; i < missed_.size(); ++i) missed_[i].data = read_[i].data();
    const auto num_found = static_cast<int64_t>(pinned_.size());
    cache_.Release(pinned_);
    cache_.Admit(step_, missed_);
    if (last) step_ = next_step.fetch_add(1);
    Forget();
    return num_found;
  }

  void Release() {
    cache_.Release(pinned_);
    Forget();
  }

  const std::vector<uint32_t>& pinned() const { return pinned_; }
  uint32_t number() const { return step_; }

 private:
  void Forget() {
    pinned_.clear();
    missed_.clear();
    read_.clear();
  }

  BlockCache& cache_;
  // They wrap in the middle of the tests.
  inline static std::atomic<uint32_t> next_step{0xfffffe00};
  uint32_t step_ = next_step.fetch_add(1);
  std::vector<uint32_t> pinned_;
  std::vector<BlockCache::Missed> missed_;
  std::vector<std::vector<std::byte>> read_;
};

TEST(BlockCacheTest, WhatWasReadIsFoundUntilItGivesWay) {
  const auto cache = Cache(3);
  const auto tenant = Tenant(*cache);
  BlockTable table(10, 100, tenant);
  Step step(*cache);
  const auto use = [&](const std::vector<int64_t>& numbers) {
    step.Use(table, numbers);
    return step.Finish();
  };
  EXPECT_EQ(use({0, 1, 2}), 0);
  EXPECT_EQ(use({0, 1, 2}), 3);
  EXPECT_EQ(use({3}), 0) << "takes the slot of 0, the least recently used";
  EXPECT_EQ(use({1, 2, 3}), 3);
  EXPECT_EQ(use({0}), 0);
  EXPECT_EQ(cache->num_free(), 0);
  EXPECT_EQ(cache->stats(tenant).evictions_by_pressure_total, 2);
  cache->Drop(table);
  EXPECT_EQ(cache->num_free(), 3);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
  for (uint32_t slot = 0; slot < 3; ++slot) {
    EXPECT_EQ(std::count(cache->memory().slot(slot), cache->memory().slot(slot) + kSlotBytes,
                         std::byte{0}),
              kSlotBytes)
        << "dropped blocks are zeroed";
  }
}

TEST(BlockCacheTest, WhatAStepHasUsedDoesNotGiveWayToItsOwnMisses) {
  const auto cache = Cache(4);
  const auto tenant = Tenant(*cache);
  BlockTable table(10, 0, tenant);
  Step step(*cache);
  const auto circle = [&] {  // three layers of two blocks
    int64_t found = 0;
    for (const int64_t layer : {0, 1, 2}) {
      step.Use(table, {2 * layer, 2 * layer + 1});
      found += step.Finish(layer == 2);
    }
    return found;
  };
  EXPECT_EQ(circle(), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(circle(), 4);
  step.Use(table, {8, 9});
  step.Finish();
  EXPECT_EQ(circle(), 0) << "another step's misses do push out";
  EXPECT_EQ(circle(), 4);
  cache->Drop(table);
}

TEST(BlockCacheTest, PinnedBlocksStayAndOthersDoWithout) {
  const auto cache = Cache(2);
  const auto tenant = Tenant(*cache);
  BlockTable table(10, 0, tenant);
  Step first(*cache), second(*cache);
  first.Use(table, {0, 1});
  first.Finish();
  first.Use(table, {0, 1});  // pinned
  second.Use(table, {2, 3});
  EXPECT_EQ(second.Finish(), 0);
  EXPECT_EQ(cache->stats(tenant).rejections_total, 2) << "no slot could be had";
  second.Use(table, {0, 1, 2});
  EXPECT_EQ(second.Finish(), 2);
  first.Release();
  second.Use(table, {2});
  second.Finish();
  second.Use(table, {2});
  EXPECT_EQ(second.Finish(), 1);
  cache->Drop(table);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

TEST(BlockCacheTest, FloorsAndCeilingsHold) {
  const auto cache = Cache(10);
  const auto quiet = Tenant(*cache, {.floor_slots = 3});
  const auto bound = Tenant(*cache, {.ceiling_slots = 2});
  const auto loud = Tenant(*cache);
  BlockTable of_quiet(100, 0, quiet), of_bound(100, 1000, bound), of_loud(1000, 2000, loud);
  Step quiet_step(*cache), bound_step(*cache), loud_step(*cache);
  quiet_step.Use(of_quiet, {0, 1, 2, 3, 4});
  quiet_step.Finish();
  bound_step.Use(of_bound, {0, 1, 2, 3, 4});
  bound_step.Finish();
  EXPECT_EQ(cache->stats(bound).slots_used, 2);
  EXPECT_EQ(cache->stats(bound).rejections_total, 3);
  for (const int64_t number : {5, 6, 7}) {
    bound_step.Use(of_bound, {number});
    bound_step.Finish();
  }
  EXPECT_EQ(cache->stats(bound).slots_used, 2);
  EXPECT_EQ(cache->stats(bound).evictions_by_ceiling_total, 3);
  for (int64_t i = 0; i < 1000; ++i) {
    loud_step.Use(of_loud, {i});
    loud_step.Finish();
    ASSERT_GE(cache->stats(quiet).slots_used, 3);
  }
  quiet_step.Use(of_quiet, {2, 3, 4});
  EXPECT_EQ(quiet_step.Finish(), 3) << "the newest within the floor are there";
  EXPECT_EQ(cache->AddTenant({.floor_slots = 8}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->AddTenant({.floor_slots = 3, .ceiling_slots = 2}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->AddTenant({.weight = 0.0}).status().code(), absl::StatusCode::kInvalidArgument);
  cache->Drop(of_quiet);
  cache->Drop(of_bound);
  cache->Drop(of_loud);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

TEST(BlockCacheTest, SharesFollowWeights) {
  const auto cache = Cache(90);
  const auto light = Tenant(*cache, {.weight = 1.0});
  const auto heavy = Tenant(*cache, {.weight = 2.0});
  BlockTable of_light(5000, 0, light), of_heavy(5000, 10000, heavy);
  Step light_step(*cache), heavy_step(*cache);
  for (int64_t i = 0; i < 5000; ++i) {  // both want all there is
    light_step.Use(of_light, {i});
    light_step.Finish();
    heavy_step.Use(of_heavy, {i});
    heavy_step.Finish();
  }
  EXPECT_NEAR(cache->stats(light).slots_used, 30, 1);
  EXPECT_NEAR(cache->stats(heavy).slots_used, 60, 1);
  cache->Drop(of_light);
  cache->Drop(of_heavy);
}

// One tenant with LRU against a list.
TEST(BlockCacheTest, RandomStepsOfOneTenantEqualAClock) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  constexpr size_t kSlots = 37;
  const auto cache = Cache(kSlots);
  const auto tenant = Tenant(*cache);
  BlockTable table(120, 7, tenant);
  Step step(*cache);
  struct Entry {
    int64_t number;
    int used;  // in round
    int seen;
  };
  std::list<Entry> clock;  // the first goes first
  for (int round = 0; round < 20000; ++round) {
    std::vector<int64_t> numbers;
    for (int64_t n = random.Integer(0, 12); n > 0; --n) {
      const int64_t number = std::min(random.Integer(0, 119), random.Integer(0, 119));
      if (std::find(numbers.begin(), numbers.end(), number) == numbers.end()) {
        numbers.push_back(number);
      }
    }
    int64_t want = 0;
    std::vector<int64_t> misses;
    for (const int64_t number : numbers) {
      const auto at = std::find_if(clock.begin(), clock.end(),
                                   [&](const Entry& entry) { return entry.number == number; });
      if (at == clock.end()) {
        misses.push_back(number);
      } else {
        at->used = round;
        ++want;
      }
    }
    for (const int64_t number : misses) {
      while (clock.size() == kSlots) {
        Entry& first = clock.front();
        if (first.used != round && first.used == first.seen) {
          clock.pop_front();
          break;
        }
        if (first.used != round) first.seen = first.used;
        clock.splice(clock.end(), clock, clock.begin());
      }
      clock.push_back({number, round, round});
    }
    step.Use(table, numbers);
    ASSERT_EQ(step.Finish(), want) << "round " << round;
    if (random.Integer(0, 499) == 0) {
      cache->Drop(table);
      clock.clear();
    }
  }
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

// Tenants that come, go, and step, with any policy: every invariant after every step.
class BlockCacheWorldTest : public ::testing::TestWithParam<ReplacementKind> {};

TEST_P(BlockCacheWorldTest, RandomOperationsKeepTheInvariants) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kOperations = 20000;
#else
  constexpr int kOperations = 400000;
#endif
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kSlots = 200;
  const auto cache = Cache(kSlots, GetParam());
  struct World {
    CacheShare share;
    BlockCache::TenantId id;
    std::unique_ptr<BlockTable> table;
    std::unique_ptr<Step> open;  // has pins
  };
  std::vector<World> tenants;
  uint64_t next_key = 0;
  for (int op = 0; op < kOperations; ++op) {
    const int64_t dice = random.Integer(0, 999);
    if (tenants.empty() || (dice == 0 && tenants.size() < 12)) {
      World world;
      world.share.floor_slots = random.Integer(0, 2) == 0 ? random.Integer(0, 40) : 0;
      if (random.Integer(0, 2) == 0) {
        world.share.ceiling_slots = world.share.floor_slots + random.Integer(1, 80);
      }
      world.share.weight = static_cast<double>(random.Integer(1, 4));
      const auto id = cache->AddTenant(world.share);
      if (!id.ok()) {
        ASSERT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted) << id.status();
        continue;
      }
      world.id = *id;
      world.table = std::make_unique<BlockTable>(300, next_key, world.id);
      next_key += 300;
      tenants.push_back(std::move(world));
      continue;
    }
    const size_t at = random.Integer(0, static_cast<int64_t>(tenants.size()) - 1);
    World& world = tenants[at];
    if (dice <= 2) {
      if (world.open != nullptr) world.open->Release();
      cache->Drop(*world.table);
      if (dice == 1) {
        cache->RemoveTenant(world.id);
        tenants.erase(tenants.begin() + static_cast<int64_t>(at));
      } else {
        world.open.reset();
      }
      continue;
    }
    std::vector<int64_t> before;
    for (const World& other : tenants) before.push_back(cache->stats(other.id).slots_used);
    if (world.open == nullptr) world.open = std::make_unique<Step>(*cache);
    std::vector<int64_t> numbers;
    for (int64_t n = random.Integer(0, 10); n > 0; --n) numbers.push_back(random.Integer(0, 299));
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    world.open->Use(*world.table, numbers);
    if (dice < 300) continue;  // stays open
    if (dice < 350) {
      world.open->Release();
    } else {
      world.open->Finish();
    }
    world.open.reset();
    for (size_t t = 0; t < tenants.size(); ++t) {
      const int64_t used = cache->stats(tenants[t].id).slots_used;
      const CacheShare& share = tenants[t].share;
      if (share.ceiling_slots > 0) {
        ASSERT_LE(used, share.ceiling_slots) << "operation " << op;
      }
      if (t != at) {
        ASSERT_GE(used, std::min(before[t], share.floor_slots)) << "operation " << op;
      }
    }
    const bool all_closed =
        std::all_of(tenants.begin(), tenants.end(), [](const World& w) { return !w.open; });
    if (all_closed && op % 64 == 0) {
      ASSERT_TRUE(cache->Audit().ok()) << cache->Audit() << " after operation " << op;
    }
  }
  int64_t used = 0;
  for (World& world : tenants) {
    if (world.open != nullptr) world.open->Release();
    used += cache->stats(world.id).slots_used;
  }
  EXPECT_EQ(used + cache->num_free(), kSlots);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

TEST_P(BlockCacheWorldTest, ThreadsSeeTheBytesOfTheBlocksTheyAskFor) {
  const auto cache = Cache(64, GetParam());
  constexpr int kThreads = 16;
  std::vector<BlockCache::TenantId> ids;
  std::vector<std::unique_ptr<BlockTable>> tables;
  for (int t = 0; t < 4; ++t) {  // four threads share a tenant and its table
    ids.push_back(Tenant(*cache, {.floor_slots = 4}));
    tables.push_back(std::make_unique<BlockTable>(200, t * 200, ids.back()));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(100 + t);
      Step step(*cache);
      for (int round = 0; round < 1500; ++round) {
        std::vector<int64_t> numbers;
        for (int64_t n = random.Integer(1, 6); n > 0; --n) {
          numbers.push_back(random.Integer(0, 20) == 0 ? random.Integer(0, 199)
                                                       : random.Integer(0, 29));
        }
        step.Use(*tables[t % 4], numbers);
        step.Finish();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
  for (int t = 0; t < 4; ++t) {
    EXPECT_GT(cache->stats(ids[t]).hits_total, 0);
    cache->Drop(*tables[t]);
  }
  EXPECT_EQ(cache->num_free(), 64);
}

INSTANTIATE_TEST_SUITE_P(Policies, BlockCacheWorldTest,
                         ::testing::Values(ReplacementKind::kLru, ReplacementKind::kSlru,
                                           ReplacementKind::kS3Fifo),
                         [](const auto& param) {
                           return std::string(ReplacementKindName(param.param));
                         });

}  // namespace
}  // namespace wavekv
