// Who pays for which bytes of the arena.
#ifndef WAVEKV_STORAGE_MEMORY_ACCOUNT_H_
#define WAVEKV_STORAGE_MEMORY_ACCOUNT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "storage/arena.h"

namespace wavekv {

class MemoryAccount;

// A run of arena bytes, charged to an account until it is destroyed; zero when handed out, and
// zeroed again before anybody else gets it. Move-only.
class Extent {
 public:
  Extent() = default;
  Extent(Extent&& other) noexcept;
  Extent& operator=(Extent&& other) noexcept;
  ~Extent() { Reset(); }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class MemoryAccount;
  Extent(std::shared_ptr<MemoryAccount> account, std::byte* data, int64_t bytes)
      : account_(std::move(account)), data_(data), bytes_(bytes) {}

  void Reset();

  std::shared_ptr<MemoryAccount> account_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// One tenant's share of the arena.
//
// Invariant: used_bytes() is the sum of the live extents' bytes, and never exceeds the quota by
// growth. Threads: safe.
class MemoryAccount : public std::enable_shared_from_this<MemoryAccount> {
 public:
  // quota_bytes == 0: bounded by the arena alone.
  static std::shared_ptr<MemoryAccount> Create(std::shared_ptr<Arena> arena, int64_t quota_bytes);

  // RESOURCE_EXHAUSTED saying which limit was met, with requested, available and quota bytes.
  absl::StatusOr<Extent> Allocate(int64_t bytes);

  ArenaMemory& memory() const { return arena_->memory(); }

  void SetQuota(int64_t quota_bytes);
  int64_t quota_bytes() const;
  int64_t used_bytes() const;
  int64_t rejects_total() const;

 private:
  friend class Extent;
  MemoryAccount(std::shared_ptr<Arena> arena, int64_t quota_bytes)
      : arena_(std::move(arena)), quota_bytes_(quota_bytes) {}

  void Release(std::byte* data, int64_t bytes);

  const std::shared_ptr<Arena> arena_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  int64_t quota_bytes_;
  int64_t used_bytes_ = 0;
  int64_t rejects_total_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_MEMORY_ACCOUNT_H_
