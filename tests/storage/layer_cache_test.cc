#include "storage/layer_cache.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/storage/token_rows.h"

namespace wavekv {
namespace {

using testing::Random;
using testing::Token;
using testing::TokenRows;
using testing::Tokens;

ModelSpec Model(DType dtype = DType::kBFloat16) {
  return {.num_layers = 1,
          .num_q_heads = 2,
          .num_kv_heads = 2,
          .head_dim_k = 8,
          .head_dim_v = 16,
          .kv_dtype = dtype};
}

constexpr CutRule kRule{
    .segment_tokens = 256, .update_tokens = 128, .sink_tokens = 4, .window_tokens = 32};

class LayerCacheTest : public ::testing::Test {
 protected:
  void Append(LayerCache& cache, const std::vector<Token>& tokens) {
    const absl::Status status = rows_.Append(cache, *account_, tokens);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Expect(const LayerCache& cache, const std::vector<Token>& tokens) {
    rows_.ExpectContents(cache.Snapshot(), kRule, tokens);
  }
  void SealAll(LayerCache& cache, Random& random) {
    for (const auto& segment : cache.Snapshot().segments) {
      if (segment->state() == Segment::State::kSealed) continue;
      const absl::Status status = rows_.Seal(*segment, *account_, random);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  LayerContents Prefix(const LayerCache& cache, int64_t num_tokens) {
    auto prefix = cache.Prefix(*account_, num_tokens);
    EXPECT_TRUE(prefix.ok()) << prefix.status();
    return *std::move(prefix);
  }
  // Bytes of the extents of a layer that shares nothing.
  static int64_t BytesOf(const LayerContents& contents) {
    const int64_t chunk = Arena::RoundUp(kChunkTokens * Model().token_bytes());
    int64_t bytes =
        contents.sinks == nullptr ? 0 : Arena::RoundUp(kRule.sink_tokens * Model().token_bytes());
    bytes += static_cast<int64_t>(contents.tail.size()) * chunk;
    for (const auto& segment : contents.segments) {
      const Segment::Pin pin = segment->Read();
      bytes += static_cast<int64_t>(pin.chunks.size()) * chunk;
      if (pin.sealed == nullptr) continue;
      for (const SealedHead& head : pin.sealed->heads) bytes += head.extent.bytes();
    }
    return bytes;
  }

  const std::shared_ptr<Arena> arena_ = *Arena::Create(32 << 20);
  const std::shared_ptr<MemoryAccount> account_ = MemoryAccount::Create(arena_, 0);
  const TokenRows rows_{Model()};
};

std::vector<Token> Concat(std::vector<Token> a, const std::vector<Token>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<Token> First(const std::vector<Token>& tokens, int64_t count) {
  return {tokens.begin(), tokens.begin() + count};
}

TEST_F(LayerCacheTest, EmptyLayerHoldsNothing) {
  LayerCache cache(Model(), kRule);
  EXPECT_EQ(cache.length(), 0);
  Expect(cache, {});
  EXPECT_TRUE(cache.Cut(true).empty());
  EXPECT_EQ(account_->used_bytes(), 0);
}

TEST_F(LayerCacheTest, TokensStandAtTheirPositionsHoweverTheyAreAppended) {
  for (const std::vector<int64_t>& pieces : std::vector<std::vector<int64_t>>{
           {200}, {1, 199}, {3, 1, 196}, {4, 196}, {5, 195}, {67, 1, 132}, {68, 132}, {132, 68}}) {
    LayerCache cache(Model(), kRule);
    Token next = 0;
    for (const int64_t count : pieces) {
      Append(cache, Tokens(next, count));
      next += static_cast<Token>(count);
      Expect(cache, Tokens(0, next));
    }
  }
  LayerCache one_by_one(Model(), kRule);
  for (Token token = 0; token < 200; ++token) Append(one_by_one, {token});
  Expect(one_by_one, Tokens(0, 200));
}

TEST_F(LayerCacheTest, AppendOfNoRowsChangesNothing) {
  LayerCache cache(Model(), kRule);
  Append(cache, {});
  EXPECT_EQ(account_->used_bytes(), 0);
  Append(cache, Tokens(0, 9));
  const int64_t used = account_->used_bytes();
  Append(cache, {});
  Expect(cache, Tokens(0, 9));
  EXPECT_EQ(account_->used_bytes(), used);
}

TEST_F(LayerCacheTest, SinksAreKeptApartFromTheTail) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 3));
  EXPECT_TRUE(cache.Snapshot().tail.empty());
  Append(cache, Tokens(3, 2));
  const LayerContents contents = cache.Snapshot();
  ASSERT_NE(contents.sinks, nullptr);
  EXPECT_EQ(contents.sinks->capacity(), 4);
  EXPECT_EQ(contents.tail.size(), 1u);
  EXPECT_EQ(contents.tail[0]->position_begin(), 4);
}

TEST_F(LayerCacheTest, LayerWithoutSinksPutsEverythingInTheTail) {
  CutRule rule = kRule;
  rule.sink_tokens = 0;
  LayerCache cache(Model(), rule);
  Append(cache, Tokens(0, 70));
  EXPECT_EQ(cache.Snapshot().sinks, nullptr);
  rows_.ExpectContents(cache.Snapshot(), rule, Tokens(0, 70));
  const LayerContents prefix = Prefix(cache, 64);
  rows_.ExpectContents(prefix, rule, Tokens(0, 64));
}

TEST_F(LayerCacheTest, PromptIsCutWhenASegmentLiesWhollyBehindTheWindow) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 4 + 256 + 32 - 1));
  EXPECT_TRUE(cache.Cut(false).empty());
  Append(cache, Tokens(4 + 256 + 32 - 1, 1));
  const auto cut = cache.Cut(false);
  ASSERT_EQ(cut.size(), 1u);
  EXPECT_EQ(cut[0]->begin(), 4);
  EXPECT_EQ(cut[0]->end(), 4 + 256);
  EXPECT_TRUE(cache.Cut(false).empty());
  Expect(cache, Tokens(0, 4 + 256 + 32));
}

