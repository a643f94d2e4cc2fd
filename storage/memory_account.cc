#include "storage/memory_account.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "fmt/format.h"

namespace wavekv {

Extent::Extent(Extent&& other) noexcept { *this = std::move(other); }

Extent& Extent::operator=(Extent&& other) noexcept {
  if (this != &other) {
    Reset();
    account_ = std::move(other.account_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Extent::Reset() {
  if (data_ == nullptr) return;
  account_->Release(std::exchange(data_, nullptr), std::exchange(bytes_, 0));
  account_.reset();
}

std::shared_ptr<MemoryAccount> MemoryAccount::Create(std::shared_ptr<Arena> arena,
                                                     int64_t quota_bytes) {
  return std::shared_ptr<MemoryAccount>(new MemoryAccount(std::move(arena), quota_bytes));
}

absl::StatusOr<Extent> MemoryAccount::Allocate(int64_t bytes) {
  const int64_t rounded = Arena::RoundUp(bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (quota_bytes_ > 0 && rounded > quota_bytes_ - used_bytes_) {
      ++rejects_total_;
      return absl::ResourceExhaustedError(
          fmt::format("tenant quota of host memory: requested {} bytes, available {}, quota {}",
                      rounded, std::max<int64_t>(0, quota_bytes_ - used_bytes_), quota_bytes_));
    }
    used_bytes_ += rounded;
  }
  std::byte* data = arena_->Allocate(rounded);
  if (data == nullptr) {
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ -= rounded;
    ++rejects_total_;
    return absl::ResourceExhaustedError(fmt::format(
        "arena of host memory: requested {} bytes, available {} (largest run {}), arena {}",
        rounded, arena_->free_bytes(), arena_->largest_free_bytes(), arena_->bytes()));
  }
  return Extent(shared_from_this(), data, rounded);
}

void MemoryAccount::Release(std::byte* data, int64_t bytes) {
  arena_->Free(data, bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  used_bytes_ -= bytes;
}

void MemoryAccount::SetQuota(int64_t quota_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  quota_bytes_ = quota_bytes;
}

int64_t MemoryAccount::quota_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return quota_bytes_;
}

int64_t MemoryAccount::used_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return used_bytes_;
}

int64_t MemoryAccount::rejects_total() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return rejects_total_;
}

}  // namespace wavekv
