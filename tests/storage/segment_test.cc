#include "storage/segment.h"

#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/storage/token_rows.h"

namespace wavekv {
namespace {

using testing::TokenRows;

ModelSpec Model() {
  return {.num_layers = 1,
          .num_q_heads = 2,
          .num_kv_heads = 2,
          .head_dim_k = 16,
          .head_dim_v = 8,
          .kv_dtype = DType::kBFloat16};
}

class RowChunkTest : public ::testing::Test {
 protected:
  std::shared_ptr<RowChunk> MakeChunk(int64_t capacity, int64_t position_begin) {
    auto chunk = RowChunk::Create(*account_, Model(), capacity, position_begin);
    EXPECT_TRUE(chunk.ok()) << chunk.status();
    return *chunk;
  }

  const std::shared_ptr<Arena> arena_ = *Arena::Create(1 << 20);
  const std::shared_ptr<MemoryAccount> account_ = MemoryAccount::Create(arena_, 0);
};

TEST_F(RowChunkTest, RowsOfAllHeadsAreDisjointAndInsideTheExtent) {
  const auto chunk = MakeChunk(kChunkTokens, 0);
  std::set<const std::byte*> seen;
  const auto add = [&seen](const std::byte* row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i) EXPECT_TRUE(seen.insert(row + i).second);
  };
  for (int head = 0; head < 2; ++head) {
    for (int64_t row = 0; row < kChunkTokens; ++row) {
      add(chunk->keys(head, row), Model().key_row_bytes());
      add(chunk->values(head, row), Model().value_row_bytes());
    }
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), kChunkTokens * Model().token_bytes());
  EXPECT_EQ(*seen.rbegin() - *seen.begin() + 1, static_cast<int64_t>(seen.size()));
  EXPECT_LE(static_cast<int64_t>(seen.size()), account_->used_bytes());
}

TEST_F(RowChunkTest, RangeSeesTheRowsInOrder) {
  const auto chunk = MakeChunk(kChunkTokens, 132);
  const TokenRows rows(Model());
  for (int64_t row = 0; row < 5; ++row) rows.Write(row, *chunk, row);
  const KvRange range = chunk->Range(1, 5);
  EXPECT_EQ(range.num_tokens, 5);
  EXPECT_EQ(range.position_begin, 132);
  EXPECT_EQ(range.positions, nullptr);
  EXPECT_EQ(range.keys, chunk->keys(1, 0));
  EXPECT_EQ(range.values, chunk->values(1, 0));
}

TEST_F(RowChunkTest, OfTwoForksTheFirstToAppendClaimsTheRows) {
  const auto chunk = MakeChunk(kChunkTokens, 0);
  ASSERT_TRUE(chunk->Claim(0, 10));  // the common prefix
  EXPECT_TRUE(chunk->Claim(10, 4));
  EXPECT_FALSE(chunk->Claim(10, 1));  // the other fork, which still sees ten rows
  EXPECT_TRUE(chunk->Claim(14, 1));
}

TEST_F(RowChunkTest, ClaimBehindOrBeyondTheLastRowFails) {
  const auto chunk = MakeChunk(kChunkTokens, 0);
  ASSERT_TRUE(chunk->Claim(0, 3));
  EXPECT_FALSE(chunk->Claim(2, 1));
  EXPECT_FALSE(chunk->Claim(4, 1));
}

TEST_F(RowChunkTest, ClaimTakenBackCanBeClaimedAgain) {
  const auto chunk = MakeChunk(kChunkTokens, 0);
  ASSERT_TRUE(chunk->Claim(0, 10));
  ASSERT_TRUE(chunk->Claim(10, 5));
  chunk->Unclaim(10, 5);
  EXPECT_TRUE(chunk->Claim(10, 1));
}

TEST_F(RowChunkTest, ClaimThatOthersBuiltOnIsNotTakenBack) {
  const auto chunk = MakeChunk(kChunkTokens, 0);
  ASSERT_TRUE(chunk->Claim(0, 4));
  ASSERT_TRUE(chunk->Claim(4, 2));
  chunk->Unclaim(0, 4);
  EXPECT_FALSE(chunk->Claim(0, 1));
  EXPECT_TRUE(chunk->Claim(6, 1));
}

