#ifndef WAVEKV_BUFFER_BLOCK_TABLE_H_
#define WAVEKV_BUFFER_BLOCK_TABLE_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>

namespace wavekv {

// Where the blocks of one kv head of one sealed segment are: for each the slot of the fast tier
// that holds it, if any. Four bytes a block; its place in the backing tier follows from its number.
//
// Threads: slots are read by any number of threads and written by the BlockCache alone.
class BlockTable {
 public:
  static constexpr uint32_t kNoSlot = std::numeric_limits<uint32_t>::max();

  // Block b has the key first_key + b, which no living block of another table may have. The blocks
  // are cached on the account of `tenant`, a BlockCache::TenantId. REQUIRES: num_blocks <= 2^32.
  BlockTable(int64_t num_blocks, uint64_t first_key, uint32_t tenant)
      : num_blocks_(num_blocks),
        first_key_(first_key),
        tenant_(tenant),
        slots_(std::make_unique<std::atomic<uint32_t>[]>(num_blocks)) {
    for (int64_t i = 0; i < num_blocks; ++i) slots_[i].store(kNoSlot, std::memory_order_relaxed);
  }

  int64_t num_blocks() const { return num_blocks_; }
  uint32_t tenant() const { return tenant_; }
  uint64_t key(int64_t block) const { return first_key_ + static_cast<uint64_t>(block); }

  // Stale as soon as it is known, unless the slot is pinned.
  uint32_t slot(int64_t block) const { return slots_[block].load(std::memory_order_acquire); }
  void PrefetchSlot(int64_t block) const { __builtin_prefetch(&slots_[block]); }

 private:
  friend class BlockCache;

  const int64_t num_blocks_;
  const uint64_t first_key_;
  const uint32_t tenant_;
  const std::unique_ptr<std::atomic<uint32_t>[]> slots_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BLOCK_TABLE_H_
