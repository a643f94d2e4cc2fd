#include "storage/prefault.h"

#include <system_error>
#include <thread>
#include <vector>

namespace wavekv {
namespace {

// Of the smallest pages; those of huge ones are touched often.
constexpr int64_t kPageBytes = 4096;

}  // namespace

void PrefaultPages(std::byte* base, int64_t bytes, int num_threads) {
  std::vector<std::thread> threads;
  const int64_t num_pages = (bytes + kPageBytes - 1) / kPageBytes;
  const auto touch = [=](int part) {
    const int64_t end = num_pages * (part + 1) / num_threads;
    for (int64_t page = num_pages * part / num_threads; page < end; ++page) {
      *reinterpret_cast<volatile char*>(base + page * kPageBytes) = 0;
    }
  };
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
