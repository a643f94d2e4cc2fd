#include "buffer/file_extents.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

constexpr int64_t kPage = FileExtents::kAlignmentBytes;

// The range as a list of pages, each in use or not.
class NaiveExtents {
 public:
  explicit NaiveExtents(int64_t capacity_pages) : capacity_pages_(capacity_pages) {}

  // The first of the smallest holes of at least `pages`, else the end, else -1.
  int64_t Allocate(int64_t pages) {
    int64_t best = -1;
    int64_t best_pages = std::numeric_limits<int64_t>::max();
    for (int64_t page = 0; page < size(); ++page) {
      const int64_t hole = HoleAt(page);
      if (hole >= pages && hole < best_pages) {
        best = page;
        best_pages = hole;
      }
    }
    if (best < 0 && size() + pages <= capacity_pages_) {
      best = size();
      used_.resize(size() + pages, false);
    }
    for (int64_t i = 0; best >= 0 && i < pages; ++i) used_[best + i] = true;
    return best;
  }
  bool IsUsed(int64_t page, int64_t pages) const {
    if (page < 0 || pages <= 0 || page + pages > size()) return false;
    return std::all_of(used_.begin() + page, used_.begin() + page + pages,
                       [](bool u) { return u; });
  }
  void Free(int64_t page, int64_t pages) {
    std::fill(used_.begin() + page, used_.begin() + page + pages, false);
    while (!used_.empty() && !used_.back()) used_.pop_back();
  }
  int64_t LargestHole() const {
    int64_t largest = 0;
    for (int64_t page = 0; page < size(); ++page) largest = std::max(largest, HoleAt(page));
    return largest;
  }
  int64_t size() const { return static_cast<int64_t>(used_.size()); }
  int64_t num_used() const { return std::count(used_.begin(), used_.end(), true); }

 private:
  // Length of the hole that begins at `page`; 0 when none begins there.
  int64_t HoleAt(int64_t page) const {
    if (used_[page] || (page > 0 && !used_[page - 1])) return 0;
    int64_t end = page;
    while (end < size() && !used_[end]) ++end;
    return end - page;
  }

  const int64_t capacity_pages_;
  std::vector<bool> used_;
};

// More operations, other ones each time: --gtest_shuffle --gtest_repeat=100.
TEST(FileExtentsTest, RandomOperationsMatchAListOfPages) {
  testing::Random random(20261121 + ::testing::UnitTest::GetInstance()->random_seed());
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kPages = 160;
  struct Extent {
    int64_t offset;
    int64_t bytes;
  };
  FileExtents extents(kPages * kPage + 100);  // the odd bytes are of no use
  NaiveExtents naive(kPages);
  std::vector<Extent> live;
  for (int operation = 0; operation < 40000; ++operation) {
    SCOPED_TRACE(operation);
    // Phases of filling and of emptying, so that both a full and an empty file are met.
    const bool filling = operation / 400 % 2 == 0;
    const int64_t kind = random.Integer(0, 99);
    if (kind < 3) {
      // Whatever range: in use or not, the two agree on it.
      const int64_t page = random.Integer(-1, kPages);
      const int64_t pages = random.Integer(0, 12);
      ASSERT_EQ(extents.CheckUsed(page * kPage, pages * kPage).ok(), naive.IsUsed(page, pages));
    } else if (live.empty() || kind < (filling ? 62 : 40)) {
      const int64_t pages =
          random.Integer(0, 9) == 0 ? random.Integer(1, 40) : random.Integer(1, 6);
      const int64_t bytes = pages * kPage - random.Integer(0, kPage - 1);
      const auto offset = extents.Allocate(bytes);
      const int64_t expected = naive.Allocate(pages);
      ASSERT_EQ(offset.ok(), expected >= 0) << offset.status();
      if (offset.ok()) {
        ASSERT_EQ(*offset, expected * kPage);
        live.push_back({*offset, bytes});
      } else {
        ASSERT_EQ(offset.status().code(), absl::StatusCode::kResourceExhausted);
      }
    } else {
      const size_t victim = random.Integer(0, static_cast<int64_t>(live.size()) - 1);
      const Extent extent = live[victim];
      live[victim] = live.back();
      live.pop_back();
      ASSERT_TRUE(extents.Free(extent.offset, extent.bytes).ok());
      naive.Free(extent.offset / kPage, FileExtents::RoundUp(extent.bytes) / kPage);
      ASSERT_FALSE(extents.Free(extent.offset, extent.bytes).ok()) << "freed twice";
    }
    const FileSpace space = extents.space();
    ASSERT_EQ(space.size_bytes, naive.size() * kPage);
    ASSERT_EQ(space.used_bytes, naive.num_used() * kPage);
    ASSERT_EQ(space.used_bytes + space.free_bytes, space.size_bytes);
    ASSERT_EQ(space.largest_free_bytes, naive.LargestHole() * kPage);
  }
  for (const Extent& extent : live) ASSERT_TRUE(extents.Free(extent.offset, extent.bytes).ok());
  EXPECT_EQ(extents.size_bytes(), 0);
}

