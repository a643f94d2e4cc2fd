#include "bench/stream_read.h"

#include <algorithm>
#include <atomic>

#include "absl/numeric/int128.h"

namespace wavekv::bench {

uint64_t StreamRead(absl::Span<const std::byte> bytes, Executor& executor) {
  // Vectors of the compiler: whatever the baseline instruction set makes of them suffices for DRAM.
  using Block = uint64_t __attribute__((vector_size(64)));
  constexpr int64_t kChunkBlocks = (int64_t{4} << 20) / sizeof(Block);
  const auto* const blocks = reinterpret_cast<const Block*>(bytes.data());
  const auto num_blocks = static_cast<int64_t>(bytes.size() / sizeof(Block));
  std::atomic<uint64_t> total{0};
  executor.ParallelFor((num_blocks + kChunkBlocks - 1) / kChunkBlocks, [&](int64_t chunk, int) {
    const int64_t end = std::min((chunk + 1) * kChunkBlocks, num_blocks);
    Block sums[2] = {};
    for (int64_t i = chunk * kChunkBlocks; i + 2 <= end; i += 2) {
      sums[0] += blocks[i];
      sums[1] += blocks[i + 1];
    }
    sums[0] += sums[1];
    uint64_t sum = 0;
    for (int lane = 0; lane < 8; ++lane) sum += sums[0][lane];
    total += sum;
  });
  return total;
}

uint64_t RandomRead(absl::Span<const std::byte> bytes, int64_t num_pieces, int64_t piece_bytes,
                    Executor& executor) {
  // A line in four registers that any machine has: a larger vector would be added up in memory.
  using Quarter = uint64_t __attribute__((vector_size(16)));
  // So small that threads end together.
  const int64_t chunk_pieces = std::max<int64_t>((int64_t{1} << 19) / piece_bytes, 1);
  constexpr uint64_t kAheadBytes = 8192;
  const auto num_places = static_cast<uint64_t>(static_cast<int64_t>(bytes.size()) / piece_bytes);
  const auto piece = [&](uint64_t i) {
    // Scatters consecutive numbers (SplitMix64).
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    // The high word of a product: a remainder would take as long as a piece.
    const auto place = absl::Uint128High64(absl::uint128(x) * num_places);
    return bytes.data() + place * piece_bytes;
  };
  const uint64_t ahead = std::max<uint64_t>(kAheadBytes / piece_bytes, 1);
  std::atomic<uint64_t> total{0};
  executor.ParallelFor((num_pieces + chunk_pieces - 1) / chunk_pieces, [&](int64_t chunk, int) {
    Quarter a = {}, b = {}, c = {}, d = {};
    const uint64_t end = std::min((chunk + 1) * chunk_pieces, num_pieces);
    for (uint64_t i = chunk * chunk_pieces; i < end; ++i) {
      const std::byte* const next = piece(i + ahead);
      for (int64_t at = 0; at < piece_bytes; at += 64) __builtin_prefetch(next + at, 0, 2);
      const auto* const quarters = reinterpret_cast<const Quarter*>(piece(i));
      for (int64_t q = 0; q < piece_bytes / 16; q += 4) {
        a += quarters[q];
        b += quarters[q + 1];
        c += quarters[q + 2];
        d += quarters[q + 3];
      }
    }
    a += b + c + d;
    total += a[0] + a[1];
  });
  return total;
}

}  // namespace wavekv::bench
