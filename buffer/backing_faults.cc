#include "buffer/backing_faults.h"

namespace wavekv {

void BackingFaults::Plant(Site site, Fault fault, int64_t after, int64_t count,
                          std::chrono::milliseconds delay) {
  std::lock_guard<std::mutex> lock(mutex_);
  Planted& planted = sites_[static_cast<size_t>(site)];
  planted.fault = fault;
  planted.after = after;
  planted.count = count;
  planted.delay = delay;
  is_planted_.store(true, std::memory_order_relaxed);
}

void BackingFaults::Clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  sites_ = {};
  is_planted_.store(false, std::memory_order_relaxed);
}

int64_t BackingFaults::num_passes(Site site) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return sites_[static_cast<size_t>(site)].num_passes;
}

int64_t BackingFaults::num_met(Site site) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return sites_[static_cast<size_t>(site)].num_met;
}

BackingFaults::Fault BackingFaults::Next(Site site, std::chrono::milliseconds* delay) {
  if (!is_planted_.load(std::memory_order_relaxed)) return Fault::kNone;
  std::lock_guard<std::mutex> lock(mutex_);
  Planted& planted = sites_[static_cast<size_t>(site)];
  ++planted.num_passes;
  if (planted.count <= 0 || planted.after-- > 0) return Fault::kNone;
  --planted.count;
  ++planted.num_met;
  if (delay != nullptr) *delay = planted.delay;
  return planted.fault;
}

}  // namespace wavekv
