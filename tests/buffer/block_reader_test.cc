#include "buffer/block_reader.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "buffer/backing_file.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "tests/buffer/block_file.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::AlignedBytes;
using testing::TemporaryFolder;
using testing::WriteBlocks;
using testing::WrittenBlocks;
using Clock = std::chrono::steady_clock;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

constexpr int64_t kNumBlocks = 300;

// Both engines (kAuto is io_uring where the kernel lets us), direct and not.
class BlockReaderTest : public ::testing::TestWithParam<std::tuple<IoEngine, bool>> {
 protected:
  // For block sizes that direct I/O takes: 2560 bytes are not aligned to pages.
  void SetUp() override { Open(2560); }

  void Open(int64_t block_bytes) {
    BackingOptions options;
    std::tie(options.engine, options.direct) = GetParam();
    options.num_read_threads = 4;
    auto file = BackingFile::Create(folder_.path(), options);
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = std::move(*file);
    auto blocks = WriteBlocks(*file_, kNumBlocks, block_bytes, 77);
    ASSERT_TRUE(blocks.ok()) << blocks.status();
    blocks_ = std::move(*blocks);
    targets_ = AlignedBytes(blocks_.bytes.size());
  }

  std::unique_ptr<BlockReader> MakeReader(int queue_depth, int64_t reserved_reads = 8,
                                          absl::Span<std::byte> memory = {}) {
    ReaderOptions options;
    options.queue_depth = queue_depth;
    options.reserved_reads = reserved_reads;
    options.memory = memory;
    auto reader = file_->NewReader(options);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return std::move(*reader);
  }

  // Reads of blocks [begin, end) to their own places.
  std::vector<BlockRead> Reads(int64_t begin, int64_t end) const {
    std::vector<BlockRead> reads;
    for (int64_t i = begin; i < end; ++i) reads.push_back(blocks_.Read(i, targets_, i));
    return reads;
  }
  bool HasCome(int64_t i) const {
    return std::memcmp(targets_.data() + i * blocks_.block_bytes, blocks_.block(i).data(),
                       blocks_.block_bytes) == 0;
  }
  // The tags of all pending reads, each of which ended well and is in place.
  std::multiset<uint64_t> WaitForAll(BlockReader& reader, int64_t at_least = 1) const {
    std::multiset<uint64_t> tags;
    std::vector<BlockCompletion> completions(16);
    while (reader.num_pending() > 0) {
      const int64_t expected = std::min<int64_t>({at_least, 16, reader.num_pending()});
      const int64_t count = reader.Wait(at_least, absl::MakeSpan(completions));
      EXPECT_GE(count, expected);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_TRUE(completions[i].status.ok()) << completions[i].status;
        EXPECT_TRUE(HasCome(completions[i].tag)) << "block " << completions[i].tag;
        tags.insert(completions[i].tag);
      }
    }
    return tags;
  }

  const TemporaryFolder folder_;
  std::unique_ptr<BackingFile> file_;
  WrittenBlocks blocks_;
  AlignedBytes targets_{0};
};

INSTANTIATE_TEST_SUITE_P(Engines, BlockReaderTest,
                         ::testing::Combine(::testing::Values(IoEngine::kAuto, IoEngine::kPread),
                                            ::testing::Bool()),
                         [](const auto& param_info) {
                           return fmt::format(
                               "{}_{}",
                               std::get<0>(param_info.param) == IoEngine::kAuto ? "Auto" : "Pread",
                               std::get<1>(param_info.param) ? "Direct" : "Cached");
                         });

std::multiset<uint64_t> AllTags() {
  std::multiset<uint64_t> tags;
  for (int64_t i = 0; i < kNumBlocks; ++i) tags.insert(i);
  return tags;
}

TEST_P(BlockReaderTest, AnyNumberIsReadThroughAnyQueue) {
  for (const int queue_depth : {1, 3, 64, 1024}) {
    for (const int64_t at_least : {1, 7, 1000}) {
      SCOPED_TRACE(fmt::format("queue depth {}, at least {}", queue_depth, at_least));
      std::memset(targets_.data(), 0, targets_.size());
      const auto reader = MakeReader(queue_depth);
      ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
      EXPECT_EQ(reader->num_pending(), kNumBlocks);
      EXPECT_LE(reader->num_in_flight(), queue_depth);
      EXPECT_EQ(WaitForAll(*reader, at_least), AllTags());
    }
  }
}