TEST_F(RowChunkTest, OneOfManyThreadsGetsTheNextRow) {
  for (int round = 0; round < 200; ++round) {
    const auto chunk = MakeChunk(kChunkTokens, 0);
    ASSERT_TRUE(chunk->Claim(0, 7));
    std::atomic<int> winners{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        if (chunk->Claim(7, 1)) winners.fetch_add(1);
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(winners.load(), 1);
  }
}

TEST_F(RowChunkTest, NoMemoryIsAStatusAndChargesNothing) {
  account_->SetQuota(4096);
  const auto chunk = RowChunk::Create(*account_, Model(), 1000, 0);
  EXPECT_EQ(chunk.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(account_->used_bytes(), 0);
}

class SegmentTest : public RowChunkTest {
 protected:
  std::shared_ptr<Segment> MakeSegment(int64_t begin, int64_t num_tokens) {
    RowChunks chunks;
    for (int64_t first = begin; first < begin + num_tokens; first += kChunkTokens) {
      chunks.push_back(MakeChunk(kChunkTokens, first));
      for (int64_t row = 0; row < kChunkTokens; ++row) {
        rows_.Write(static_cast<testing::Token>(first + row), *chunks.back(), row);
      }
    }
    return std::make_shared<Segment>(begin, begin + num_tokens, std::move(chunks));
  }

  const TokenRows rows_{Model()};
};

TEST_F(SegmentTest, BeginsPendingAndReadsItsChunks) {
  const auto segment = MakeSegment(4, 128);
  EXPECT_EQ(segment->state(), Segment::State::kPending);
  EXPECT_EQ(segment->num_tokens(), 128);
  const Segment::Pin pin = segment->Read();
  EXPECT_EQ(pin.sealed, nullptr);
  EXPECT_EQ(pin.chunks.size(), 2u);
}

TEST_F(SegmentTest, SealingReplacesTheChunksAndFreesThem) {
  testing::Random random(1);
  const auto segment = MakeSegment(4, 128);
  const int64_t chunk_bytes = account_->used_bytes();
  ASSERT_TRUE(rows_.Seal(*segment, *account_, random).ok());
  EXPECT_EQ(segment->state(), Segment::State::kSealed);
  const Segment::Pin pin = segment->Read();
  ASSERT_NE(pin.sealed, nullptr);
  EXPECT_TRUE(pin.chunks.empty());
  int64_t sealed_bytes = 0;
  for (const SealedHead& head : pin.sealed->heads) sealed_bytes += head.extent.bytes();
  EXPECT_EQ(account_->used_bytes(), sealed_bytes);
  EXPECT_GT(chunk_bytes, 0);
}

TEST_F(SegmentTest, ReaderKeepsTheChunksItPinnedThroughASeal) {
  testing::Random random(1);
  const auto segment = MakeSegment(4, 64);
  const Segment::Pin before = segment->Read();
  ASSERT_TRUE(rows_.Seal(*segment, *account_, random).ok());
  ASSERT_EQ(before.chunks.size(), 1u);
  const auto copy = MakeChunk(kChunkTokens, 4);
  for (int64_t row = 0; row < kChunkTokens; ++row) {
    rows_.Write(static_cast<testing::Token>(4 + row), *copy, row);
  }
  EXPECT_EQ(std::memcmp(before.chunks[0]->keys(0, 0), copy->keys(0, 0),
                        kChunkTokens * Model().token_bytes()),
            0);
}

TEST_F(SegmentTest, FailedBuildIsRetriedByExactlyOneCaller) {
  const auto segment = MakeSegment(4, 64);
  EXPECT_FALSE(segment->RetryUnsealable()) << "it has not failed";
  segment->MarkUnsealable();
  EXPECT_EQ(segment->state(), Segment::State::kUnsealable);
  EXPECT_EQ(segment->Read().chunks.size(), 1u);
  std::atomic<int> winners{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      if (segment->RetryUnsealable()) winners.fetch_add(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(winners.load(), 1);
  EXPECT_EQ(segment->state(), Segment::State::kPending);
}

TEST_F(SegmentTest, ReadersSeeAllTokensWhileItIsSealed) {
  testing::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const auto segment = MakeSegment(0, 128);
    std::vector<std::thread> readers;
    for (int t = 0; t < 3; ++t) {
      readers.emplace_back([&segment] {
        for (int i = 0; i < 50; ++i) {
          const Segment::Pin pin = segment->Read();
          int64_t tokens = 0;
          if (pin.sealed != nullptr) {
            for (int64_t c = 0; c < pin.sealed->heads[1].index.num_clusters; ++c) {
              tokens += pin.sealed->heads[1].index.cluster_range(c).num_tokens;
            }
          }
          for (const auto& chunk : pin.chunks) {
            tokens += chunk->Range(1, kChunkTokens).num_tokens;
            EXPECT_NE(chunk->keys(0, 0)[1], std::byte{0});
          }
          EXPECT_EQ(tokens, 128);
        }
      });
    }
    ASSERT_TRUE(rows_.Seal(*segment, *account_, random).ok());
    for (std::thread& reader : readers) reader.join();
  }
  EXPECT_EQ(account_->used_bytes(), 0);
}

}  // namespace
}  // namespace wavekv