TEST(FileExtentsTest, ExtentsFreedInAnyOrderLeaveNothing) {
  std::vector<int> order = {0, 1, 2, 3};
  do {
    FileExtents extents(4 * kPage);
    std::vector<int64_t> offsets;
    for (int i = 0; i < 4; ++i) offsets.push_back(*extents.Allocate(kPage));
    for (const int i : order) ASSERT_TRUE(extents.Free(offsets[i], kPage).ok());
    EXPECT_EQ(extents.size_bytes(), 0);
    EXPECT_EQ(extents.space().free_bytes, 0);
    EXPECT_EQ(*extents.Allocate(4 * kPage), 0);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(FileExtentsTest, TheMessageOfAFullFileHasTheNumbers) {
  FileExtents extents(10 * kPage);
  ASSERT_TRUE(extents.Allocate(7 * kPage).ok());
  const absl::Status status = extents.Allocate(3 * kPage + 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      status.message(),
      "backing file: requested 12289 bytes, the largest free extent has 12288 (capacity 40960, "
      "used 28672)");
  EXPECT_EQ(extents.space().used_bytes, 7 * kPage);
  EXPECT_TRUE(extents.Allocate(3 * kPage).ok());
}

TEST(FileExtentsTest, AbsurdSizesAreRefused) {
  FileExtents extents(int64_t{1} << 62);
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    EXPECT_EQ(extents.Allocate(bytes).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(extents.Allocate(std::numeric_limits<int64_t>::max()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(extents.size_bytes(), 0);
}

TEST(FileExtentsTest, WhatIsNotInUseCannotBeFreed) {
  FileExtents extents(100 * kPage);
  ASSERT_EQ(*extents.Allocate(3 * kPage), 0);
  ASSERT_EQ(*extents.Allocate(2 * kPage), 3 * kPage);
  ASSERT_TRUE(extents.Free(0, 3 * kPage).ok());
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const std::vector<std::pair<int64_t, int64_t>> bad = {
      {0, 3 * kPage},     {2 * kPage, 2 * kPage}, {4 * kPage, 2 * kPage}, {5 * kPage, kPage},
      {-kPage, kPage},    {3 * kPage, 0},         {3 * kPage, -1},        {3 * kPage, kMax},
      {3 * kPage + 1, 1}, {kMax, kPage},
  };
  for (const auto& [offset, bytes] : bad) {
    EXPECT_EQ(extents.Free(offset, bytes).code(), absl::StatusCode::kInvalidArgument)
        << offset << " " << bytes;
  }
  EXPECT_EQ(extents.space().used_bytes, 2 * kPage);
}

}  // namespace
}  // namespace wavekv
