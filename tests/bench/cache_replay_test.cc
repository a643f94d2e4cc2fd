#include "bench/cache_replay.h"

#include <algorithm>
#include <map>
#include <vector>

#include "bench/unit_trace.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv::bench {
namespace {

using testing::Random;

constexpr int32_t kUnitBytes = 10;

UnitTrace RandomTrace(Random& random, int num_units, int num_batches, int batch_max) {
  UnitTrace trace;
  trace.unit_bytes.assign(num_units, kUnitBytes);
  for (int b = 0; b < num_batches; ++b) {
    std::vector<uint32_t> units(num_units);
    for (int i = 0; i < num_units; ++i) units[i] = i;
    std::shuffle(units.begin(), units.end(), random.engine());
    units.resize(random.Integer(1, batch_max));
    trace.batches.push_back({.reads = units, .step = b / 2});
  }
  return trace;
}

// The most hits that any choice of what to keep after each batch can have, by trying all.
int64_t MostHits(const UnitTrace& trace, int num_slots) {
  std::map<uint32_t, int64_t> best = {{0, 0}};  // by set of cached units
  for (const Batch& batch : trace.batches) {
    uint32_t read = 0;
    for (const uint32_t unit : batch.reads) read |= 1u << unit;
    std::map<uint32_t, int64_t> next;
    for (const auto& [cached, hits] : best) {
      const uint32_t all = cached | read;
      for (uint32_t kept = all;; kept = (kept - 1) & all) {
        if (__builtin_popcount(kept) <= num_slots) {
          int64_t& most = next[kept];
          most = std::max<int64_t>(most, hits + __builtin_popcount(cached & read));
        }
        if (kept == 0) break;
      }
    }
    best = std::move(next);
  }
  int64_t most = 0;
  for (const auto& [cached, hits] : best) most = std::max(most, hits);
  return most;
}

TEST(CacheReplayTest, BeladyHasTheMostHitsThatAreToBeHad) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (int i = 0; i < 40; ++i) {
    const UnitTrace trace = RandomTrace(random, 7, 12, 3);
    for (int num_slots = 0; num_slots <= 7; ++num_slots) {
      const ReplayResult result = ReplayBelady(trace, num_slots * kUnitBytes + 9);
      EXPECT_EQ(result.num_hits, MostHits(trace, num_slots));
      for (const ReplacementKind kind :
           {ReplacementKind::kLru, ReplacementKind::kSlru, ReplacementKind::kS3Fifo}) {
        for (const int rules : {0, 1, 2, 3}) {
          const ReplayResult other = Replay(
              trace, {.kind = kind, .keep_step = rules % 2 == 1, .touch_lazily = rules / 2 == 1},
              num_slots * kUnitBytes);
          EXPECT_LE(other.num_hits, result.num_hits);
          EXPECT_EQ(other.num_reads, result.num_reads);
          EXPECT_EQ(other.bytes_missed, (other.num_reads - other.num_hits) * kUnitBytes);
        }
      }
    }
  }
}

// Two layers whose reads together are one too many.
UnitTrace Rounds() {
  UnitTrace trace;
  trace.unit_bytes.assign(4, kUnitBytes);
  for (int step = 0; step < 10; ++step) {
    trace.batches.push_back({.reads = {0, 1}, .step = step, .is_counted = step > 0});
    trace.batches.push_back({.reads = {2, 3}, .step = step, .is_counted = step > 0});
  }
  return trace;
}

TEST(CacheReplayTest, AStepThatDoesNotFitKeepsWhatItReadFirst) {
  EXPECT_EQ(Replay(Rounds(), {.keep_step = false}, 3 * kUnitBytes).hit_ratio(), 0.5);
  EXPECT_EQ(Replay(Rounds(), {.keep_step = true}, 3 * kUnitBytes).hit_ratio(), 0.75);
  EXPECT_EQ(Replay(Rounds(), {.keep_step = false}, 4 * kUnitBytes).hit_ratio(), 1.0);
}

TEST(CacheReplayTest, WhatIsTouchedLazilyGoesRoundOnce) {
  UnitTrace trace;
  trace.unit_bytes.assign(4, kUnitBytes);
  // 0 is read again before 1; the search for the slot of 2 passes 0, then 1, and takes 0.
  for (const uint32_t unit : {0, 1, 1, 0, 2, 0, 1}) {
    trace.batches.push_back({.reads = {unit}, .step = static_cast<int64_t>(trace.batches.size())});
  }
  EXPECT_EQ(Replay(trace, {}, 2 * kUnitBytes).num_hits, 3);
  EXPECT_EQ(Replay(trace, {.touch_lazily = true}, 2 * kUnitBytes).num_hits, 2);
}

