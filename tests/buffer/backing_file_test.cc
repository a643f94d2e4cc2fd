#include "buffer/backing_file.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "buffer/checksum.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/buffer/block_file.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::AlignedBytes;
using ::testing::IsEmpty;
using testing::TemporaryFolder;
using ::testing::TestWithParam;
using testing::WriteBlocks;
using testing::WrittenBlocks;

constexpr int64_t kPage = FileExtents::kAlignmentBytes;

std::unique_ptr<BackingFile> MakeFile(const std::string& directory,
                                      const BackingOptions& options = {}) {
  auto file = BackingFile::Create(directory, options);
  EXPECT_TRUE(file.ok()) << file.status();
  return std::move(*file);
}

// Reads all blocks and compares them with what was written.
void ExpectReadsBack(BackingFile& file, const WrittenBlocks& blocks) {
  auto reader = file.NewReader();
  ASSERT_TRUE(reader.ok()) << reader.status();
  const AlignedBytes targets(blocks.bytes.size());
  std::vector<BlockRead> reads;
  for (int64_t i = 0; i < blocks.num_blocks(); ++i) reads.push_back(blocks.Read(i, targets, i));
  ASSERT_TRUE((*reader)->Submit(reads).ok());
  std::vector<BlockCompletion> completions(reads.size());
  ASSERT_EQ((*reader)->Wait(blocks.num_blocks(), absl::MakeSpan(completions)), blocks.num_blocks());
  for (const BlockCompletion& completion : completions) {
    EXPECT_TRUE(completion.status.ok()) << completion.status;
  }
  EXPECT_EQ(std::memcmp(targets.data(), blocks.bytes.data(), targets.size()), 0);
}

class EveryBackingFileTest : public TestWithParam<std::tuple<IoEngine, bool, bool>> {
 protected:
  BackingOptions options() const {
    BackingOptions options;
    std::tie(options.engine, options.direct, options.unnamed_file) = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(All, EveryBackingFileTest,
                         ::testing::Combine(::testing::Values(IoEngine::kAuto, IoEngine::kPread),
                                            ::testing::Bool(), ::testing::Bool()));

TEST_P(EveryBackingFileTest, WhatIsWrittenIsReadBackAndNobodySeesTheFile) {
  const TemporaryFolder folder;
  {
    const auto file = MakeFile(folder.path(), options());
    EXPECT_THAT(folder.Names(), IsEmpty());
    EXPECT_EQ(folder.NumOpenFiles(), 1);
    for (const int64_t block_bytes : {512, 1536, 4096, 69632}) {
      SCOPED_TRACE(block_bytes);
      const auto blocks = WriteBlocks(*file, 37, block_bytes, block_bytes);
      ASSERT_TRUE(blocks.ok()) << blocks.status();
      EXPECT_EQ(blocks->offset % kPage, 0);
      ExpectReadsBack(*file, *blocks);
    }
    EXPECT_NE(file->engine(), IoEngine::kAuto);
    EXPECT_FALSE(file->direct() && !options().direct);
  }
  EXPECT_EQ(folder.NumOpenFiles(), 0);
}

TEST_P(EveryBackingFileTest, MemoryThatIsNotAlignedIsWrittenToo) {
  const TemporaryFolder folder;
  const auto file = MakeFile(folder.path(), options());
  constexpr int64_t kBytes = (int64_t{2} << 20) + 512;  // more than is copied at once
  AlignedBytes bytes(kBytes + 8);
  bytes.Fill(5);
  const auto offset = file->Allocate(kBytes);
  ASSERT_TRUE(offset.ok());
  ASSERT_TRUE(file->Write(*offset, bytes.part(8, kBytes)).ok());
  WrittenBlocks blocks;
  blocks.offset = *offset;
  blocks.block_bytes = kBytes;
  blocks.bytes = AlignedBytes(kBytes);
  std::memcpy(blocks.bytes.data(), bytes.data() + 8, kBytes);
  blocks.checksums = {BlockChecksum(blocks.block(0))};
  ExpectReadsBack(*file, blocks);
}

TEST(BackingFileTest, NamesThatACrashLeftBehindAreRemoved) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() + "/.wavekv-backing-abc123") << "left";
  std::ofstream(folder.path() + "/somebody_elses") << "stays";
  BackingOptions options;
  options.unnamed_file = false;
  const auto file = MakeFile(folder.path(), options);
  EXPECT_THAT(folder.Names(), ::testing::ElementsAre("somebody_elses"));
}

