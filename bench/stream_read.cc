#include "bench/stream_read.h"

#include <algorithm>
#include <atomic>

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
  using Line = uint64_t __attribute__((vector_size(64)));
  constexpr int64_t kChunkPieces = 4096;
  constexpr uint64_t kAheadBytes = 4096;
  const auto num_places = static_cast<uint64_t>(static_cast<int64_t>(bytes.size()) / piece_bytes);
  const auto piece = [&](uint64_t i) {
    // Scatters consecutive numbers (SplitMix64).
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return bytes.data() + (x >> 16) % num_places * piece_bytes;
  };
  const uint64_t ahead = std::max<uint64_t>(kAheadBytes / piece_bytes, 1);
  std::atomic<uint64_t> total{0};
  executor.ParallelFor((num_pieces + kChunkPieces - 1) / kChunkPieces, [&](int64_t chunk, int) {
    Line sum = {};
    const uint64_t end = std::min((chunk + 1) * kChunkPieces, num_pieces);
    for (uint64_t i = chunk * kChunkPieces; i < end; ++i) {
      const std::byte* const next = piece(i + ahead);
      for (int64_t at = 0; at < piece_bytes; at += 64) __builtin_prefetch(next + at, 0, 2);
      const auto* const lines = reinterpret_cast<const Line*>(piece(i));
      for (int64_t line = 0; line < piece_bytes / 64; ++line) sum += lines[line];
    }
    total += sum[0] + sum[7];
  });
  return total;
}

}  // namespace wavekv::bench
