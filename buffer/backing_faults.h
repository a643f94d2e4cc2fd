// Failures that tests plant under a backing file.
#ifndef WAVEKV_BUFFER_BACKING_FAULTS_H_
#define WAVEKV_BUFFER_BACKING_FAULTS_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>

namespace wavekv {

// For tests. Where the operating system is asked for something, the backing file asks here first
// whether that shall fail. Costs one load where nothing is planted.
//
// Threads: safe.
class BackingFaults {
 public:
  enum class Site : uint8_t {
    kAllocate,  // reserving the disk space of an extent
    kWrite,     // one write call
    kSubmit,    // handing reads to the kernel or to the reading threads
    kRun,       // one read of the device that ended, of one block or more
    kComplete,  // one block of it
  };
  static constexpr int kNumSites = 5;

  enum class Fault : uint8_t {
    kNone,
    kIoError,    // EIO
    kDiskFull,   // ENOSPC; kAllocate and kWrite
    kTransient,  // EAGAIN; kSubmit, kRun and kComplete
    kShort,      // fewer bytes than asked for; kWrite, kRun and kComplete
    kCorrupt,    // one byte that came is another; kComplete
    kDelay,      // comes `delay` later; kComplete
  };

  // After `after` more passes, `count` passes of `site` meet `fault`. Replaces what was planted
  // there.
  void Plant(Site site, Fault fault, int64_t after, int64_t count = 1,
             std::chrono::milliseconds delay = std::chrono::milliseconds(0));
  // As if nothing had ever been planted, and no pass been counted.
  void Clear();

  // Passes of a site since something was first planted.
  int64_t num_passes(Site site) const;
  // How many of them met a fault.
  int64_t num_met(Site site) const;

  // For the backing file: what this pass meets.
  Fault Next(Site site, std::chrono::milliseconds* delay = nullptr);

 private:
  struct Planted {
    Fault fault = Fault::kNone;
    int64_t after = 0;
    int64_t count = 0;
    std::chrono::milliseconds delay{0};
    int64_t num_passes = 0;
    int64_t num_met = 0;
  };

  std::atomic<bool> is_planted_{false};
  mutable std::mutex mutex_;
  std::array<Planted, kNumSites> sites_;  // guarded by mutex_
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BACKING_FAULTS_H_
