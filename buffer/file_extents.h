// Which bytes of the backing file are in use.
#ifndef WAVEKV_BUFFER_FILE_EXTENTS_H_
#define WAVEKV_BUFFER_FILE_EXTENTS_H_

#include <cstdint>
#include <map>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wavekv {

// What a space allocator has given out. Units: bytes.
struct FileSpace {
  int64_t size_bytes = 0;          // end of the last extent in use
  int64_t used_bytes = 0;          // in extents
  int64_t free_bytes = 0;          // in holes between them
  int64_t largest_free_bytes = 0;  // the largest hole
};

// Hands out extents of a range [0, capacity) that begins empty. An extent takes the smallest hole
// that fits, or else is appended; freed extents join with the holes beside them, and one at the end
// makes the range shorter. It knows numbers only: BackingFile makes them true on the disk.
//
// Units: bytes; requests are rounded up to kAlignmentBytes, and so is every offset.
// Invariants: used_bytes + free_bytes == size_bytes <= capacity; no hole touches another or the
// end. Threads: none; the caller locks.
class FileExtents {
 public:
  // A page: what an extent occupies on disk, and what any device reads directly.
  static constexpr int64_t kAlignmentBytes = 4096;

  // REQUIRES: capacity_bytes >= 0.
  explicit FileExtents(int64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  // Offset of an extent of `bytes`. RESOURCE_EXHAUSTED, naming requested and available bytes, when
  // no hole and not the rest of the capacity is that large; INVALID_ARGUMENT unless bytes > 0.
  absl::StatusOr<int64_t> Allocate(int64_t bytes);

  // OK when all of the extent is in use; INVALID_ARGUMENT otherwise.
  absl::Status CheckUsed(int64_t offset, int64_t bytes) const;

  // Takes back what Allocate(bytes) returned as `offset`. INVALID_ARGUMENT, and no change, when
  // some of it is not in use: freed twice, or never allocated.
  absl::Status Free(int64_t offset, int64_t bytes);

  FileSpace space() const;
  int64_t size_bytes() const { return size_bytes_; }
  int64_t capacity_bytes() const { return capacity_bytes_; }

  // REQUIRES: bytes <= 2^62.
  static int64_t RoundUp(int64_t bytes) {
    return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
  }

 private:
  int64_t LargestHole() const { return by_bytes_.empty() ? 0 : by_bytes_.rbegin()->first; }
  void EraseHole(std::map<int64_t, int64_t>::iterator hole);
  void InsertHole(int64_t offset, int64_t bytes);

  const int64_t capacity_bytes_;
  // The same holes twice: by offset to join them, by length to find the best fit.
  std::map<int64_t, int64_t> by_offset_;
  std::set<std::pair<int64_t, int64_t>> by_bytes_;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_FILE_EXTENTS_H_
