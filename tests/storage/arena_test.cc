#include "storage/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

constexpr int64_t kBlock = Arena::kBlockBytes;

std::shared_ptr<Arena> MakeArena(int64_t bytes) {
  auto arena = Arena::Create(bytes);
  EXPECT_TRUE(arena.ok()) << arena.status();
  return *arena;
}

bool IsAll(const std::byte* data, int64_t bytes, int value) {
  static const int64_t kPage = 4096;
  std::vector<std::byte> page(kPage, static_cast<std::byte>(value));
  for (int64_t at = 0; at < bytes; at += kPage) {
    if (std::memcmp(data + at, page.data(), std::min(kPage, bytes - at)) != 0) return false;
  }
  return true;
}

// The arena as a list of blocks, each free or owned.
class NaiveArena {
 public:
  explicit NaiveArena(int64_t num_blocks) : used_(num_blocks, false) {}

  // Length of the free run that begins at `block` and cannot be extended to the left; 0 otherwise.
  int64_t FreeRunAt(int64_t block) const {
    if (used_[block] || (block > 0 && !used_[block - 1])) return 0;
    int64_t end = block;
    while (end < num_blocks() && !used_[end]) ++end;
    return end - block;
  }
  int64_t SmallestFreeRun(int64_t at_least) const {
    int64_t smallest = std::numeric_limits<int64_t>::max();
    for (int64_t block = 0; block < num_blocks(); ++block) {
      const int64_t run = FreeRunAt(block);
      if (run >= at_least) smallest = std::min(smallest, run);
    }
    return smallest;
  }
  int64_t LargestFreeRun() const {
    int64_t largest = 0;
    for (int64_t block = 0; block < num_blocks(); ++block) {
      largest = std::max(largest, FreeRunAt(block));
    }
    return largest;
  }
  void Set(int64_t block, int64_t count, bool used) {
    for (int64_t i = block; i < block + count; ++i) {
      EXPECT_NE(used_[i], used) << "block " << i;
      used_[i] = used;
    }
  }
  int64_t num_used() const { return std::count(used_.begin(), used_.end(), true); }
  int64_t num_blocks() const { return static_cast<int64_t>(used_.size()); }

 private:
  std::vector<bool> used_;
};

TEST(ArenaTest, RandomOperationsMatchAListOfBlocks) {
  testing::Random random(20250501);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kBlocks = 192;
  const auto arena = MakeArena(kBlocks * kBlock);
  std::byte* const base = arena->Allocate(kBlocks * kBlock);
  ASSERT_NE(base, nullptr);
  arena->Free(base, kBlocks * kBlock);

  struct Run {
    std::byte* data;
    int64_t bytes;
    int stamp;
  };
  NaiveArena naive(kBlocks);
  std::vector<Run> live;
  for (int operation = 0; operation < 50000; ++operation) {
    SCOPED_TRACE(operation);
    // Phases of filling and of emptying, so that both a full and an empty arena are met.
    const bool filling = operation / 500 % 2 == 0;
    if (live.empty() || random.Integer(0, 99) < (filling ? 60 : 40)) {
      const int64_t blocks =
          random.Integer(0, 9) == 0 ? random.Integer(1, 40) : random.Integer(1, 6);
      const int64_t bytes = blocks * kBlock - random.Integer(0, kBlock - 1);
      std::byte* const data = arena->Allocate(bytes);
      ASSERT_EQ(data == nullptr, naive.LargestFreeRun() < blocks);
      if (data != nullptr) {
        ASSERT_EQ((data - base) % kBlock, 0);
        const int64_t block = (data - base) / kBlock;
        ASSERT_EQ(naive.FreeRunAt(block), naive.SmallestFreeRun(blocks)) << "not the best fit";
        naive.Set(block, blocks, true);
        ASSERT_TRUE(IsAll(data, blocks * kBlock, 0));
        const int stamp = static_cast<int>(random.Integer(1, 255));
        std::memset(data, stamp, blocks * kBlock);
        live.push_back({data, bytes, stamp});
      }
    } else {
      const size_t victim = random.Integer(0, static_cast<int64_t>(live.size()) - 1);
      const Run run = live[victim];
      live[victim] = live.back();
      live.pop_back();
      const int64_t bytes = Arena::RoundUp(run.bytes);
      ASSERT_TRUE(IsAll(run.data, bytes, run.stamp)) << "somebody else wrote to a live run";
      arena->Free(run.data, run.bytes);
      naive.Set((run.data - base) / kBlock, bytes / kBlock, false);
    }
    ASSERT_EQ(arena->used_bytes(), naive.num_used() * kBlock);
    ASSERT_EQ(arena->used_bytes() + arena->free_bytes(), arena->bytes());
    ASSERT_EQ(arena->largest_free_bytes(), naive.LargestFreeRun() * kBlock);
  }
  for (const Run& run : live) arena->Free(run.data, run.bytes);
  EXPECT_EQ(arena->used_bytes(), 0);
  EXPECT_EQ(arena->largest_free_bytes(), arena->bytes());
}

