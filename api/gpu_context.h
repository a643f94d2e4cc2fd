// What the calls of an engine on a GPU share: the order of what they queue, memory for what they
// hand to kernels, and what must live until kernels have run.
#ifndef WAVEKV_API_GPU_CONTEXT_H_
#define WAVEKV_API_GPU_CONTEXT_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/gpu.h"
#include "cuda/step.h"
#include "storage/arena.h"

namespace wavekv {

// A piece of staging or workspace memory; goes back when it is destroyed.
class GpuPiece {
 public:
  GpuPiece(std::shared_ptr<Arena> arena, std::byte* data, int64_t bytes)
      : arena_(std::move(arena)), data_(data), bytes_(bytes) {}
  ~GpuPiece() { arena_->Free(data_, bytes_); }
  GpuPiece(const GpuPiece&) = delete;
  GpuPiece& operator=(const GpuPiece&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  const std::shared_ptr<Arena> arena_;
  std::byte* const data_;
  const int64_t bytes_;
};

// Order. All that changes the arena happens in one order, that of a stream of our own: a call that
// writes on the caller's stream lets ours wait for it (EndWrite), and every call lets the caller's
// stream wait for ours before it touches the arena (BeginUse). What is freed is zeroed on our
// stream, after whoever read it is done: readers keep it until then (Retire).
//
// Threads: safe.
class GpuContext {
 public:
  // Reserves all memory there will be. staging_bytes of pinned host memory, workspace_bytes of the
  // device's.
  static absl::StatusOr<std::shared_ptr<GpuContext>> Create(std::shared_ptr<Gpu> gpu,
                                                            int64_t staging_bytes,
                                                            int64_t workspace_bytes);

  Gpu& gpu() const { return *gpu_; }
  const std::shared_ptr<Gpu>& shared_gpu() const { return gpu_; }
  const GpuOperations& operations() const { return gpu_->operations(); }
  // Of calls that come without one.
  GpuStream own_stream() const { return work_stream_.get(); }
  GpuStream memory_stream() const { return memory_stream_.get(); }

  absl::Status BeginUse(GpuStream stream);
  absl::Status EndWrite(GpuStream stream);

  // RESOURCE_EXHAUSTED naming what is too small, once what has run is given back.
  absl::StatusOr<std::shared_ptr<GpuPiece>> AllocateStaging(int64_t bytes);
  absl::StatusOr<std::shared_ptr<GpuPiece>> AllocateWorkspace(int64_t bytes);

  // Keeps `kept` until all that is queued on the stream now has run.
  absl::Status Retire(GpuStream stream, std::shared_ptr<const void> kept);
  // The same, for an event that has been recorded.
  void Keep(GpuEvent event, std::shared_ptr<const void> kept) {
    Keep(std::move(event), nullptr, std::move(kept));
  }
  // Lets go of what has run. True when there was something.
  bool Collect();
  // Waits until what has been kept longest, if anything, is let go of. Others may be waiting for it
  // already.
  bool CollectOne();
  // All that is kept at the time of the call. True when there was something.
  bool CollectAll();

  // What kernels have found wrong, in host memory that they write.
  StepFlags* flags() const { return reinterpret_cast<StepFlags*>(flags_.data()); }
  // The first error of the device, which never goes away; also of what could not be reported.
  absl::Status failure() const;
  void NoteFailure(const absl::Status& status);

 private:
  struct Kept {
    GpuEvent event;
    GpuStream stream = nullptr;  // where it was recorded; nullptr: not known
    std::shared_ptr<const void> kept;
    uint64_t number = 0;  // in the order of keeping
  };

  explicit GpuContext(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}
  absl::StatusOr<std::shared_ptr<GpuPiece>> Allocate(const std::shared_ptr<Arena>& arena,
                                                     int64_t bytes, const char* name);
  absl::StatusOr<GpuEvent> TakeEvent();
  void Keep(GpuEvent event, GpuStream stream, std::shared_ptr<const void> kept);
  // Waits until nothing older than that is kept by anybody, and lets go of one of them at most.
  // False when there was nothing.
  bool CollectBefore(uint64_t number);
  // Lets go of what has run: of what they keep first, as others wait for that.
  void Release(std::list<Kept> done);

  const std::shared_ptr<Gpu> gpu_;
  GpuOwnStream memory_stream_;
  GpuOwnStream work_stream_;
  GpuMemory flags_;
  std::shared_ptr<Arena> staging_;
  std::shared_ptr<Arena> workspace_;

  std::mutex order_mutex_;
  GpuEvent order_event_;  // guarded by order_mutex_: recorded and waited for in one piece

  mutable std::mutex mutex_;
  std::condition_variable released_;
  // Guarded by mutex_.
  std::list<Kept> kept_;
  std::set<uint64_t> releasing_;  // numbers of what is awaited or let go of just now
  uint64_t next_number_ = 0;
  std::vector<GpuEvent> events_;  // to be used again
  absl::Status failure_;
};

// The memory of an arena on the device. The context outlives it.
absl::StatusOr<std::unique_ptr<ArenaMemory>> MakeGpuArenaMemory(std::shared_ptr<GpuContext> context,
                                                                int64_t bytes);

}  // namespace wavekv

#endif  // WAVEKV_API_GPU_CONTEXT_H_