TEST_F(LayerCacheTest, LongPromptIsCutIntoWholeSegments) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 1000));
  const auto cut = cache.Cut(false);
  ASSERT_EQ(cut.size(), 3u);  // 964 tokens lie behind the window
  for (size_t i = 0; i < cut.size(); ++i) {
    EXPECT_EQ(cut[i]->begin(), static_cast<int64_t>(4 + 256 * i));
    EXPECT_EQ(cut[i]->num_tokens(), 256);
  }
  Expect(cache, Tokens(0, 1000));
}

TEST_F(LayerCacheTest, DecodingCutsMultiplesOfTheUpdateLength) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 4 + 128 + 32 - 1));
  EXPECT_TRUE(cache.Cut(true).empty());
  Append(cache, Tokens(4 + 128 + 32 - 1, 1));
  EXPECT_TRUE(cache.Cut(false).empty()) << "a prompt waits for whole segments";
  const auto cut = cache.Cut(true);
  ASSERT_EQ(cut.size(), 1u);
  EXPECT_EQ(cut[0]->end(), 4 + 128);
  Expect(cache, Tokens(0, 4 + 128 + 32));
}

TEST_F(LayerCacheTest, DecodingAfterAPromptCutsSegmentsFirstAndThenTheRest) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 4 + 256 + 128 + 60 + 32));
  const auto cut = cache.Cut(true);
  ASSERT_EQ(cut.size(), 2u);
  EXPECT_EQ(cut[0]->num_tokens(), 256);
  EXPECT_EQ(cut[1]->num_tokens(), 128);
  Expect(cache, Tokens(0, 4 + 256 + 128 + 60 + 32));
}

TEST_F(LayerCacheTest, FailedBuildsAreRetriedWhenAsked) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 600));
  const auto cut = cache.Cut(false);
  ASSERT_EQ(cut.size(), 2u);
  cut[1]->MarkUnsealable();
  const auto again = cache.RetryUnsealable();
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0], cut[1]);
  EXPECT_EQ(cut[1]->state(), Segment::State::kPending);
  EXPECT_TRUE(cache.RetryUnsealable().empty());
}

TEST_F(LayerCacheTest, SealingKeepsEveryTokenAtItsPosition) {
  Random random(1);
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 900));
  cache.Cut(true);
  SealAll(cache, random);
  Expect(cache, Tokens(0, 900));
}

