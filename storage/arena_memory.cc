#include "storage/arena_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "fmt/format.h"
#include "storage/prefault.h"

namespace wavekv {
namespace {

class HostMemory final : public ArenaMemory {
 public:
  HostMemory(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~HostMemory() override { munmap(data_, bytes_); }

  std::byte* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }
  void Zero(std::byte* at, int64_t num_bytes) override { std::memset(at, 0, num_bytes); }
  void Copy(std::byte* to, const std::byte* from, int64_t num_bytes) override {
    std::memcpy(to, from, num_bytes);
  }

  absl::Status Unseal(const ClusterIndex& index, int64_t num_tokens,
                      absl::Span<std::byte* const> chunks, int64_t chunk_tokens,
                      int64_t head_offset) override {
    const int64_t key_bytes = index.key_row_bytes();
    const int64_t value_bytes = index.value_row_bytes();
    for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
      const KvRange range = index.cluster_range(cluster);
      for (int64_t i = 0; i < range.num_tokens; ++i) {
        const int64_t position = range.positions[i];
        if (position >= num_tokens) continue;
        std::byte* const head = chunks[position / chunk_tokens] + head_offset;
        const int64_t row = position % chunk_tokens;
        std::memcpy(head + row * key_bytes, range.keys + i * key_bytes, key_bytes);
        std::memcpy(head + chunk_tokens * key_bytes + row * value_bytes,
                    range.values + i * value_bytes, value_bytes);
      }
    }
    return absl::OkStatus();
  }

  bool ReleasePages() override {
    madvise(data_, bytes_, MADV_DONTNEED);
    return false;
  }
  bool IsZero(const std::byte* at, int64_t num_bytes) const override {
    return at[0] == std::byte{0} && std::memcmp(at, at + 1, num_bytes - 1) == 0;
  }

 private:
  std::byte* const data_;
  const int64_t bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArenaMemory>> MapHostMemory(int64_t bytes, int prefault_threads) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("arena_bytes: cannot map {} bytes: {}", bytes, std::strerror(errno)));
  }
  // Random reads of cluster rows miss the TLB on small pages; where huge pages are off this is a
  // no-op.
  madvise(data, bytes, MADV_HUGEPAGE);
  auto memory = std::make_unique<HostMemory>(static_cast<std::byte*>(data), bytes);
  PrefaultPages(memory->data(), bytes, prefault_threads);
  return memory;
}

}  // namespace wavekv
