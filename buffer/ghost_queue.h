// What a policy remembers of blocks that have left.
#ifndef WAVEKV_BUFFER_GHOST_QUEUE_H_
#define WAVEKV_BUFFER_GHOST_QUEUE_H_

#include <cstdint>
#include <vector>

namespace wavekv {

// The fingerprint of a block's key, never 0. Two keys have the same one once in four billion; the
// price is a block that is taken for another that has been here before.
uint32_t KeyFingerprint(uint64_t key);

// The fingerprints that were added last, at most `capacity` of them, first in first out. All calls
// take constant time on average, and none allocates: 12 to 16 bytes a fingerprint, at creation.
// Not thread-safe.
class GhostQueue {
 public:
  // REQUIRES: 1 <= capacity <= 2^31.
  explicit GhostQueue(uint32_t capacity);

  // Forgets the one that was added `capacity` calls ago, unless it was taken out since.
  void Add(uint32_t fingerprint);
  // Takes it out; whether it was there. One that was added twice is taken out once.
  bool Take(uint32_t fingerprint);

 private:
  static constexpr uint32_t kEnd = 0xffffffff;

  struct Ghost {
    uint32_t fingerprint = 0;  // 0: taken out, or never added
    uint32_t next = kEnd;      // in the chain of its bucket
  };

  uint32_t& Bucket(uint32_t fingerprint) { return buckets_[fingerprint & bucket_mask_]; }
  // Takes ghost `at` out of its chain.
  void Unlink(uint32_t at);

  std::vector<Ghost> ghosts_;  // a ring
  uint32_t oldest_ = 0;        // of the ring: where the next one goes
  uint32_t bucket_mask_ = 0;
  std::vector<uint32_t> buckets_;  // first of each chain
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_GHOST_QUEUE_H_