TEST_F(LayerCacheTest, SnapshotIsNotChangedByLaterWrites) {
  Random random(1);
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 300));
  const LayerContents before = cache.Snapshot();
  Append(cache, Tokens(300, 300));
  cache.Cut(true);
  SealAll(cache, random);
  cache.Replace(Prefix(cache, 10));
  Append(cache, Tokens(5000, 100));
  rows_.ExpectContents(before, kRule, Tokens(0, 300));
  cache.Replace({});
  rows_.ExpectContents(before, kRule, Tokens(0, 300));
}

TEST_F(LayerCacheTest, ReplacedContentsAreFreed) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 300));
  EXPECT_EQ(account_->used_bytes(), BytesOf(cache.Snapshot()));
  cache.Replace({});
  EXPECT_EQ(account_->used_bytes(), 0);
  EXPECT_EQ(cache.length(), 0);
  Append(cache, Tokens(7, 20));
  Expect(cache, Tokens(7, 20));
}

TEST_F(LayerCacheTest, AbandonedAppendLeavesNoTrace) {
  for (const int64_t length : {0, 2, 4, 30, 68, 100}) {
    SCOPED_TRACE(length);
    LayerCache cache(Model(), kRule);
    Append(cache, Tokens(0, length));
    const int64_t used = account_->used_bytes();
    {
      auto append = cache.PrepareAppend(*account_, 200);
      ASSERT_TRUE(append.ok()) << append.status();
      for (const RowSlice& slice : append->slices()) {
        for (int64_t i = 0; i < slice.count; ++i) rows_.Write(999999, *slice.chunk, slice.row + i);
      }
      EXPECT_EQ(cache.length(), length);
    }
    EXPECT_EQ(account_->used_bytes(), used);
    Expect(cache, Tokens(0, length));
    auto next = cache.PrepareAppend(*account_, 1);
    ASSERT_TRUE(next.ok());
    EXPECT_NE(next->slices()[0].place, RowSlice::Place::kReplace) << "its rows are still claimed";
    next = PendingAppend();
    Append(cache, Tokens(static_cast<Token>(length), 150));
    Expect(cache, Tokens(0, length + 150));
  }
}

TEST_F(LayerCacheTest, AppendThatDoesNotFitChangesNothing) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 100));
  const int64_t used = account_->used_bytes();
  account_->SetQuota(used + 2 * Arena::kBlockBytes);
  const auto append = cache.PrepareAppend(*account_, 1000);
  EXPECT_EQ(append.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(account_->used_bytes(), used);
  Expect(cache, Tokens(0, 100));
  account_->SetQuota(0);
  Append(cache, Tokens(100, 1000));
  Expect(cache, Tokens(0, 1100));
}

TEST_F(LayerCacheTest, PrefixAtEveryLengthOfASealedLayerIsByteForByteTheSame) {
  Random random(7);
  WAVEKV_TRACE_SEED(random);
  LayerCache cache(Model(), kRule);
  const std::vector<Token> tokens = Tokens(0, 4 + 256 + 128 + 90);
  Append(cache, tokens);
  cache.Cut(true);
  SealAll(cache, random);
  ASSERT_EQ(cache.Snapshot().segments.size(), 2u);
  const int64_t used = account_->used_bytes();
  for (int64_t length = 0; length <= static_cast<int64_t>(tokens.size()); ++length) {
    SCOPED_TRACE(length);
    rows_.ExpectContents(Prefix(cache, length), kRule, First(tokens, length));
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(account_->used_bytes(), used) << "the copy was not freed";
  }
  Expect(cache, tokens);
}

TEST_F(LayerCacheTest, PrefixAtEveryLengthOfAPendingLayerCopiesNothing) {
  LayerCache cache(Model(), kRule);
  const std::vector<Token> tokens = Tokens(0, 4 + 256 + 128 + 90);
  Append(cache, tokens);
  cache.Cut(true);
  const int64_t used = account_->used_bytes();
  for (int64_t length = 0; length <= static_cast<int64_t>(tokens.size()); ++length) {
    SCOPED_TRACE(length);
    const LayerContents prefix = Prefix(cache, length);
    rows_.ExpectContents(prefix, kRule, First(tokens, length));
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(account_->used_bytes(), used);
  }
}

