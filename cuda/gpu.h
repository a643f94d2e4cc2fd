// A GPU as the rest of wavekv sees it: memory, streams and events, without CUDA's headers.
#ifndef WAVEKV_CUDA_GPU_H_
#define WAVEKV_CUDA_GPU_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/gpu_operations.h"
#include "cuda/gpu_types.h"

namespace wavekv {

struct GpuInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int num_multiprocessors = 0;
  int64_t memory_bytes = 0;
};

// What a thread had chosen before it entered a device.
struct GpuThreadState {
  int device = 0;
  int capture_mode = 0;
};

// Errors: what CUDA reports is INTERNAL with CUDA's own words, RESOURCE_EXHAUSTED for memory.
// Threads: all methods may be called at once. Whatever thread calls, the device is this one; but
// operations() are of the device that the thread has entered.
class Gpu {
 public:
  virtual ~Gpu() = default;

  virtual const GpuInfo& info() const = 0;
  // The kernels.
  virtual const GpuOperations& operations() const = 0;

  // Between Enter and Leave the device is the calling thread's, as launches of kernels need it, and
  // what the thread calls does not end captures of other threads. GpuScope calls both.
  virtual GpuThreadState Enter() = 0;
  virtual void Leave(const GpuThreadState& before) = 0;

  // At Open and Close only, as both wait for the device. Device memory is 256-byte aligned; pinned
  // memory is the host's, which the device reads and writes as well.
  virtual absl::StatusOr<std::byte*> AllocateDevice(int64_t bytes) = 0;
  virtual void FreeDevice(std::byte* memory) = 0;
  virtual absl::StatusOr<std::byte*> AllocatePinned(int64_t bytes) = 0;
  virtual void FreePinned(std::byte* memory) = 0;

  virtual absl::StatusOr<GpuStream> CreateStream() = 0;
  virtual void DestroyStream(GpuStream stream) = 0;
  virtual absl::StatusOr<void*> CreateEvent() = 0;
  // One that can be timed, which costs a little more.
  virtual absl::StatusOr<void*> CreateTimingEvent() = 0;
  virtual void DestroyEvent(void* event) = 0;

  // Queue work; they return before it is done.
  virtual absl::Status Copy(void* target, const void* source, int64_t bytes, GpuStream stream) = 0;
  virtual absl::Status Fill(void* target, int value, int64_t bytes, GpuStream stream) = 0;
  virtual absl::Status Record(void* event, GpuStream stream) = 0;
  virtual absl::Status WaitFor(void* event, GpuStream stream) = 0;

  // Whether all that was queued before the last Record is done; a sticky error is one.
  virtual absl::StatusOr<bool> IsDone(void* event) = 0;
  // Lets the calling thread sleep until then.
  virtual absl::Status Await(void* event) = 0;
  // Between two timing events that are done.
  virtual absl::StatusOr<double> ElapsedSeconds(void* start, void* end) = 0;
  virtual absl::StatusOr<bool> IsCapturing(GpuStream stream) = 0;

  // A graph of what is queued between the two, instead of doing it; launched as often as wanted.
  // Callers of wavekv do this with CUDA's own functions: these are for tests and benchmarks.
  virtual absl::Status BeginCapture(GpuStream stream) = 0;
  virtual absl::StatusOr<void*> EndCapture(GpuStream stream) = 0;
  virtual absl::Status LaunchGraph(void* graph, GpuStream stream) = 0;
  virtual void DestroyGraph(void* graph) = 0;
};

// CUDA device `ordinal`, numbered as the CUDA runtime does. UNIMPLEMENTED when wavekv was built
// without a CUDA toolkit; UNAVAILABLE, with the CUDA runtime's own words, when there is no driver
// or no device; INVALID_ARGUMENT when `ordinal` is none of those present; FAILED_PRECONDITION for
// a device older than compute capability 8.0.
absl::StatusOr<std::shared_ptr<Gpu>> OpenGpu(int ordinal);

// Operations are queued within one.
class GpuScope {
 public:
  explicit GpuScope(Gpu& gpu) : gpu_(gpu), before_(gpu.Enter()) {}
  ~GpuScope() { gpu_.Leave(before_); }
  GpuScope(const GpuScope&) = delete;
  GpuScope& operator=(const GpuScope&) = delete;

 private:
  Gpu& gpu_;
  const GpuThreadState before_;
};

// Move-only owners.
class GpuMemory {
 public:
  GpuMemory() = default;
  static absl::StatusOr<GpuMemory> Device(std::shared_ptr<Gpu> gpu, int64_t bytes);
  static absl::StatusOr<GpuMemory> Pinned(std::shared_ptr<Gpu> gpu, int64_t bytes);
  GpuMemory(GpuMemory&& other) noexcept { *this = std::move(other); }
  GpuMemory& operator=(GpuMemory&& other) noexcept;
  ~GpuMemory();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Gpu> gpu_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  bool pinned_ = false;
};

class GpuOwnStream {
 public:
  GpuOwnStream() = default;
  static absl::StatusOr<GpuOwnStream> Create(std::shared_ptr<Gpu> gpu);
  GpuOwnStream(GpuOwnStream&& other) noexcept { *this = std::move(other); }
  GpuOwnStream& operator=(GpuOwnStream&& other) noexcept;
  ~GpuOwnStream();

  GpuStream get() const { return stream_; }

 private:
  std::shared_ptr<Gpu> gpu_;
  GpuStream stream_ = nullptr;
};

class GpuEvent {
 public:
  GpuEvent() = default;
  static absl::StatusOr<GpuEvent> Create(std::shared_ptr<Gpu> gpu);
  static absl::StatusOr<GpuEvent> CreateTiming(std::shared_ptr<Gpu> gpu);
  GpuEvent(GpuEvent&& other) noexcept { *this = std::move(other); }
  GpuEvent& operator=(GpuEvent&& other) noexcept;
  ~GpuEvent();

  void* get() const { return event_; }

 private:
  std::shared_ptr<Gpu> gpu_;
  void* event_ = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_CUDA_GPU_H_
