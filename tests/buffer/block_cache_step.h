// What the tests of the block cache share.
#ifndef WAVEKV_TESTS_BUFFER_BLOCK_CACHE_STEP_H_
#define WAVEKV_TESTS_BUFFER_BLOCK_CACHE_STEP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "buffer/block_cache.h"
#include "gtest/gtest.h"

namespace wavekv::testing {

inline constexpr int64_t kSlotBytes = 512;

// What the backing tier has of a block: its key, all over.
inline std::vector<std::byte> BytesOf(uint64_t key) {
  std::vector<std::byte> bytes(kSlotBytes);
  for (size_t i = 0; i < bytes.size(); i += sizeof(key)) {
    std::memcpy(bytes.data() + i, &key, sizeof(key));
  }
  return bytes;
}

inline std::unique_ptr<BlockCache> Cache(int64_t num_slots,
                                         ReplacementKind replacement = ReplacementKind::kLru) {
  BlockCache::Options options;
  options.memory = {.num_slots = num_slots, .slot_bytes = kSlotBytes};
  options.replacement = replacement;
  auto cache = BlockCache::Create(options);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

inline BlockCache::TenantId Tenant(BlockCache& cache, const CacheShare& share = {}) {
  const auto tenant = cache.AddTenant(share);
  EXPECT_TRUE(tenant.ok()) << tenant.status();
  return *tenant;
}

// The steps of one thread, one after the other.
class Step {
 public:
  explicit Step(BlockCache& cache) : cache_(cache) {}

  // Pins or "reads" the blocks, and checks the bytes of those that were found.
  void Use(BlockTable& table, const std::vector<int64_t>& numbers) {
    int64_t num_found = 0;
    for (const int64_t number : numbers) {
      const std::vector<std::byte> want = BytesOf(table.key(number));
      const uint32_t slot = cache_.Pin(table, number, step_);
      if (slot != BlockCache::kNoSlot) {
        ASSERT_EQ(std::memcmp(cache_.data(slot), want.data(), kSlotBytes), 0) << "block " << number;
        pinned_.push_back(slot);
        ++num_found;
      } else {
        missed_.push_back({&table, number});
        read_.push_back(want);
      }
    }
    cache_.CountLookups(table.tenant(), num_found,
                        static_cast<int64_t>(numbers.size()) - num_found);
  }

  // Returns how many blocks were found. `last`: the step ends; else it goes on with another layer.
  int64_t Finish(bool last = true) {
    for (size_t i = 0; i < missed_.size(); ++i) missed_[i].data = read_[i].data();
    const auto num_found = static_cast<int64_t>(pinned_.size());
    cache_.Release(pinned_);
    cache_.Admit(step_, missed_);
    if (last) step_ = next_step.fetch_add(1);
    Forget();
    return num_found;
  }

  void Release() {
    cache_.Release(pinned_);
    Forget();
  }

 private:
  void Forget() {
    pinned_.clear();
    missed_.clear();
    read_.clear();
  }

  BlockCache& cache_;
  // They wrap in the middle of the tests.
  inline static std::atomic<uint32_t> next_step{0xfffffe00};
  uint32_t step_ = next_step.fetch_add(1);
  std::vector<uint32_t> pinned_;
  std::vector<BlockCache::Missed> missed_;
  std::vector<std::vector<std::byte>> read_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_BUFFER_BLOCK_CACHE_STEP_H_
