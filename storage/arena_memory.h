// Where the bytes of an arena are, and what is done to them wholesale: the host's memory, or a
// device's, which only the device reads and writes.
#ifndef WAVEKV_STORAGE_ARENA_MEMORY_H_
#define WAVEKV_STORAGE_ARENA_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/cluster_index.h"

namespace wavekv {

// All zeros at first. What a method does comes before whatever is done to the same bytes later, and
// after what was done to them before. Threads: safe for different bytes.
class ArenaMemory {
 public:
  virtual ~ArenaMemory() = default;

  virtual std::byte* data() const = 0;
  virtual int64_t bytes() const = 0;

  virtual void Zero(std::byte* at, int64_t num_bytes) = 0;
  virtual void Copy(std::byte* to, const std::byte* from, int64_t num_bytes) = 0;

  // Rows of a sealed kv head back into chunks of `chunk_tokens` rows: the keys of positions
  // [0, num_tokens) of the segment in order to chunks[position / chunk_tokens] + head_offset, the
  // values behind all keys of the chunk. `index` is in this memory, with its rows.
  virtual absl::Status Unseal(const ClusterIndex& index, int64_t num_tokens,
                              absl::Span<std::byte* const> chunks, int64_t chunk_tokens,
                              int64_t head_offset) = 0;

  // Gives what it can back to the system. True when the bytes are gone with it and must not be used
  // again. REQUIRES: nobody uses the bytes.
  virtual bool ReleasePages() { return false; }

  // For tests. Reads the bytes.
  virtual bool IsZero(const std::byte* at, int64_t num_bytes) const = 0;
};

// HostPages, touched by `prefault_threads` (0: whoever uses them first). RESOURCE_EXHAUSTED when
// the address space cannot be had, or less memory than is to be touched.
absl::StatusOr<std::unique_ptr<ArenaMemory>> MapHostMemory(int64_t bytes, int prefault_threads);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_ARENA_MEMORY_H_
