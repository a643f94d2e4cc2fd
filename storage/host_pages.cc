#include "storage/host_pages.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "fmt/format.h"

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

absl::StatusOr<std::unique_ptr<HostPages>> HostPages::Map(const HostPagesOptions& options) {
  const int64_t limit = options.limit_path != nullptr
                            ? MemoryLimit(options.limit_path)
                            : std::min(MemoryLimit("/sys/fs/cgroup/memory.max"),
                                       MemoryLimit("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
  if ((options.within_limit || options.prefault_threads > 0) && options.bytes > limit) {
    return absl::ResourceExhaustedError(fmt::format(
        "{} bytes are more than the {} bytes that the process may have", options.bytes, limit));
  }
  void* const data =
      mmap(nullptr, options.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("cannot map {} bytes: {}", options.bytes, std::strerror(errno)));
  }
  auto pages =
      std::unique_ptr<HostPages>(new HostPages(static_cast<std::byte*>(data), options.bytes));
  pages->huge_pages_advised_ = madvise(data, options.bytes, MADV_HUGEPAGE) == 0;
  pages->Interleave();
  pages->Touch(options.prefault_threads);
  return pages;
}

HostPages::~HostPages() { munmap(data_, bytes_); }

void HostPages::Interleave() {
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
  if (syscall(SYS_mbind, data_, bytes_, kInterleave, nodes.data(), kNodesMax + 1, 0) == 0) {
    num_nodes_ = num_nodes;
  }
}

void HostPages::Touch(int num_threads) {
  // Of the smallest pages; those of huge ones are touched often.
  constexpr int64_t kPageBytes = 4096;
  const int64_t num_pages = (bytes_ + kPageBytes - 1) / kPageBytes;
  const auto touch = [=, this](int part) {
    const int64_t end = num_pages * (part + 1) / num_threads;
    for (int64_t page = num_pages * part / num_threads; page < end; ++page) {
      *reinterpret_cast<volatile char*>(data_ + page * kPageBytes) = 0;
    }
  };
  std::vector<std::thread> threads;
  for (int part = 0; part < num_threads; ++part) {
    try {
      threads.emplace_back(touch, part);
    } catch (const std::system_error&) {
      touch(part);  // no more threads can be had
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace wavekv