TEST(BackingFileTest, FoldersThatWillNotDoAreNamed) {
  for (const bool unnamed : {true, false}) {
    BackingOptions options;
    options.unnamed_file = unnamed;
    const auto missing = BackingFile::Create("/no/such/folder", options);
    EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound) << missing.status();
    EXPECT_TRUE(absl::StrContains(missing.status().message(), "/no/such/folder"));
    // Not a folder, and one in which nobody may create files.
    for (const std::string path : {"/proc/self/status", "/proc/self"}) {
      const auto file = BackingFile::Create(path, options);
      EXPECT_FALSE(file.ok()) << path;
      EXPECT_TRUE(absl::StrContains(file.status().message(), path)) << file.status();
    }
  }
}

TEST(BackingFileTest, OptionsOutOfRangeAreNamed) {
  const TemporaryFolder folder;
  BackingOptions options;
  options.capacity_bytes = -1;
  EXPECT_TRUE(absl::StrContains(BackingFile::Create(folder.path(), options).status().message(),
                                "capacity_bytes"));
  options = {};
  options.num_read_threads = 0;
  EXPECT_TRUE(absl::StrContains(BackingFile::Create(folder.path(), options).status().message(),
                                "num_read_threads"));
  const auto file = MakeFile(folder.path());
  for (const int queue_depth : {0, -1, 4097}) {
    ReaderOptions reader;
    reader.queue_depth = queue_depth;
    EXPECT_TRUE(absl::StrContains(file->NewReader(reader).status().message(), "queue_depth"));
  }
  ReaderOptions reader;
  reader.reserved_reads = -1;
  EXPECT_TRUE(absl::StrContains(file->NewReader(reader).status().message(), "reserved_reads"));
}

TEST(BackingFileTest, CapacityIsNotExceededAndARefusalChangesNothing) {
  const TemporaryFolder folder;
  BackingOptions options;
  options.capacity_bytes = 4 * kPage;
  const auto file = MakeFile(folder.path(), options);
  const auto first = file->Allocate(3 * kPage);
  ASSERT_TRUE(first.ok());
  const absl::Status status = file->Allocate(2 * kPage).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(status.message(), "requested 8192")) << status;
  EXPECT_EQ(file->space().used_bytes, 3 * kPage);
  ASSERT_TRUE(file->Free(*first, 3 * kPage).ok());
  EXPECT_TRUE(file->Allocate(4 * kPage).ok());
}

TEST(BackingFileTest, ARefusalOfTheFileSystemHasTheNumbersAndChangesNothing) {
  const TemporaryFolder folder;
  const auto file = MakeFile(folder.path());
  const auto kept = WriteBlocks(*file, 4, 4096, 1);
  ASSERT_TRUE(kept.ok());
  const FileSpace before = file->space();
  // The limit on the size of files is the refusal that needs no file system of our own.
  rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {1 << 20, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status status = file->Allocate(2 << 20).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), folder.path())) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "requested 2097152 bytes")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), " available")) << status;
  EXPECT_EQ(file->space().used_bytes, before.used_bytes);
  EXPECT_EQ(file->space().size_bytes, before.size_bytes);
  EXPECT_TRUE(file->Allocate(2 << 20).ok());
  ExpectReadsBack(*file, *kept);
}

// Bytes on disk of the only file that is open in the folder; -1 when there is none.
int64_t DiskBytes(const TemporaryFolder& folder) {
  for (int fd = 0; fd < 1024; ++fd) {
    char target[4096] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (readlink(link.c_str(), target, sizeof(target) - 1) < 0) continue;
    struct stat status;
    if (absl::StartsWith(target, folder.path() + "/") && fstat(fd, &status) == 0) {
      return int64_t{status.st_blocks} * 512;
    }
  }
  return -1;
}

TEST(BackingFileTest, FreedExtentsGoBackToTheFileSystem) {
  const TemporaryFolder folder;
  const int probe = open(folder.path().c_str(), O_TMPFILE | O_RDWR, 0600);
  const bool punches = probe >= 0 && fallocate(probe, 0, 0, kPage) == 0 &&
                       fallocate(probe, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) == 0;
  if (probe >= 0) close(probe);
  if (!punches) GTEST_SKIP() << "the file system of " << folder.path() << " makes no holes";

  const auto file = MakeFile(folder.path());
  const auto first = WriteBlocks(*file, 256, 4096, 1);
  const auto second = WriteBlocks(*file, 16, 4096, 2);
  ASSERT_TRUE(first.ok() && second.ok());
  const int64_t both_bytes = DiskBytes(folder);
  EXPECT_GE(both_bytes, 272 * 4096);
  ASSERT_TRUE(file->Free(first->offset, first->bytes.size()).ok());
  EXPECT_LE(DiskBytes(folder), both_bytes - 256 * 4096);
  ExpectReadsBack(*file, *second);
  // The hole is used again, and its old bytes do not show.
  const auto third = WriteBlocks(*file, 100, 4096, 3);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(third->offset, first->offset);
  ExpectReadsBack(*file, *third);
  ExpectReadsBack(*file, *second);
}

