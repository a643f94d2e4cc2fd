#include "buffer/slot_memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/numbers.h"
#include "fmt/format.h"
#include "storage/prefault.h"

namespace wavekv {
namespace {

// Bytes that the control group of this process may have; as good as endless where nothing says.
int64_t MemoryLimit(const char* path) {
  std::ifstream file(path);
  std::string text;
  int64_t limit = 0;
  if (file >> text && absl::SimpleAtoi(text, &limit)) return limit;
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotMemory>> SlotMemory::Create(const SlotMemoryOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.num_slots < 1 || options.slot_bytes < 1) {
    return absl::InvalidArgumentError(
        fmt::format("slots must be at least one of at least one byte, got {} of {} bytes",
                    options.num_slots, options.slot_bytes));
  }
  int64_t bytes = 0;
  const int64_t limit = options.limit_path != nullptr
                            ? MemoryLimit(options.limit_path)
                            : std::min(MemoryLimit("/sys/fs/cgroup/memory.max"),
                                       MemoryLimit("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
  if (__builtin_mul_overflow(options.num_slots, options.slot_bytes, &bytes) || bytes > limit) {
    return absl::ResourceExhaustedError(
        fmt::format("{} slots of {} bytes are more than the {} bytes that the process may have",
                    options.num_slots, options.slot_bytes, limit));
  }
  void* const base =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("cannot map {} bytes of slots: {}", bytes, std::strerror(errno)));
  }
  auto memory = std::unique_ptr<SlotMemory>(
      new SlotMemory(static_cast<std::byte*>(base), options.num_slots, options.slot_bytes));
  memory->huge_pages_advised_ = madvise(base, bytes, MADV_HUGEPAGE) == 0;
  memory->Interleave();
  PrefaultPages(memory->base_, bytes, options.prefault_threads);
  memory->create_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return memory;
}

SlotMemory::~SlotMemory() { munmap(base_, bytes()); }

void SlotMemory::Interleave() {
  // The numbers of <linux/mempolicy.h>, which not every system installs.
  constexpr int kInterleave = 3;
  constexpr int kMemsAllowed = 4;
  // As many nodes as kernels are built for; the calls refuse masks that are shorter than theirs.
  constexpr size_t kBitsPerWord = 8 * sizeof(unsigned long);
  constexpr size_t kNodesMax = 1024;
  std::array<unsigned long, kNodesMax / kBitsPerWord> nodes{};
  if (syscall(SYS_get_mempolicy, nullptr, nodes.data(), kNodesMax, nullptr, kMemsAllowed) != 0) {
    return;
  }
  int num_nodes = 0;
  for (const unsigned long word : nodes) num_nodes += std::popcount(word);
  if (num_nodes < 2) return;
  // One more than the highest number of a node: the kernel takes one off.
  if (syscall(SYS_mbind, base_, bytes(), kInterleave, nodes.data(), kNodesMax + 1, 0) == 0) {
    num_nodes_ = num_nodes;
  }
}

}  // namespace wavekv
