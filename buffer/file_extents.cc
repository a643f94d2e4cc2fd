#include "buffer/file_extents.h"

#include <algorithm>
#include <iterator>

#include "fmt/format.h"

namespace wavekv {

absl::StatusOr<int64_t> FileExtents::Allocate(int64_t bytes) {
  if (bytes <= 0) {
    return absl::InvalidArgumentError(
        fmt::format("bytes of an extent must be positive, got {}", bytes));
  }
  const int64_t rest_bytes = capacity_bytes_ - size_bytes_;
  // Compared before rounding up, which could overflow.
  const int64_t rounded_bytes = bytes > capacity_bytes_ ? bytes : RoundUp(bytes);
  if (const auto best = by_bytes_.lower_bound({rounded_bytes, 0}); best != by_bytes_.end()) {
    const auto [hole_bytes, offset] = *best;
    EraseHole(by_offset_.find(offset));
    if (hole_bytes > rounded_bytes) InsertHole(offset + rounded_bytes, hole_bytes - rounded_bytes);
    used_bytes_ += rounded_bytes;
    return offset;
  }
  if (rounded_bytes > rest_bytes) {
    return absl::ResourceExhaustedError(fmt::format(
        "backing file: requested {} bytes, the largest free extent has {} (capacity {}, used {})",
        bytes, std::max(rest_bytes, LargestHole()), capacity_bytes_, used_bytes_));
  }
  const int64_t offset = size_bytes_;
  size_bytes_ += rounded_bytes;
  used_bytes_ += rounded_bytes;
  return offset;
}

absl::Status FileExtents::CheckUsed(int64_t offset, int64_t bytes) const {
  const bool is_inside = offset >= 0 && offset % kAlignmentBytes == 0 && bytes > 0 &&
                         offset < size_bytes_ && bytes <= size_bytes_ - offset;
  if (is_inside) {
    // The last hole that begins before the extent's end must end before its begin.
    const auto next = by_offset_.lower_bound(offset + RoundUp(bytes));
    if (next == by_offset_.begin()) return absl::OkStatus();
    const auto [hole_offset, hole_bytes] = *std::prev(next);
    if (hole_offset + hole_bytes <= offset) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("extent of {} bytes at offset {} is not in use (the file has {} bytes)", bytes,
                  offset, size_bytes_));
}

absl::Status FileExtents::Free(int64_t offset, int64_t bytes) {
  if (absl::Status status = CheckUsed(offset, bytes); !status.ok()) return status;
  bytes = RoundUp(bytes);
  used_bytes_ -= bytes;
  if (const auto next = by_offset_.find(offset + bytes); next != by_offset_.end()) {
    bytes += next->second;
    EraseHole(next);
  }
  if (const auto next = by_offset_.lower_bound(offset); next != by_offset_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      bytes += previous->second;
      EraseHole(previous);
    }
  }
  if (offset + bytes == size_bytes_) {
    size_bytes_ = offset;
  } else {
    InsertHole(offset, bytes);
  }
  return absl::OkStatus();
}

FileSpace FileExtents::space() const {
  return {size_bytes_, used_bytes_, size_bytes_ - used_bytes_, LargestHole()};
}

void FileExtents::EraseHole(std::map<int64_t, int64_t>::iterator hole) {
  by_bytes_.erase({hole->second, hole->first});
  by_offset_.erase(hole);
}

void FileExtents::InsertHole(int64_t offset, int64_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_bytes_.emplace(bytes, offset);
}

}  // namespace wavekv