TEST(ArenaTest, FreedNeighboursBecomeOneRunInEveryOrder) {
  std::vector<int> order = {0, 1, 2, 3};
  do {
    const auto arena = MakeArena(4 * kBlock);
    std::vector<std::byte*> runs;
    for (int i = 0; i < 4; ++i) runs.push_back(arena->Allocate(kBlock));
    for (const int i : order) arena->Free(runs[i], kBlock);
    EXPECT_EQ(arena->largest_free_bytes(), 4 * kBlock);
    std::byte* const whole = arena->Allocate(4 * kBlock);
    EXPECT_EQ(whole, runs[0]);
    arena->Free(whole, 4 * kBlock);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(ArenaTest, FullArenaRefusesAndServesAgainAfterAFree) {
  const auto arena = MakeArena(3 * kBlock);
  std::byte* const a = arena->Allocate(1);
  std::byte* const b = arena->Allocate(2 * kBlock);
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(arena->free_bytes(), 0);
  EXPECT_EQ(arena->largest_free_bytes(), 0);
  EXPECT_EQ(arena->Allocate(1), nullptr);
  EXPECT_EQ(arena->used_bytes(), 3 * kBlock);
  arena->Free(a, 1);
  EXPECT_EQ(arena->Allocate(2 * kBlock), nullptr);
  EXPECT_EQ(arena->Allocate(kBlock), a);
}

TEST(ArenaTest, RequestAboveTheArenaIsRefused) {
  const auto arena = MakeArena(2 * kBlock);
  EXPECT_EQ(arena->Allocate(2 * kBlock + 1), nullptr);
  EXPECT_EQ(arena->Allocate(int64_t{1} << 60), nullptr);
  EXPECT_EQ(arena->used_bytes(), 0);
}

TEST(ArenaTest, SizeIsRoundedDownToWholeBlocks) {
  EXPECT_EQ(MakeArena(3 * kBlock - 1)->bytes(), 2 * kBlock);
}

TEST(ArenaTest, LessThanABlockIsRefusedWithTheNumber) {
  const auto arena = Arena::Create(kBlock - 1);
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(arena.status().message()).find("got 4095"), std::string::npos);
}

TEST(ArenaTest, AddressSpaceThatIsNotThereIsRefusedWithTheNumber) {
  const auto arena = Arena::Create(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(arena.status().message()).find("9223372036854775807"), std::string::npos);
}

TEST(ArenaTest, AllocationsFailWhenATestAsksForIt) {
  const auto arena = MakeArena(8 * kBlock);
  arena->FailAllocations(1, 2);
  EXPECT_NE(arena->Allocate(kBlock), nullptr);
  EXPECT_EQ(arena->Allocate(kBlock), nullptr);
  EXPECT_EQ(arena->Allocate(kBlock), nullptr);
  EXPECT_NE(arena->Allocate(kBlock), nullptr);
  EXPECT_EQ(arena->used_bytes(), 2 * kBlock);
}

TEST(ArenaTest, FreeBlocksAreKnownToBeZero) {
  const auto arena = MakeArena(8 * kBlock);
  EXPECT_TRUE(arena->FreeBlocksAreZero());
  std::byte* const data = arena->Allocate(2 * kBlock);
  data[kBlock] = std::byte{1};
  EXPECT_TRUE(arena->FreeBlocksAreZero());
  arena->Free(data, 2 * kBlock);
  EXPECT_TRUE(arena->FreeBlocksAreZero());
  data[kBlock] = std::byte{1};  // whoever writes after freeing
  EXPECT_FALSE(arena->FreeBlocksAreZero());
}

TEST(ArenaTest, PagesAreThereBeforeTheyAreUsedIfThreadsTouchThem) {
  constexpr int64_t kBytes = 300 * kBlock;
  for (const int threads : {1, 3}) {
    const auto arena = Arena::Create(kBytes, threads);
    ASSERT_TRUE(arena.ok()) << arena.status();
    std::byte* const data = (*arena)->Allocate(kBytes);
    ASSERT_NE(data, nullptr);
    std::vector<unsigned char> resident(kBytes / kBlock);
    ASSERT_EQ(mincore(data, kBytes, resident.data()), 0);
    for (const unsigned char page : resident) EXPECT_EQ(page & 1, 1);
    EXPECT_TRUE(IsAll(data, kBytes, 0));
    (*arena)->Free(data, kBytes);
  }
}

TEST(ArenaTest, ThreadsNeverShareARunAndAlwaysGetZeros) {
  const auto arena = MakeArena(64 * kBlock);
  std::vector<std::thread> threads;
  for (int t = 1; t <= 4; ++t) {
    threads.emplace_back([&arena, t] {
      testing::Random random(t);
      for (int i = 0; i < 2000; ++i) {
        const int64_t bytes = random.Integer(1, 8 * kBlock);
        std::byte* const data = arena->Allocate(bytes);
        if (data == nullptr) continue;
        EXPECT_TRUE(IsAll(data, bytes, 0)) << "thread " << t << ", round " << i;
        std::memset(data, t, bytes);
        EXPECT_TRUE(IsAll(data, bytes, t)) << "thread " << t << ", round " << i;
        arena->Free(data, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena->used_bytes(), 0);
  EXPECT_EQ(arena->largest_free_bytes(), arena->bytes());
}

}  // namespace
}  // namespace wavekv
