// Blocks with known contents in a backing file.
#ifndef WAVEKV_TESTS_BUFFER_BLOCK_FILE_H_
#define WAVEKV_TESTS_BUFFER_BLOCK_FILE_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "buffer/backing_file.h"

namespace wavekv::testing {

// Memory for direct I/O.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t size);

  std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<std::byte> part(int64_t offset, int64_t bytes) const {
    return absl::MakeSpan(data() + offset, bytes);
  }
  void Fill(uint64_t seed);

 private:
  struct Deleter {
    void operator()(std::byte* data) const { std::free(data); }
  };

  int64_t size_;
  std::unique_ptr<std::byte, Deleter> data_;
};

// A folder that is removed with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();

  const std::string& path() const { return path_; }
  std::vector<std::string> Names() const;
  // Descriptors of this process on files in the folder, unlinked ones too.
  int NumOpenFiles() const;

 private:
  std::string path_;
};

// Consecutive blocks that were written, and what is needed to read them.
struct WrittenBlocks {
  int64_t offset = 0;
  int64_t block_bytes = 0;
  AlignedBytes bytes{0};
  std::vector<uint32_t> checksums;

  int64_t num_blocks() const { return static_cast<int64_t>(checksums.size()); }
  absl::Span<const std::byte> block(int64_t i) const {
    return bytes.part(i * block_bytes, block_bytes);
  }
  // A read of block i into its place among `targets`, with the tag i.
  BlockRead Read(int64_t i, const AlignedBytes& targets, int64_t place) const {
    return {offset + i * block_bytes, targets.part(place * block_bytes, block_bytes), checksums[i],
            static_cast<uint64_t>(i)};
  }
};

// Allocates an extent and fills it with random bytes.
absl::StatusOr<WrittenBlocks> WriteBlocks(BackingFile& file, int64_t num_blocks,
                                          int64_t block_bytes, uint64_t seed);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_BUFFER_BLOCK_FILE_H_
