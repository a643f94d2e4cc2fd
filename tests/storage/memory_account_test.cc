#include "storage/memory_account.h"

#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kBlock = Arena::kBlockBytes;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(MemoryAccountTest, ExtentIsChargedInWholeBlocksWhileItLives) {
  const auto arena = *Arena::Create(8 * kBlock);
  const auto account = MemoryAccount::Create(arena, 0);
  {
    const auto extent = account->Allocate(kBlock + 1);
    ASSERT_TRUE(extent.ok()) << extent.status();
    EXPECT_EQ(extent->bytes(), 2 * kBlock);
    EXPECT_EQ(account->used_bytes(), 2 * kBlock);
    EXPECT_EQ(arena->used_bytes(), 2 * kBlock);
  }
  EXPECT_EQ(account->used_bytes(), 0);
  EXPECT_EQ(arena->used_bytes(), 0);
}

TEST(MemoryAccountTest, MovedExtentIsChargedOnce) {
  const auto arena = *Arena::Create(8 * kBlock);
  const auto account = MemoryAccount::Create(arena, 0);
  Extent first = *account->Allocate(kBlock);
  std::byte* const data = first.data();
  Extent second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(account->used_bytes(), kBlock);
  second = *account->Allocate(3 * kBlock);  // lets go of the first
  EXPECT_EQ(account->used_bytes(), 3 * kBlock);
  Extent& same = second;
  second = std::move(same);
  EXPECT_EQ(second.bytes(), 3 * kBlock);
  second = Extent();
  EXPECT_EQ(account->used_bytes(), 0);
}

TEST(MemoryAccountTest, FullQuotaIsRefusedWithRequestedAvailableAndQuota) {
  const auto arena = *Arena::Create(64 * kBlock);
  const auto account = MemoryAccount::Create(arena, 4 * kBlock);
  const Extent held = *account->Allocate(3 * kBlock);
  const auto refused = account->Allocate(2 * kBlock);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("quota"), HasSubstr("requested 8192"), HasSubstr("available 4096"),
                    HasSubstr("quota 16384")));
  EXPECT_EQ(account->rejects_total(), 1);
  EXPECT_EQ(account->used_bytes(), 3 * kBlock);
  EXPECT_EQ(arena->used_bytes(), 3 * kBlock);
  EXPECT_TRUE(account->Allocate(kBlock).ok()) << "what fits must still be served";
}

TEST(MemoryAccountTest, FullArenaIsRefusedWithRequestedAvailableAndArena) {
  const auto arena = *Arena::Create(4 * kBlock);
  const auto account = MemoryAccount::Create(arena, 0);
  const Extent held = *account->Allocate(3 * kBlock);
  const auto refused = account->Allocate(2 * kBlock);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("arena"), HasSubstr("requested 8192"), HasSubstr("available 4096"),
                    HasSubstr("arena 16384")));
  EXPECT_EQ(account->rejects_total(), 1);
  EXPECT_EQ(account->used_bytes(), 3 * kBlock);
}

TEST(MemoryAccountTest, OneAccountsQuotaIsNotAnothersMemory) {
  const auto arena = *Arena::Create(8 * kBlock);
  const auto small = MemoryAccount::Create(arena, 2 * kBlock);
  const auto large = MemoryAccount::Create(arena, 0);
  const Extent a = *small->Allocate(2 * kBlock);
  EXPECT_FALSE(small->Allocate(1).ok());
  const Extent b = *large->Allocate(6 * kBlock);
  EXPECT_FALSE(large->Allocate(1).ok());
  EXPECT_EQ(small->used_bytes() + large->used_bytes(), arena->used_bytes());
}

TEST(MemoryAccountTest, QuotaBelowWhatIsInUseStopsGrowthAndRemovesNothing) {
  const auto arena = *Arena::Create(8 * kBlock);
  const auto account = MemoryAccount::Create(arena, 0);
  Extent held = *account->Allocate(4 * kBlock);
  account->SetQuota(2 * kBlock);
  EXPECT_EQ(account->used_bytes(), 4 * kBlock);
  const auto refused = account->Allocate(1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()), HasSubstr("available 0,"));
  held = Extent();
  EXPECT_TRUE(account->Allocate(2 * kBlock).ok());
}