TEST_P(BlockReaderTest, ReadsThatFollowEachOtherInTheFileGoAsOne) {
  const auto reader = MakeReader(1024);
  file_->faults().Plant(Site::kRun, Fault::kNone, 0, 0);  // counts passes
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  EXPECT_EQ(WaitForAll(*reader), AllTags());
  EXPECT_EQ(file_->faults().num_passes(Site::kRun),
            (kNumBlocks + BlockReader::kRunBlocksMax - 1) / BlockReader::kRunBlocksMax);
  EXPECT_EQ(file_->faults().num_passes(Site::kComplete), kNumBlocks);

  // Not when another lies between, nor backwards.
  file_->faults().Clear();
  file_->faults().Plant(Site::kRun, Fault::kNone, 0, 0);
  std::vector<BlockRead> reads;
  for (int64_t i = kNumBlocks - 1; i >= 0; --i) reads.push_back(blocks_.Read(i, targets_, i));
  ASSERT_TRUE(reader->Submit(reads).ok());
  EXPECT_EQ(WaitForAll(*reader), AllTags());
  EXPECT_EQ(file_->faults().num_passes(Site::kRun), kNumBlocks);
}

TEST_P(BlockReaderTest, BatchesMayBeSubmittedWhileOthersArePending) {
  testing::Random random(31);
  WAVEKV_TRACE_SEED(random);
  const auto reader = MakeReader(5);
  std::vector<int64_t> order(kNumBlocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random.engine());
  std::multiset<uint64_t> tags;
  std::vector<BlockCompletion> completions(9);
  size_t at = 0;
  while (at < order.size() || reader->num_pending() > 0) {
    std::vector<BlockRead> batch;
    for (int64_t i = random.Integer(0, 20); i > 0 && at < order.size(); --i, ++at) {
      batch.push_back(blocks_.Read(order[at], targets_, order[at]));
    }
    ASSERT_TRUE(reader->Submit(batch).ok());
    const int64_t count = reader->Wait(random.Integer(0, 4), absl::MakeSpan(completions));
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_TRUE(completions[i].status.ok()) << completions[i].status;
      ASSERT_TRUE(HasCome(completions[i].tag));
      tags.insert(completions[i].tag);
    }
  }
  EXPECT_EQ(tags, AllTags());
}

TEST_P(BlockReaderTest, RegisteredMemoryAndOtherMemoryAreBothRead) {
  // The second half of the targets is told to the kernel; a block lies across its begin.
  const int64_t half = targets_.size() / 2 / 512 * 512 + 512;
  const auto reader = MakeReader(16, 8, targets_.part(half, targets_.size() - half));
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  EXPECT_EQ(WaitForAll(*reader), AllTags());
}

TEST_P(BlockReaderTest, WaitingForNothingReturnsAtOnce) {
  const auto reader = MakeReader(4);
  std::vector<BlockCompletion> completions(4);
  EXPECT_EQ(reader->Wait(4, absl::MakeSpan(completions)), 0);
  ASSERT_TRUE(reader->Submit({}).ok());
  EXPECT_EQ(reader->Wait(1, absl::MakeSpan(completions)), 0);
  ASSERT_TRUE(reader->Submit(Reads(0, 2)).ok());
  EXPECT_EQ(reader->Wait(2, {}), 0);  // nowhere to put one
  EXPECT_EQ(reader->Wait(9, absl::MakeSpan(completions)), 2);
  EXPECT_EQ(reader->num_pending(), 0);
}

TEST_P(BlockReaderTest, BadReadsAreRefusedAndNoneOfTheirBatchIsQueued) {
  const auto reader = MakeReader(4);
  const BlockRead good = blocks_.Read(0, targets_, 0);
  const int64_t end = file_->space().size_bytes;
  std::vector<BlockRead> bad(7, good);
  bad[0].offset = 1;
  bad[1].offset = -512;
  bad[2].offset = end;
  bad[3].offset = std::numeric_limits<int64_t>::max() / 512 * 512;
  bad[4].target = targets_.part(0, 0);
  bad[5].target = targets_.part(0, 511);
  bad[6].target = targets_.part(8, 512);
  for (size_t i = 0; i < bad.size(); ++i) {
    SCOPED_TRACE(i);
    const absl::Status status = reader->Submit({good, bad[i]});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), "reads[1]: ")) << status;
    EXPECT_EQ(reader->num_pending(), 0);
  }
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  EXPECT_EQ(WaitForAll(*reader), AllTags());
}

