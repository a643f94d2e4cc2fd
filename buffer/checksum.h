// The checksum that tells a block that came back damaged, or not at all.
#ifndef WAVEKV_BUFFER_CHECKSUM_H_
#define WAVEKV_BUFFER_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace wavekv {

// The low 32 bits of XXH3 (64 bits, seed 0): the same on every machine. A damaged block passes with
// probability 2^-32. It finds accidents, not an attacker.
uint32_t BlockChecksum(absl::Span<const std::byte> block);

// The checksum of each `block_bytes` of `blocks`. REQUIRES: blocks.size() == checksums.size() *
// block_bytes.
void BlockChecksums(absl::Span<const std::byte> blocks, int64_t block_bytes,
                    absl::Span<uint32_t> checksums);

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_CHECKSUM_H_
