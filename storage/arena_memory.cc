#include "storage/arena_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "storage/host_pages.h"

namespace wavekv {
namespace {

class HostMemory final : public ArenaMemory {
 public:
  explicit HostMemory(std::unique_ptr<HostPages> pages) : pages_(std::move(pages)) {}

  std::byte* data() const override { return pages_->data(); }
  int64_t bytes() const override { return pages_->bytes(); }
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
    madvise(data(), bytes(), MADV_DONTNEED);
    return false;
  }
  bool IsZero(const std::byte* at, int64_t num_bytes) const override {
    return at[0] == std::byte{0} && std::memcmp(at, at + 1, num_bytes - 1) == 0;
  }

 private:
  const std::unique_ptr<HostPages> pages_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArenaMemory>> MapHostMemory(int64_t bytes, int prefault_threads) {
  absl::StatusOr<std::unique_ptr<HostPages>> pages =
      HostPages::Map({.bytes = bytes, .prefault_threads = prefault_threads});
  if (!pages.ok()) {
    return absl::Status(pages.status().code(),
                        fmt::format("arena_bytes: {}", std::string(pages.status().message())));
  }
  return std::make_unique<HostMemory>(*std::move(pages));
}

}  // namespace wavekv
