#include "tests/buffer/block_file.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <utility>

#include "buffer/checksum.h"
#include "gtest/gtest.h"

namespace wavekv::testing {

namespace fs = std::filesystem;

AlignedBytes::AlignedBytes(int64_t size)
    : size_(size),
      data_(static_cast<std::byte*>(std::aligned_alloc(4096, FileExtents::RoundUp(size)))) {
  std::fill_n(data(), size, std::byte{0});
}

void AlignedBytes::Fill(uint64_t seed) {
  std::mt19937_64 engine(seed);
  for (int64_t i = 0; i < size_; ++i) data()[i] = static_cast<std::byte>(engine() >> 32);
}

TemporaryFolder::TemporaryFolder() {
  const char* const root = std::getenv("TEST_TMPDIR");
  path_ = std::string(root == nullptr ? "/tmp" : root) + "/backing_XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "no folder " << path_;
  path_ = fs::canonical(path_);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
}

std::vector<std::string> TemporaryFolder::Names() const {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

int TemporaryFolder::NumOpenFiles() const {
  int count = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = fs::read_symlink(entry.path(), error);
    if (target.compare(0, path_.size() + 1, path_ + "/") == 0) ++count;
  }
  return count;
}

absl::StatusOr<WrittenBlocks> WriteBlocks(BackingFile& file, int64_t num_blocks,
                                          int64_t block_bytes, uint64_t seed) {
  WrittenBlocks blocks;
  blocks.block_bytes = block_bytes;
  blocks.bytes = AlignedBytes(num_blocks * block_bytes);
  blocks.bytes.Fill(seed);
  blocks.checksums.resize(num_blocks);
  BlockChecksums(blocks.bytes.part(0, blocks.bytes.size()), block_bytes,
                 absl::MakeSpan(blocks.checksums));
  const auto offset = file.Allocate(blocks.bytes.size());
  if (!offset.ok()) return offset.status();
  blocks.offset = *offset;
  const absl::Status status = file.Write(*offset, blocks.bytes.part(0, blocks.bytes.size()));
  if (!status.ok()) {
    EXPECT_TRUE(file.Free(*offset, blocks.bytes.size()).ok());
    return status;
  }
  return blocks;
}

}  // namespace wavekv::testing
