#ifndef WAVEKV_BUFFER_SLOT_MEMORY_H_
#define WAVEKV_BUFFER_SLOT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "storage/host_pages.h"

namespace wavekv {

struct SlotMemoryOptions {
  int64_t num_slots = 0;
  int64_t slot_bytes = 0;
  // Threads that touch every page at creation, so that no step meets a page fault; 0: pages are
  // touched as they are used.
  int prefault_threads = 0;
  // For tests, as HostPagesOptions.
  const char* limit_path = nullptr;
};

// Slots of one size on HostPages: the bytes of the fast tier.
//
// Threads: addresses never change; who writes a slot is the owner's business.
class SlotMemory {
 public:
  // INVALID_ARGUMENT for a size that is not positive; RESOURCE_EXHAUSTED for more than the
  // process's limit or than the system maps.
  static absl::StatusOr<std::unique_ptr<SlotMemory>> Create(const SlotMemoryOptions& options);
  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;

  std::byte* slot(uint32_t i) const { return pages_->data() + i * slot_bytes_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t bytes() const { return num_slots_ * slot_bytes_; }
  const HostPages& pages() const { return *pages_; }
  // What Create took, prefaulting included.
  double create_seconds() const { return create_seconds_; }

 private:
  SlotMemory(std::unique_ptr<HostPages> pages, int64_t num_slots, int64_t slot_bytes)
      : pages_(std::move(pages)), num_slots_(num_slots), slot_bytes_(slot_bytes) {}

  const std::unique_ptr<HostPages> pages_;
  const int64_t num_slots_;
  const int64_t slot_bytes_;
  double create_seconds_ = 0.0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_SLOT_MEMORY_H_
