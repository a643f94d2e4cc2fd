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

}  // namespace wavekv::bench