TEST(CacheReplayTest, NeighbouringMissesAreOneRequest) {
  EXPECT_EQ(Replay(Rounds(), {}, 0).num_requests, 18);
  EXPECT_EQ(Replay(Rounds(), {}, 3 * kUnitBytes).num_requests, 9);
}

TEST(CacheReplayTest, HintsAreFetchedOnceAndHitLater) {
  UnitTrace trace;
  trace.unit_bytes.assign(3, kUnitBytes);
  trace.batches.push_back({.reads = {0}, .hints = {0, 1}, .step = 0});
  trace.batches.push_back({.reads = {1}, .hints = {0, 1}, .step = 1});
  trace.batches.push_back({.reads = {2}, .step = 2});
  const ReplayResult result = Replay(trace, {.use_hints = true}, 3 * kUnitBytes);
  EXPECT_EQ(result.num_hits, 1);
  EXPECT_EQ(result.bytes_hinted, kUnitBytes);
  EXPECT_EQ(Replay(trace, {}, 3 * kUnitBytes).num_hits, 0);
}

TEST(CacheReplayTest, LargeUnitsPushOutAsManyAsItTakes) {
  UnitTrace trace;
  trace.unit_bytes = {10, 10, 20};
  for (const uint32_t unit : {0, 1, 2, 0, 2}) {
    trace.batches.push_back({.reads = {unit}, .step = static_cast<int64_t>(trace.batches.size())});
  }
  EXPECT_EQ(Replay(trace, {}, 30).num_hits, 1);  // the last: 2 pushed out 0, and 0 pushed out 1
  EXPECT_EQ(Replay(trace, {}, 19).num_hits, 0);  // 2 never fits, and 1 pushed out 0
}

// One head: clusters of 5 and 2 tokens, blocks of 4 tokens.
std::vector<RecordedHead> TwoClusters() {
  RecordedHead head;
  head.shape = {.token_bytes = 128, .block_tokens = 4, .block_bytes = 512};
  head.reads.segments = {{.first_token = 4, .cluster_tokens = {5, 2}}};
  head.reads.queries = {{0, 100, {{0, 1, 1}, {0, 0, 0}, {0, 0, 3}, {0, 0, 4}}}, {1, 101, {}}};
  head.wider = head.reads;
  head.wider.queries[0].reads.insert(head.wider.queries[0].reads.begin(), {0, 1, 0});
  return {head};
}

TEST(UnitTraceTest, NumbersUnitsInTheOrderOfStorage) {
  const auto heads = TwoClusters();
  EXPECT_EQ(AllBlocksBytes(heads), 3 * 512);

  const UnitTrace tokens = MakeUnitTrace(heads, {1});
  EXPECT_EQ(tokens.unit_bytes, std::vector<int32_t>(7, 128));
  EXPECT_EQ(tokens.batches[0].reads, (std::vector<uint32_t>{6, 0, 3, 4}));
  EXPECT_EQ(tokens.batches[0].hints, std::vector<uint32_t>{5});

  const UnitTrace blocks = MakeUnitTrace(heads, {4});
  EXPECT_EQ(blocks.unit_bytes, std::vector<int32_t>(3, 512));
  EXPECT_EQ(blocks.batches[0].reads, (std::vector<uint32_t>{2, 0, 1}));
  EXPECT_TRUE(blocks.batches[0].hints.empty());

  const UnitTrace clusters = MakeUnitTrace(heads, {0});
  EXPECT_EQ(clusters.unit_bytes, (std::vector<int32_t>{1024, 512}));
  EXPECT_EQ(clusters.batches[0].reads, (std::vector<uint32_t>{1, 0}));
  EXPECT_TRUE(clusters.batches[1].reads.empty());
}

TEST(UnitTraceTest, HeadsOfALayerTakeTurnsAndLayersFollowOneAnother) {
  std::vector<RecordedHead> heads;
  for (const int64_t layer : {0, 0, 1}) {
    heads.push_back(TwoClusters()[0]);
    heads.back().layer = layer;
  }
  const UnitTrace trace = MakeUnitTrace(heads, {0});
  ASSERT_EQ(trace.batches.size(), 4u);
  EXPECT_EQ(trace.batches[0].reads, (std::vector<uint32_t>{1, 3, 0, 2}));
  EXPECT_EQ(trace.batches[1].reads, (std::vector<uint32_t>{5, 4}));
  EXPECT_EQ(trace.batches[1].step, 0);
  EXPECT_EQ(trace.batches[2].step, 1);
}

}  // namespace
}  // namespace wavekv::bench
