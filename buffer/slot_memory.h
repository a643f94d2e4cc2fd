#ifndef WAVEKV_BUFFER_SLOT_MEMORY_H_
#define WAVEKV_BUFFER_SLOT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace wavekv {

struct SlotMemoryOptions {
  int64_t num_slots = 0;
  int64_t slot_bytes = 0;
  // Threads that touch every page at creation, so that no step meets a page fault; 0: pages are
  // touched as they are used.
  int prefault_threads = 0;
  // For tests: the file that says how much memory this process may have ("max": no limit). nullptr:
  // that of its control group, version 1 or 2.
  const char* limit_path = nullptr;
};

// Slots of one size, mapped at once: the bytes of the fast tier. In huge pages where the system has
// them; where this process may use several NUMA nodes, the pages take turns on them, as any core
// may be the one that reads a slot. The system may refuse either, which changes nothing but speed.
//
// Threads: addresses never change; who writes a slot is the owner's business.
class SlotMemory {
 public:
  // INVALID_ARGUMENT for a size that is not positive; RESOURCE_EXHAUSTED for more than the
  // process's limit or than the system maps.
  static absl::StatusOr<std::unique_ptr<SlotMemory>> Create(const SlotMemoryOptions& options);
  ~SlotMemory();

  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;

  std::byte* slot(uint32_t i) const { return base_ + i * slot_bytes_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t bytes() const { return num_slots_ * slot_bytes_; }
  // Whether the system took the wish for huge pages. It gives as many as it has.
  bool huge_pages_advised() const { return huge_pages_advised_; }
  // NUMA nodes on which the pages take turns; 1: they lie where they are touched first.
  int num_nodes() const { return num_nodes_; }
  // What Create took, prefaulting included.
  double create_seconds() const { return create_seconds_; }

 private:
  SlotMemory(std::byte* base, int64_t num_slots, int64_t slot_bytes)
      : base_(base), num_slots_(num_slots), slot_bytes_(slot_bytes) {}

  void Interleave();

  std::byte* const base_;
  const int64_t num_slots_;
  const int64_t slot_bytes_;
  bool huge_pages_advised_ = false;
  int num_nodes_ = 1;
  double create_seconds_ = 0.0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_SLOT_MEMORY_H_
