// Everything the backing file asks of the operating system fails in turn.
#include "buffer/backing_faults.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "buffer/backing_file.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "tests/buffer/block_file.h"

namespace wavekv {
namespace {

using testing::AlignedBytes;
using testing::TemporaryFolder;
using testing::WriteBlocks;
using testing::WrittenBlocks;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;
using Code = absl::StatusCode;

constexpr int64_t kNumBlocks = 6;
constexpr int64_t kBlockBytes = 1536;
constexpr int kNumExtents = 3;

struct Outcome {
  std::vector<absl::Status> writes;  // allocation and write of an extent
  std::vector<absl::Status> reads;   // of a block
};

// What an engine does in small: writes extents, reads their blocks, frees them. What failed is left
// out; what succeeded must be right.
Outcome WriteReadFree(BackingFile& file, int queue_depth) {
  Outcome outcome;
  std::vector<WrittenBlocks> extents;
  for (int e = 0; e < kNumExtents; ++e) {
    auto blocks = WriteBlocks(file, kNumBlocks, kBlockBytes, e);
    outcome.writes.push_back(blocks.status());
    if (blocks.ok()) extents.push_back(std::move(*blocks));
  }
  ReaderOptions options;
  options.queue_depth = queue_depth;
  options.reserved_reads = 4;
  auto reader = file.NewReader(options);
  EXPECT_TRUE(reader.ok()) << reader.status();
  for (size_t e = 0; e < extents.size(); ++e) {
    const WrittenBlocks& blocks = extents[e];
    const AlignedBytes targets(blocks.bytes.size());
    // Joined reads into one piece of memory, joined reads into several, and single ones.
    const auto place = [e](int64_t i) { return e == 1 ? kNumBlocks - 1 - i : i; };
    std::vector<BlockRead> reads;
    for (int64_t i = 0; i < kNumBlocks; ++i) reads.push_back(blocks.Read(i, targets, place(i)));
    if (e == 2) std::reverse(reads.begin(), reads.end());
    EXPECT_TRUE((*reader)->Submit(reads).ok());
    std::vector<BlockCompletion> completions(kNumBlocks);
    int64_t count = 0;
    while (count < kNumBlocks) {
      count += (*reader)->Wait(1, absl::MakeSpan(completions).subspan(count));
    }
    EXPECT_EQ((*reader)->num_pending(), 0);
    std::vector<bool> has_come(kNumBlocks, false);
    for (const BlockCompletion& completion : completions) {
      const auto i = static_cast<int64_t>(completion.tag);
      EXPECT_FALSE(has_come[i]) << "twice: " << i;
      has_come[i] = true;
      outcome.reads.push_back(completion.status);
      if (!completion.status.ok()) continue;
      EXPECT_EQ(
          std::memcmp(targets.data() + place(i) * kBlockBytes, blocks.block(i).data(), kBlockBytes),
          0);
    }
  }
  for (const WrittenBlocks& blocks : extents) {
    EXPECT_TRUE(file.Free(blocks.offset, blocks.bytes.size()).ok());
  }
  EXPECT_EQ(file.space().used_bytes, 0);
  EXPECT_EQ(file.space().size_bytes, 0);
  return outcome;
}

int64_t NumFailed(const std::vector<absl::Status>& statuses) {
  int64_t count = 0;
  for (const absl::Status& status : statuses) count += !status.ok();
  return count;
}

struct Case {
  Site site;
  Fault fault;
  Code code;  // of what fails; kOk when nothing may fail
};

class EveryFaultTest : public ::testing::TestWithParam<IoEngine> {};

INSTANTIATE_TEST_SUITE_P(Engines, EveryFaultTest,
                         ::testing::Values(IoEngine::kAuto, IoEngine::kPread),
                         [](const auto& param_info) {
                           return param_info.param == IoEngine::kAuto ? "Auto" : "Pread";
                         });

TEST_P(EveryFaultTest, EndsInAStatusAndLosesNothingElse) {
  const std::vector<Case> cases = {
      {Site::kAllocate, Fault::kDiskFull, Code::kResourceExhausted},
      {Site::kAllocate, Fault::kIoError, Code::kUnavailable},
      {Site::kWrite, Fault::kDiskFull, Code::kResourceExhausted},
      {Site::kWrite, Fault::kIoError, Code::kUnavailable},
      {Site::kWrite, Fault::kShort, Code::kOk},
      {Site::kSubmit, Fault::kIoError, Code::kUnavailable},
      {Site::kSubmit, Fault::kTransient, Code::kOk},
      {Site::kRun, Fault::kIoError, Code::kUnavailable},
      {Site::kRun, Fault::kTransient, Code::kOk},
      {Site::kRun, Fault::kShort, Code::kOk},
      {Site::kComplete, Fault::kIoError, Code::kUnavailable},
      {Site::kComplete, Fault::kTransient, Code::kOk},
      {Site::kComplete, Fault::kShort, Code::kOk},
      {Site::kComplete, Fault::kCorrupt, Code::kDataLoss},
      {Site::kComplete, Fault::kDelay, Code::kOk},
  };
  const TemporaryFolder folder;
  BackingOptions options;
  options.engine = GetParam();
  options.num_read_threads = 3;
  for (const bool direct : {true, false}) {
    options.direct = direct;
    auto file = BackingFile::Create(folder.path(), options);
    ASSERT_TRUE(file.ok()) << file.status();
    BackingFaults& faults = (*file)->faults();
    for (const Case& c : cases) {
      // The page cache changes little, so one pass through it is enough.
      for (const int count : direct ? std::vector<int>{1, 3} : std::vector<int>{1}) {
        bool is_met = true;
        for (int64_t n = 0; is_met; ++n) {
          SCOPED_TRACE(fmt::format("direct {}, site {}, fault {}, after {}, count {}", direct,
                                   static_cast<int>(c.site), static_cast<int>(c.fault), n, count));
          faults.Plant(c.site, c.fault, n, count, std::chrono::milliseconds(1));
          const Outcome outcome = WriteReadFree(**file, /*queue_depth=*/4);
          is_met = faults.num_met(c.site) > 0;
          const int64_t num_met = faults.num_met(c.site);
          faults.Clear();

          const int64_t failed_writes = NumFailed(outcome.writes);
          const int64_t failed_reads = NumFailed(outcome.reads);
          if (c.code == Code::kOk || !is_met) {
            EXPECT_EQ(failed_writes + failed_reads, 0);
          } else if (c.site == Site::kAllocate || c.site == Site::kWrite) {
            EXPECT_EQ(failed_writes, num_met);
            EXPECT_EQ(failed_reads, 0);
          } else if (c.site == Site::kComplete) {
            EXPECT_EQ(failed_reads, num_met) << "only the read that met it fails";
          } else if (c.site == Site::kRun) {
            EXPECT_LE(failed_reads, num_met) << "joined reads are tried again one by one";
          } else {
            EXPECT_GE(failed_reads, 1);
            // What was handed over; from the second refusal in a row on, also what waits behind it.
            EXPECT_LE(failed_reads, num_met * kNumBlocks);
          }
          for (const auto* statuses : {&outcome.writes, &outcome.reads}) {
            for (const absl::Status& status : *statuses) {
              EXPECT_TRUE(status.ok() || status.code() == c.code) << status;
            }
          }
          if (::testing::Test::HasFailure()) return;
        }
        // And all is as if nothing had been.
        const Outcome after = WriteReadFree(**file, 4);
        EXPECT_EQ(NumFailed(after.writes) + NumFailed(after.reads), 0);
      }
    }
  }
  EXPECT_EQ(folder.NumOpenFiles(), 0);
}

// A file of many blocks, and a read of each.
struct ManyBlocks {
  static constexpr int64_t kCount = 40;