TEST(BackingFileTest, BadWritesAndFreesAreRefused) {
  const TemporaryFolder folder;
  const auto file = MakeFile(folder.path());
  const auto kept = WriteBlocks(*file, 2, 4096, 1);
  ASSERT_TRUE(kept.ok());
  const AlignedBytes bytes(4 * kPage);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(file->Allocate(0).status().code(), absl::StatusCode::kInvalidArgument);
  for (const auto& [offset, size] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 512}, {0, 511}, {-512, 512}, {kPage, 2 * kPage}, {kMax - 511, 512}}) {
    EXPECT_EQ(file->Write(offset, bytes.part(0, size)).code(), absl::StatusCode::kInvalidArgument)
        << offset << " " << size;
  }
  EXPECT_EQ(file->Free(2 * kPage, kPage).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(file->Write(0, {}).ok());
  ExpectReadsBack(*file, *kept);
}

TEST(BackingFileTest, ThreadsAllocateWriteReadAndFreeAtOnce) {
  const TemporaryFolder folder;
  const auto file = MakeFile(folder.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&file, t] {
      testing::Random random(t);
      WAVEKV_TRACE_SEED(random);
      std::vector<WrittenBlocks> live;
      for (int round = 0; round < 12; ++round) {
        auto blocks =
            WriteBlocks(*file, random.Integer(1, 20), 512 * random.Integer(1, 9), 1000 * t + round);
        ASSERT_TRUE(blocks.ok()) << blocks.status();
        live.push_back(std::move(*blocks));
        ExpectReadsBack(*file, live[random.Integer(0, live.size() - 1)]);
        if (live.size() > 4) {
          const WrittenBlocks& victim = live.front();
          ASSERT_TRUE(file->Free(victim.offset, victim.bytes.size()).ok());
          live.erase(live.begin());
        }
      }
      for (const WrittenBlocks& blocks : live) {
        ExpectReadsBack(*file, blocks);
        ASSERT_TRUE(file->Free(blocks.offset, blocks.bytes.size()).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(file->space().size_bytes, 0);
  EXPECT_EQ(file->space().used_bytes, 0);
}

// From here on io_uring_setup fails in this thread, and in those that it starts.
bool ForbidIoUring(int error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(BackingFileTest, WhereIoUringIsForbiddenThreadsRead) {
  for (const int error : {EPERM, ENOSYS}) {
    bool is_forbidden = false;
    std::thread([&] {
      is_forbidden = ForbidIoUring(error);
      if (!is_forbidden) return;
      const TemporaryFolder folder;
      const auto file = MakeFile(folder.path());
      EXPECT_EQ(file->engine(), IoEngine::kPread);
      EXPECT_FALSE(file->io_uring_status().ok());
      EXPECT_TRUE(absl::StrContains(file->io_uring_status().message(), std::strerror(error)))
          << file->io_uring_status();
      const auto blocks = WriteBlocks(*file, 50, 4096, 1);
      ASSERT_TRUE(blocks.ok());
      ExpectReadsBack(*file, *blocks);
      ReaderOptions reader;
      reader.engine = IoEngine::kIoUring;
      EXPECT_FALSE(file->NewReader(reader).ok());
      BackingOptions options;
      options.engine = IoEngine::kIoUring;
      EXPECT_FALSE(BackingFile::Create(folder.path(), options).ok());
    }).join();
    if (!is_forbidden) GTEST_SKIP() << "no seccomp filters here";
  }
}

TEST(BackingFileTest, AReaderThatGetsNoRingReadsByThreads) {
  const TemporaryFolder folder;
  const auto file = MakeFile(folder.path());
  const auto blocks = WriteBlocks(*file, 50, 4096, 1);
  ASSERT_TRUE(blocks.ok());
  bool is_forbidden = false;
  std::thread([&] {
    is_forbidden = ForbidIoUring(EPERM);
    if (!is_forbidden) return;
    const auto reader = file->NewReader();
    ASSERT_TRUE(reader.ok());
    EXPECT_EQ((*reader)->engine(), IoEngine::kPread);
    ExpectReadsBack(*file, *blocks);
  }).join();
  if (!is_forbidden) GTEST_SKIP() << "no seccomp filters here";
}

}  // namespace
}  // namespace wavekv