TEST_F(LayerCacheTest, PrefixInsideASealedSegmentHoldsEveryDTypeExactly) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    SCOPED_TRACE(DTypeName(dtype));
    Random random(8);
    const TokenRows rows(Model(dtype));
    LayerCache cache(Model(dtype), kRule);
    ASSERT_TRUE(rows.Append(cache, *account_, Tokens(0, 600)).ok());
    for (const auto& segment : cache.Cut(true)) {
      ASSERT_TRUE(rows.Seal(*segment, *account_, random).ok());
    }
    for (const int64_t length : {5, 100, 259, 260, 261, 387, 599}) {
      rows.ExpectContents(Prefix(cache, length), kRule, Tokens(0, length));
    }
  }
}

TEST_F(LayerCacheTest, PrefixLongerThanTheLayerIsRefused) {
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 10));
  const auto prefix = cache.Prefix(*account_, 11);
  EXPECT_EQ(prefix.status().code(), absl::StatusCode::kOutOfRange);
}

TEST_F(LayerCacheTest, PrefixThatDoesNotFitChangesNothing) {
  Random random(2);
  LayerCache cache(Model(), kRule);
  Append(cache, Tokens(0, 400));
  cache.Cut(false);
  SealAll(cache, random);
  const int64_t used = account_->used_bytes();
  account_->SetQuota(used + 2 * Arena::kBlockBytes);
  const auto prefix = cache.Prefix(*account_, 250);
  EXPECT_EQ(prefix.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(account_->used_bytes(), used);
  Expect(cache, Tokens(0, 400));
}

TEST_F(LayerCacheTest, ForksShareEverythingUntilTheyAppend) {
  LayerCache parent(Model(), kRule);
  LayerCache child(Model(), kRule);
  Append(parent, Tokens(0, 100));
  const int64_t used = account_->used_bytes();
  child.Replace(Prefix(parent, 100));
  EXPECT_EQ(account_->used_bytes(), used);

  // The first to append writes in place, the second copies the growing chunk.
  Append(child, Tokens(1000, 1));
  EXPECT_EQ(account_->used_bytes(), used);
  Append(parent, Tokens(2000, 1));
  EXPECT_EQ(account_->used_bytes(), used + Arena::RoundUp(kChunkTokens * Model().token_bytes()));
  Append(child, Tokens(1001, 60));
  Append(parent, Tokens(2001, 60));
  Expect(child, Concat(Tokens(0, 100), Tokens(1000, 61)));
  Expect(parent, Concat(Tokens(0, 100), Tokens(2000, 61)));
}

TEST_F(LayerCacheTest, ForkInsideTheSinksDoesNotTouchTheParents) {
  LayerCache parent(Model(), kRule);
  LayerCache child(Model(), kRule);
  Append(parent, Tokens(0, 50));
  child.Replace(Prefix(parent, 2));
  Append(child, Tokens(1000, 50));
  Expect(parent, Tokens(0, 50));
  Expect(child, Concat(Tokens(0, 2), Tokens(1000, 50)));
}

TEST_F(LayerCacheTest, ForkOutlivesItsParent) {
  Random random(2);
  LayerCache child(Model(), kRule);
  {
    LayerCache parent(Model(), kRule);
    Append(parent, Tokens(0, 500));
    parent.Cut(true);
    SealAll(parent, random);
    child.Replace(Prefix(parent, 450));
  }
  Expect(child, Tokens(0, 450));
  child.Replace({});
  EXPECT_EQ(account_->used_bytes(), 0);
}

TEST_F(LayerCacheTest, SegmentSealedInOneForkIsSealedInAll) {
  Random random(2);
  LayerCache parent(Model(), kRule);
  LayerCache child(Model(), kRule);
  Append(parent, Tokens(0, 400));
  parent.Cut(false);
  child.Replace(Prefix(parent, 400));
  SealAll(parent, random);
  EXPECT_EQ(child.Snapshot().segments[0]->state(), Segment::State::kSealed);
  Expect(child, Tokens(0, 400));
}

TEST_F(LayerCacheTest, TruncatedLayerGrowsAnewWithoutTouchingForks) {
  Random random(2);
  LayerCache cache(Model(), kRule);
  LayerCache fork(Model(), kRule);
  Append(cache, Tokens(0, 500));
  cache.Cut(true);
  SealAll(cache, random);
  fork.Replace(Prefix(cache, 500));
  for (const int64_t length : {470, 300, 131, 4, 1, 0}) {
    SCOPED_TRACE(length);
    cache.Replace(Prefix(cache, length));
    Append(cache, Tokens(9000, 3));
    cache.Cut(true);
    Expect(cache, Concat(Tokens(0, length), Tokens(9000, 3)));
    Expect(fork, Tokens(0, 500));
    cache.Replace(Prefix(cache, length));
  }
}

// A family of forks of one layer against vectors of tokens.
TEST_F(LayerCacheTest, RandomAppendsForksTruncationsCutsAndSealsMatchVectors) {
  Random random(42);
  WAVEKV_TRACE_SEED(random);
  struct Fork {
    std::unique_ptr<LayerCache> cache;
    std::vector<Token> tokens;
  };
  std::vector<Fork> forks;
  Token next = 1;
  for (int operation = 0; operation < 3000; ++operation) {
    SCOPED_TRACE(operation);
    if (forks.empty()) forks.push_back({std::make_unique<LayerCache>(Model(), kRule), {}});
    const size_t chosen = random.Integer(0, static_cast<int64_t>(forks.size()) - 1);
    LayerCache& cache = *forks[chosen].cache;
    std::vector<Token>& tokens = forks[chosen].tokens;
    const int64_t length = static_cast<int64_t>(tokens.size());
    const int64_t somewhere = random.Integer(0, length);
    const int64_t dice = random.Integer(0, 99);
    if (dice < 45) {
      const int64_t count =
          random.Integer(0, 9) == 0 ? random.Integer(0, 400) : random.Integer(0, 20);
      Append(cache, Tokens(next, count));
      tokens = Concat(tokens, Tokens(next, count));
      next += static_cast<Token>(count);
    } else if (dice < 60) {
      cache.Cut(random.Integer(0, 1) == 0);
    } else if (dice < 70) {
      SealAll(cache, random);
    } else if (dice < 80 && forks.size() < 8) {
      Fork fork{std::make_unique<LayerCache>(Model(), kRule), First(tokens, somewhere)};
      fork.cache->Replace(Prefix(cache, somewhere));
      forks.push_back(std::move(fork));
    } else if (dice < 92) {
      // Mostly a few tokens, as speculative decoding rolls back.
      const int64_t keep =
          dice < 89 ? std::max<int64_t>(0, length - random.Integer(0, 8)) : somewhere;
      cache.Replace(Prefix(cache, keep));
      tokens.resize(keep);
    } else if (dice < 95) {
      auto abandoned = cache.PrepareAppend(*account_, random.Integer(0, 100));
      ASSERT_TRUE(abandoned.ok());
    } else if (dice < 97 || forks.size() == 8) {
      std::swap(forks[chosen], forks.back());
      forks.pop_back();
      continue;
    }
    Expect(*forks[chosen].cache, forks[chosen].tokens);
    ASSERT_FALSE(HasFatalFailure());
    if (operation % 50 != 0) continue;
    for (const Fork& fork : forks) Expect(*fork.cache, fork.tokens);
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(account_->used_bytes(), arena_->used_bytes());
  }
  forks.clear();
  EXPECT_EQ(account_->used_bytes(), 0);
}

TEST_F(LayerCacheTest, ReadersSeeWholeStatesWhileOneWriterWorks) {
  LayerCache cache(Model(), kRule);
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&] {
      while (!done.load()) {
        const LayerContents contents = cache.Snapshot();
        rows_.ExpectContents(contents, kRule, Tokens(0, contents.length));
        const auto prefix = cache.Prefix(*account_, contents.length / 2);
        if (!prefix.ok()) {
          // The writer truncated the layer in between.
          EXPECT_EQ(prefix.status().code(), absl::StatusCode::kOutOfRange);
          continue;
        }
        rows_.ExpectContents(*prefix, kRule, Tokens(0, contents.length / 2));
      }
    });
  }
  Random random(6);
  for (int round = 0; round < 40; ++round) {
    for (Token token = 0; token < 450; token += 15) {
      Append(cache, Tokens(token, 15));
      cache.Cut(true);
      if (token % 75 == 0) SealAll(cache, random);
    }
    cache.Replace(Prefix(cache, round % 2 == 0 ? 0 : 150));
    if (round % 2 == 1) cache.Replace(Prefix(cache, 0));
  }
  done.store(true);
  for (std::thread& reader : readers) reader.join();
  cache.Replace({});
  EXPECT_EQ(account_->used_bytes(), 0);
}

}  // namespace
}  // namespace wavekv