  void Write(IoEngine engine) {
    BackingOptions options;
    options.engine = engine;
    auto created = BackingFile::Create(folder.path(), options);
    ASSERT_TRUE(created.ok()) << created.status();
    file = *std::move(created);
    auto written = WriteBlocks(*file, kCount, 4096, 1);
    ASSERT_TRUE(written.ok()) << written.status();
    blocks = *std::move(written);
    targets = AlignedBytes(blocks.bytes.size());
    for (int64_t i = 0; i < kCount; ++i) reads.push_back(blocks.Read(i, targets, i));
  }

  TemporaryFolder folder;
  std::unique_ptr<BackingFile> file;
  WrittenBlocks blocks;
  AlignedBytes targets{0};
  std::vector<BlockRead> reads;
};

TEST_P(EveryFaultTest, ADeviceThatStaysBrokenFailsEveryReadAndEveryCallEnds) {
  ManyBlocks many;
  ASSERT_NO_FATAL_FAILURE(many.Write(GetParam()));
  auto reader = many.file->NewReader({.queue_depth = 8});
  ASSERT_TRUE(reader.ok());
  std::vector<BlockCompletion> completions(ManyBlocks::kCount);
  for (const auto& [site, fault] :
       std::vector<std::pair<Site, Fault>>{{Site::kSubmit, Fault::kIoError},
                                           {Site::kComplete, Fault::kIoError},
                                           {Site::kComplete, Fault::kTransient}}) {
    SCOPED_TRACE(fmt::format("site {}, fault {}", static_cast<int>(site), static_cast<int>(fault)));
    many.file->faults().Plant(site, fault, 0, int64_t{1} << 40);
    ASSERT_TRUE((*reader)->Submit(many.reads).ok());
    ASSERT_EQ((*reader)->Wait(ManyBlocks::kCount, absl::MakeSpan(completions)), ManyBlocks::kCount);
    for (const BlockCompletion& completion : completions) {
      EXPECT_EQ(completion.status.code(), Code::kUnavailable) << completion.status;
    }
    many.file->faults().Clear();
    ASSERT_TRUE((*reader)->Submit(many.reads).ok());
    ASSERT_EQ((*reader)->Wait(ManyBlocks::kCount, absl::MakeSpan(completions)), ManyBlocks::kCount);
    for (const BlockCompletion& completion : completions) {
      EXPECT_TRUE(completion.status.ok()) << completion.status;
    }
  }
}

TEST_P(EveryFaultTest, ReadersGoWhileTheDeviceIsBroken) {
  ManyBlocks many;
  ASSERT_NO_FATAL_FAILURE(many.Write(GetParam()));
  for (const auto& [site, fault] :
       std::vector<std::pair<Site, Fault>>{{Site::kSubmit, Fault::kIoError},
                                           {Site::kSubmit, Fault::kTransient},
                                           {Site::kComplete, Fault::kIoError},
                                           {Site::kComplete, Fault::kTransient},
                                           {Site::kComplete, Fault::kShort},
                                           {Site::kComplete, Fault::kDelay}}) {
    many.file->faults().Plant(site, fault, 3, 20, std::chrono::hours(1));
    auto reader = many.file->NewReader({.queue_depth = 8});
    ASSERT_TRUE(reader.ok());
    ASSERT_TRUE((*reader)->Submit(many.reads).ok());
    reader->reset();
    many.file->faults().Clear();
  }
}

TEST(BackingFaultsTest, CountsPassesAndFaults) {
  BackingFaults faults;
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kNone);
  EXPECT_EQ(faults.num_passes(Site::kWrite), 0);  // nothing planted, nothing counted
  faults.Plant(Site::kWrite, Fault::kShort, 1, 2);
  EXPECT_EQ(faults.Next(Site::kAllocate), Fault::kNone);
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kNone);
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kShort);
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kShort);
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kNone);
  EXPECT_EQ(faults.num_passes(Site::kWrite), 4);
  EXPECT_EQ(faults.num_met(Site::kWrite), 2);
  faults.Clear();
  EXPECT_EQ(faults.Next(Site::kWrite), Fault::kNone);
}

}  // namespace
}  // namespace wavekv