TEST_P(BlockReaderTest, BytesThatChangedOnDiskAreReportedAndNoOthers) {
  AlignedBytes damaged(blocks_.block_bytes);
  std::memcpy(damaged.data(), blocks_.block(100).data(), damaged.size());
  damaged.data()[1234] ^= std::byte{1};
  const int64_t offset = blocks_.offset + 100 * blocks_.block_bytes;
  ASSERT_TRUE(file_->Write(offset, damaged.part(0, damaged.size())).ok());
  const auto reader = MakeReader(16);
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  std::vector<BlockCompletion> completions(kNumBlocks);
  ASSERT_EQ(reader->Wait(kNumBlocks, absl::MakeSpan(completions)), kNumBlocks);
  for (const BlockCompletion& completion : completions) {
    if (completion.tag != 100) {
      EXPECT_TRUE(completion.status.ok()) << completion.status;
      continue;
    }
    EXPECT_EQ(completion.status.code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(absl::StrContains(completion.status.message(), fmt::format("offset {}", offset)))
        << completion.status;
  }
}

TEST_P(BlockReaderTest, ASlowReadHoldsUpNoOther) {
  const auto reader = MakeReader(1);
  // The first read is slow for ever, as far as this test is concerned.
  file_->faults().Plant(Site::kComplete, Fault::kDelay, 0, 1, std::chrono::hours(1));
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  std::vector<BlockCompletion> completions(kNumBlocks);
  ASSERT_EQ(reader->Wait(kNumBlocks - 1, absl::MakeSpan(completions)), kNumBlocks - 1);
  std::multiset<uint64_t> tags;
  for (int64_t i = 0; i < kNumBlocks - 1; ++i) tags.insert(completions[i].tag);
  EXPECT_EQ(tags.count(0), 0u);
  EXPECT_EQ(reader->num_pending(), 1);
  // A deadline ends the wait for it.
  EXPECT_EQ(reader->Wait(1, absl::MakeSpan(completions), Clock::now()), 0);
  EXPECT_EQ(
      reader->Wait(1, absl::MakeSpan(completions), Clock::now() + std::chrono::milliseconds(5)), 0);
  EXPECT_EQ(reader->num_pending(), 1);
}

TEST_P(BlockReaderTest, ADelayedReadComesWhenItsTimeHasCome) {
  const auto reader = MakeReader(8);
  file_->faults().Plant(Site::kComplete, Fault::kDelay, 3, 20, std::chrono::milliseconds(2));
  ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok());
  EXPECT_EQ(WaitForAll(*reader), AllTags());
}

TEST_P(BlockReaderTest, ReadersGoWithReadsPending) {
  for (int round = 0; round < 10; ++round) {
    const AlignedBytes targets(blocks_.bytes.size());
    const auto reader = MakeReader(8);
    std::vector<BlockRead> reads;
    for (int64_t i = 0; i < kNumBlocks; ++i) reads.push_back(blocks_.Read(i, targets, i));
    ASSERT_TRUE(reader->Submit(reads).ok());
    std::vector<BlockCompletion> completions(round);
    reader->Wait(round, absl::MakeSpan(completions));
    // The reader goes first, so nothing is written to the targets after they go.
  }
}

TEST_P(BlockReaderTest, AReaderMayBeHandedToAnotherThread) {
  const auto reader = MakeReader(32);
  // The first thread ends with reads in the device.
  std::thread([&] { ASSERT_TRUE(reader->Submit(Reads(0, kNumBlocks)).ok()); }).join();
  std::multiset<uint64_t> tags;
  std::thread([&] { tags = WaitForAll(*reader); }).join();
  EXPECT_EQ(tags, AllTags());
}

TEST_P(BlockReaderTest, ThreadsReadThroughReadersOfTheirOwn) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      const auto reader = MakeReader(1 << (2 * t));
      const AlignedBytes targets(blocks_.bytes.size());
      for (int round = 0; round < 3; ++round) {
        std::vector<BlockRead> reads;
        for (int64_t i = 0; i < kNumBlocks; ++i) reads.push_back(blocks_.Read(i, targets, i));
        ASSERT_TRUE(reader->Submit(reads).ok());
        std::vector<BlockCompletion> completions(kNumBlocks);
        ASSERT_EQ(reader->Wait(kNumBlocks, absl::MakeSpan(completions)), kNumBlocks);
        for (const BlockCompletion& completion : completions) {
          ASSERT_TRUE(completion.status.ok()) << completion.status;
        }
        ASSERT_EQ(std::memcmp(targets.data(), blocks_.bytes.data(), targets.size()), 0);
        std::memset(targets.data(), 0, targets.size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace wavekv
