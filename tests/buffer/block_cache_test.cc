#include "buffer/block_cache.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/buffer/block_cache_step.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::BytesOf;
using testing::Cache;
using testing::kSlotBytes;
using testing::Random;
using testing::Step;
using testing::Tenant;

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

// One tenant with LRU against a list in which what was used since it was looked at goes round.
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

TEST(BlockCacheTest, AdmissionEndsWhenEverySlotIsPinned) {
  const auto cache = Cache(8);
  const auto first = Tenant(*cache);
  const auto second = Tenant(*cache, {.floor_slots = 4});
  BlockTable of_first(8, 0, first), of_second(8, 100, second);
  Step holder(*cache), other(*cache);
  holder.Use(of_first, {0, 1, 2, 3, 4, 5, 6, 7});
  holder.Finish();
  holder.Use(of_first, {0, 1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(cache->num_pinned(), 8);
  other.Use(of_second, {0, 1, 2});
  other.Finish(false);
  EXPECT_EQ(cache->stats(second).rejections_total, 3);
  EXPECT_EQ(cache->stats(second).slots_used, 0);
  EXPECT_TRUE(cache->SetShare(first, {.ceiling_slots = 2}).ok());
  EXPECT_EQ(cache->stats(first).slots_used, 8) << "nothing can go";
  holder.Release();
  EXPECT_EQ(cache->num_pinned(), 0);
  other.Use(of_second, {0, 1, 2});
  other.Finish();
  EXPECT_EQ(cache->stats(second).slots_used, 3) << "the same step may go on";
  cache->Drop(of_first);
  cache->Drop(of_second);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

TEST(BlockCacheTest, ALowerCeilingHoldsAtOnceButForPinnedBlocks) {
  const auto cache = Cache(10);
  const auto tenant = Tenant(*cache);
  BlockTable table(20, 0, tenant);
  Step holder(*cache), step(*cache);
  step.Use(table, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  step.Finish();
  holder.Use(table, {0, 1, 2, 3, 4});
  ASSERT_TRUE(cache->SetShare(tenant, {.ceiling_slots = 3}).ok());
  EXPECT_EQ(cache->stats(tenant).slots_used, 5) << "those that are pinned";
  EXPECT_EQ(cache->stats(tenant).evictions_by_share_total, 5);
  EXPECT_EQ(cache->num_free(), 5);
  step.Use(table, {10});
  step.Finish();
  EXPECT_EQ(cache->stats(tenant).slots_used, 5);
  EXPECT_EQ(cache->stats(tenant).rejections_total, 1);
  holder.Release();
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
  step.Use(table, {11});
  step.Finish();
  EXPECT_EQ(cache->stats(tenant).slots_used, 3) << "the next admission evicts down to the ceiling";
  step.Use(table, {11});
  EXPECT_EQ(step.Finish(), 1);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
  for (uint32_t slot = 0; slot < 10; ++slot) {
    const std::byte* const bytes = cache->memory().slot(slot);
    uint32_t num_holding = 0;
    for (int64_t block = 0; block < 20; ++block) num_holding += table.slot(block) == slot ? 1 : 0;
    if (num_holding == 0) {
      EXPECT_EQ(std::count(bytes, bytes + kSlotBytes, std::byte{0}), kSlotBytes);
    }
  }
  ASSERT_TRUE(cache->SetShare(tenant, {.floor_slots = 10}).ok());
  EXPECT_EQ(cache->AddTenant({.floor_slots = 1}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->SetShare(tenant, {.floor_slots = 11}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->SetShare(tenant, {.weight = -1.0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->SetShare(tenant, {.floor_slots = 3, .ceiling_slots = 2}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->AddTenant({.floor_slots = 1}).status().code(),
            absl::StatusCode::kResourceExhausted)
      << "a share that is refused changes nothing";
  cache->Drop(table);
}

TEST(BlockCacheTest, OneAdmissionTakesBlocksOfSeveralTenants) {
  const auto cache = Cache(6);
  const auto bound = Tenant(*cache, {.ceiling_slots = 1});
  const auto free = Tenant(*cache);
  BlockTable of_bound(10, 0, bound), of_free(10, 100, free);
  Step step(*cache);
  step.Use(of_bound, {0, 1});
  step.Use(of_free, {0, 1});
  step.Use(of_bound, {2});
  step.Use(of_free, {2});
  step.Finish();
  EXPECT_EQ(cache->stats(bound).slots_used, 1);
  EXPECT_EQ(cache->stats(bound).rejections_total, 2);
  EXPECT_EQ(cache->stats(free).slots_used, 3) << "who finds nothing keeps nobody else from it";
  cache->Drop(of_bound);
  cache->Drop(of_free);
}

TEST(BlockCacheTest, WhoScansGivesWayToWhoReadsAgain) {
  const auto cache = Cache(100);
  const auto reader = Tenant(*cache);
  const auto scanner = Tenant(*cache);
  BlockTable of_reader(85, 0, reader), of_scanner(40000, 1000, scanner);
  Step read(*cache), scan(*cache);
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  for (int64_t i = 0; i < 4000; ++i) {
    read.Use(of_reader, {random.Integer(0, 84)});
    read.Finish();
    std::vector<int64_t> next;
    for (int64_t n = 0; n < 10; ++n) next.push_back(10 * i + n);
    scan.Use(of_scanner, next);
    scan.Finish();
  }
  const CacheTenantStats stats = cache->stats(reader);
  EXPECT_GE(stats.slots_used, 84) << "equal parts would be 50";
  EXPECT_GT(stats.recent_hit_ratio, 0.9);
  EXPECT_LT(cache->stats(scanner).recent_hit_ratio, 0.1);
  EXPECT_EQ(cache->stats(scanner).misses_total, 40000);
  cache->Drop(of_reader);
  cache->Drop(of_scanner);
}

TEST(BlockCacheTest, RecentHitRatiosForgetWhatIsLongAgo) {
  const auto cache = Cache(1);
  const auto tenant = Tenant(*cache);
  EXPECT_EQ(cache->stats(tenant).recent_hit_ratio, 1.0) << "new ones have the benefit of doubt";
  for (int i = 0; i < 100; ++i) cache->CountLookups(tenant, 250, 750);
  EXPECT_NEAR(cache->stats(tenant).recent_hit_ratio, 0.25, 0.05);
  cache->CountLookups(tenant, int64_t{1} << 33, 0);
  EXPECT_NEAR(cache->stats(tenant).recent_hit_ratio, 1.0, 0.01);
  for (int i = 0; i < 200; ++i) cache->CountLookups(tenant, 0, 1000);
  EXPECT_LT(cache->stats(tenant).recent_hit_ratio, 0.15);
  cache->CountLookups(tenant, 0, 0);
  EXPECT_EQ(cache->stats(tenant).hits_total, 25000 + (int64_t{1} << 33));
  EXPECT_EQ(cache->stats(tenant).misses_total, 275000);
}

TEST(BlockCacheTest, TenantsComeInAnyNumber) {
  const auto cache = Cache(1000);
  std::vector<std::unique_ptr<BlockTable>> tables;
  for (uint32_t t = 0; t < 1000; ++t) {
    ASSERT_EQ(Tenant(*cache, {.floor_slots = 1}), t);
    tables.push_back(std::make_unique<BlockTable>(3, 3 * t, t));
  }
  Step step(*cache);
  for (int round = 0; round < 3; ++round) {
    for (const auto& table : tables) step.Use(*table, {round});
    step.Finish();
  }
  for (uint32_t t = 0; t < 1000; ++t) EXPECT_EQ(cache->stats(t).slots_used, 1);
  cache->Drop(*tables[500]);
  cache->RemoveTenant(500);
  EXPECT_EQ(Tenant(*cache, {.floor_slots = 1}), 500u) << "places are used again";
  EXPECT_EQ(cache->stats(500).hits_total, 0);
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

// Reads after Zipf's law from a set of its own.
class ZipfReader {
 public:
  ZipfReader(BlockCache& cache, BlockCache::TenantId tenant, int64_t num_blocks, uint64_t seed)
      : cache_(cache), table_(num_blocks, seed << 32, tenant), step_(cache), random_(seed) {
    std::vector<double> weights;
    for (int64_t i = 0; i < num_blocks; ++i) weights.push_back(1.0 / static_cast<double>(i + 1));
    zipf_ = std::discrete_distribution<int64_t>(weights.begin(), weights.end());
  }
  ~ZipfReader() { cache_.Drop(table_); }

  void Read(int num_lookups) {
    std::vector<int64_t> numbers;
    while (static_cast<int>(numbers.size()) < num_lookups) {
      const int64_t number = zipf_(random_.engine());
      if (std::find(numbers.begin(), numbers.end(), number) == numbers.end()) {
        numbers.push_back(number);
      }
    }
    step_.Use(table_, numbers);
    step_.Finish();
  }
  // Since the last call.
  double HitRatio() {
    const CacheTenantStats stats = cache_.stats(table_.tenant());
    const auto hits = static_cast<double>(stats.hits_total - counted_.hits_total);
    const auto misses = static_cast<double>(stats.misses_total - counted_.misses_total);
    counted_ = stats;
    return hits / (hits + misses);
  }

 private:
  BlockCache& cache_;
  BlockTable table_;
  Step step_;
  Random random_;
  std::discrete_distribution<int64_t> zipf_;
  CacheTenantStats counted_;
};

TEST(BlockCacheTest, OneOf64TenantsAtAHundredTimesTheRateTakesNothingFromTheOthers) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kRounds = 24;
#else
  constexpr int kRounds = 240;
#endif
  constexpr int kLookups = 8;
  constexpr int64_t kSlots = 4096;
  constexpr int kQuiet = 63;
  // Together more than there are slots, so that the loud one wants what the quiet ones have.
  const CacheShare quiet_share = {.floor_slots = 60, .ceiling_slots = 64};
  const CacheShare loud_share = {.ceiling_slots = 1000};
  std::vector<double> alone;
  for (int t = 0; t < kQuiet; ++t) {
    const auto cache = Cache(kSlots);
    ZipfReader reader(*cache, Tenant(*cache, quiet_share), 300, 1 + t);
    for (int round = 0; round < kRounds; ++round) {
      if (round == kRounds / 4) reader.HitRatio();
      reader.Read(kLookups);
    }
    alone.push_back(reader.HitRatio());
  }
  const auto cache = Cache(kSlots);
  std::vector<std::unique_ptr<ZipfReader>> quiet;
  for (int t = 0; t < kQuiet; ++t) {
    quiet.push_back(std::make_unique<ZipfReader>(*cache, Tenant(*cache, quiet_share), 300, 1 + t));
  }
  ZipfReader loud(*cache, Tenant(*cache, loud_share), 20000, 1000);
  std::vector<int64_t> used(kQuiet + 1);
  int num_steps = 0;
  const auto sample = [&] {
    for (int t = 0; t <= kQuiet; ++t) {
      const int64_t now = cache->stats(t).slots_used;
      const CacheShare& share = t < kQuiet ? quiet_share : loud_share;
      ASSERT_LE(now, share.ceiling_slots) << "tenant " << t;
      ASSERT_GE(now, std::min(used[t], share.floor_slots)) << "tenant " << t;
      used[t] = now;
    }
  };
  for (int round = 0; round < kRounds; ++round) {
    if (round == kRounds / 4) {
      for (const auto& reader : quiet) reader->HitRatio();
    }
    for (int i = 0; i < 100; ++i) {
      loud.Read(kLookups);
      if (i < kQuiet) quiet[i]->Read(kLookups);
      if (++num_steps % 16 == 0) {
        ASSERT_NO_FATAL_FAILURE(sample());
      }
    }
  }
  for (int t = 0; t < kQuiet; ++t) {
    EXPECT_GE(quiet[t]->HitRatio(), 0.95 * alone[t]) << "tenant " << t;
  }
  EXPECT_GT(cache->stats(kQuiet).evictions_by_pressure_total, 0) << "there was pressure";
  EXPECT_TRUE(cache->Audit().ok()) << cache->Audit();
}

// Tenants that come, go, and step, with any policy: every invariant after every step.
class BlockCacheWorldTest : public ::testing::TestWithParam<ReplacementKind> {};

TEST_P(BlockCacheWorldTest, RandomOperationsKeepTheInvariants) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kOperations = 20000;
#else
  constexpr int kOperations = 200000;
#endif
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kSlots = 200;
  const auto cache = Cache(kSlots, GetParam());
  struct World {
    CacheShare share;
    BlockCache::TenantId id;
    int64_t limit = 0;  // its ceiling, or what was pinned when that came down
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
        world.limit = world.share.ceiling_slots;
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
    if (dice == 3) {
      CacheShare share = world.share;
      share.ceiling_slots = share.floor_slots + random.Integer(1, 80);
      const int64_t held = cache->stats(world.id).slots_used;
      ASSERT_TRUE(cache->SetShare(world.id, share).ok());
      ASSERT_GE(cache->stats(world.id).slots_used, std::min(held, share.ceiling_slots));
      world.share = share;
      world.limit = std::max(share.ceiling_slots, cache->stats(world.id).slots_used);
      continue;
    }
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
        ASSERT_LE(used, tenants[t].limit) << "operation " << op;
        tenants[t].limit = std::max(share.ceiling_slots, used);
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
      auto own = std::make_unique<BlockTable>(50, 10000 + 50 * t, ids[t % 4]);
      for (int round = 0; round < 1500; ++round) {
        std::vector<int64_t> numbers;
        for (int64_t n = random.Integer(1, 6); n > 0; --n) {
          numbers.push_back(random.Integer(0, 20) == 0 ? random.Integer(0, 199)
                                                       : random.Integer(0, 29));
        }
        step.Use(*tables[t % 4], numbers);
        step.Use(*tables[(t + 1) % 4], {numbers[0]});
        step.Use(*own, {random.Integer(0, 9)});
        step.Finish(random.Integer(0, 1) == 0);
        const int64_t dice = random.Integer(0, 99);
        if (dice == 0) {
          cache->Drop(*own);
          own = std::make_unique<BlockTable>(50, 10000 + 50 * t, ids[t % 4]);
        } else if (dice == 1) {
          EXPECT_TRUE(cache
                          ->SetShare(ids[t % 4], {.floor_slots = random.Integer(0, 4),
                                                  .ceiling_slots = random.Integer(8, 40)})
                          .ok());
        } else if (dice == 2) {
          const auto guest = Tenant(*cache);
          BlockTable table(4, 20000 + 4 * t, guest);
          step.Use(table, {0, 1, 2});
          step.Finish();
          EXPECT_LE(cache->stats(guest).slots_used, 3);
          cache->Drop(table);
          cache->RemoveTenant(guest);
        } else if (dice == 3) {
          EXPECT_LE(cache->num_pinned(), 64);
        }
      }
      cache->Drop(*own);
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
