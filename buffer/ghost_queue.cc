#include "buffer/ghost_queue.h"

#include <algorithm>
#include <bit>

namespace wavekv {

uint32_t KeyFingerprint(uint64_t key) {
  // The finaliser of splitmix64: neighbouring keys go to unrelated buckets.
  key += 0x9e3779b97f4a7c15;
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9;
  key = (key ^ (key >> 27)) * 0x94d049bb133111eb;
  return std::max(static_cast<uint32_t>(key >> 32), uint32_t{1});
}

GhostQueue::GhostQueue(uint32_t capacity)
    : ghosts_(capacity),
      bucket_mask_(std::bit_ceil(capacity) - 1),
      buckets_(size_t{bucket_mask_} + 1, kEnd) {}

void GhostQueue::Unlink(uint32_t at) {
  uint32_t* link = &Bucket(ghosts_[at].fingerprint);
  while (*link != at) link = &ghosts_[*link].next;
  *link = ghosts_[at].next;
  ghosts_[at] = {};
}

void GhostQueue::Add(uint32_t fingerprint) {
  Ghost& ghost = ghosts_[oldest_];
  if (ghost.fingerprint != 0) Unlink(oldest_);
  uint32_t& first = Bucket(fingerprint);
  ghost = {fingerprint, first};
  first = oldest_;
  oldest_ = oldest_ + 1 == ghosts_.size() ? 0 : oldest_ + 1;
}

bool GhostQueue::Take(uint32_t fingerprint) {
  for (uint32_t at = Bucket(fingerprint); at != kEnd; at = ghosts_[at].next) {
    if (ghosts_[at].fingerprint != fingerprint) continue;
    Unlink(at);
    return true;
  }
  return false;
}

}  // namespace wavekv
