#include "buffer/checksum.h"

#include <xxhash.h>

namespace wavekv {

uint32_t BlockChecksum(absl::Span<const std::byte> block) {
  return static_cast<uint32_t>(XXH3_64bits(block.data(), block.size()));
}

void BlockChecksums(absl::Span<const std::byte> blocks, int64_t block_bytes,
                    absl::Span<uint32_t> checksums) {
  for (size_t i = 0; i < checksums.size(); ++i) {
    checksums[i] = BlockChecksum(blocks.subspan(i * block_bytes, block_bytes));
  }
}

}  // namespace wavekv
