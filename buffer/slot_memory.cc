#include "buffer/slot_memory.h"

#include <chrono>
#include <limits>
#include <string>
#include <utility>

#include "fmt/format.h"

namespace wavekv {

absl::StatusOr<std::unique_ptr<SlotMemory>> SlotMemory::Create(const SlotMemoryOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.num_slots < 1 || options.slot_bytes < 1) {
    return absl::InvalidArgumentError(
        fmt::format("slots must be at least one of at least one byte, got {} of {} bytes",
                    options.num_slots, options.slot_bytes));
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(options.num_slots, options.slot_bytes, &bytes)) {
    bytes = std::numeric_limits<int64_t>::max();
  }
  absl::StatusOr<std::unique_ptr<HostPages>> pages =
      HostPages::Map({.bytes = bytes,
                      .prefault_threads = options.prefault_threads,
                      .within_limit = true,
                      .limit_path = options.limit_path});
  if (!pages.ok()) {
    return absl::Status(pages.status().code(),
                        fmt::format("{} slots of {} bytes: {}", options.num_slots,
                                    options.slot_bytes, std::string(pages.status().message())));
  }
  auto memory = std::unique_ptr<SlotMemory>(
      new SlotMemory(*std::move(pages), options.num_slots, options.slot_bytes));
  memory->create_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return memory;
}

}  // namespace wavekv
