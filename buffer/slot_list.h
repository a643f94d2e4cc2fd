// Lists of slots for replacement policies. The links lie in one array, an entry a slot, so lists
// allocate nothing and a slot moves from one to another in constant time.
#ifndef WAVEKV_BUFFER_SLOT_LIST_H_
#define WAVEKV_BUFFER_SLOT_LIST_H_

#include <cassert>
#include <cstdint>
#include <optional>
#include <vector>

#include "buffer/replacement_policy.h"

namespace wavekv {

inline constexpr uint32_t kNoSlot = 0xffffffff;        // the end of a list
inline constexpr uint32_t kUnlinkedSlot = 0xfffffffe;  // in no list

struct SlotLink {
  uint32_t newer = kUnlinkedSlot;
  uint32_t older = kUnlinkedSlot;

  bool is_linked() const { return newer != kUnlinkedSlot; }
};

// One of the lists over an array of links; a slot is in at most one of them.
class SlotList {
 public:
  // The links outlive the list and do not move.
  explicit SlotList(SlotLink* links) : links_(links) {}
  SlotList(const SlotList&) = delete;
  SlotList& operator=(const SlotList&) = delete;

  uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  uint32_t oldest() const { return oldest_; }  // kNoSlot when empty

  void PushNewest(uint32_t slot) {
    assert(!links_[slot].is_linked());
    links_[slot] = {kNoSlot, newest_};
    (newest_ == kNoSlot ? oldest_ : links_[newest_].newer) = slot;
    newest_ = slot;
    ++size_;
  }

  // REQUIRES: the slot is in this list.
  void Erase(uint32_t slot) {
    const SlotLink link = links_[slot];
    assert(link.is_linked() && size_ > 0);
    (link.newer == kNoSlot ? newest_ : links_[link.newer].older) = link.older;
    (link.older == kNoSlot ? oldest_ : links_[link.older].newer) = link.newer;
    links_[slot] = {};
    --size_;
  }

  void MoveToNewest(uint32_t slot) {
    if (slot == newest_) return;
    Erase(slot);
    PushNewest(slot);
  }

  // Erases and returns the oldest slot that may be taken; those passed over become the newest.
  std::optional<uint32_t> TakeOldest(CanEvict can_evict) {
    for (uint32_t passed = 0; passed < size_; ++passed) {
      const uint32_t slot = oldest_;
      if (can_evict(slot)) {
        Erase(slot);
        return slot;
      }
      MoveToNewest(slot);
    }
    return std::nullopt;
  }

 private:
  SlotLink* const links_;
  uint32_t newest_ = kNoSlot;
  uint32_t oldest_ = kNoSlot;
  uint32_t size_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_SLOT_LIST_H_