TEST(MemoryAccountTest, NextOwnerFindsZeros) {
  const auto arena = *Arena::Create(2 * kBlock);
  const auto first = MemoryAccount::Create(arena, 0);
  const auto second = MemoryAccount::Create(arena, 0);
  std::byte* data;
  {
    const Extent extent = *first->Allocate(2 * kBlock);
    data = extent.data();
    std::memset(data, 0x5a, 2 * kBlock);
  }
  const Extent extent = *second->Allocate(2 * kBlock);
  ASSERT_EQ(extent.data(), data);
  for (int64_t i = 0; i < 2 * kBlock; ++i) ASSERT_EQ(data[i], std::byte{0});
}

TEST(MemoryAccountTest, ExtentsOutliveTheLastHandleOfTheirAccount) {
  const auto arena = *Arena::Create(2 * kBlock);
  auto account = MemoryAccount::Create(arena, 0);
  Extent extent = *account->Allocate(kBlock);
  account.reset();
  std::memset(extent.data(), 1, kBlock);
  extent = Extent();
  EXPECT_EQ(arena->used_bytes(), 0);
}

TEST(MemoryAccountTest, AccountsSumToTheArenaAfterEveryRandomOperation) {
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  const auto arena = *Arena::Create(64 * kBlock);
  const std::vector<std::shared_ptr<MemoryAccount>> accounts = {
      MemoryAccount::Create(arena, 24 * kBlock), MemoryAccount::Create(arena, 48 * kBlock)};
  std::vector<std::pair<int, Extent>> live;
  for (int operation = 0; operation < 20000; ++operation) {
    SCOPED_TRACE(operation);
    const int who = static_cast<int>(random.Integer(0, 1));
    const int64_t used = accounts[who]->used_bytes();
    const int64_t rejects = accounts[who]->rejects_total();
    if (live.empty() || random.Integer(0, 1) == 0) {
      const int64_t bytes = random.Integer(1, 9 * kBlock);
      auto extent = accounts[who]->Allocate(bytes);
      if (extent.ok()) {
        ASSERT_LE(accounts[who]->used_bytes(), accounts[who]->quota_bytes());
        live.emplace_back(who, *std::move(extent));
      } else {
        ASSERT_EQ(accounts[who]->used_bytes(), used);
        ASSERT_EQ(accounts[who]->rejects_total(), rejects + 1);
      }
    } else {
      const size_t victim = random.Integer(0, static_cast<int64_t>(live.size()) - 1);
      std::swap(live[victim], live.back());
      live.pop_back();
    }
    int64_t sums[2] = {0, 0};
    for (const auto& [owner, extent] : live) sums[owner] += extent.bytes();
    ASSERT_EQ(accounts[0]->used_bytes(), sums[0]);
    ASSERT_EQ(accounts[1]->used_bytes(), sums[1]);
    ASSERT_EQ(arena->used_bytes(), sums[0] + sums[1]);
  }
}

TEST(MemoryAccountTest, ThreadsTogetherNeverExceedAQuota) {
  const auto arena = *Arena::Create(64 * kBlock);
  const auto account = MemoryAccount::Create(arena, 8 * kBlock);
  std::vector<std::thread> threads;
  for (int t = 1; t <= 4; ++t) {
    threads.emplace_back([&account, t] {
      testing::Random random(t);
      std::vector<Extent> live;
      for (int i = 0; i < 2000; ++i) {
        auto extent = account->Allocate(random.Integer(1, 4 * kBlock));
        if (extent.ok()) live.push_back(*std::move(extent));
        EXPECT_LE(account->used_bytes(), 8 * kBlock);
        if (!extent.ok() || random.Integer(0, 2) == 0) live.clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(account->used_bytes(), 0);
  EXPECT_EQ(arena->used_bytes(), 0);
}

}  // namespace
}  // namespace wavekv
