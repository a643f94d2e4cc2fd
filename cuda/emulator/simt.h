// Runs kernels on the CPU, thread by thread, so that their logic is tested without a GPU.
//
// A launch runs its thread blocks one after the other; the threads of a block are fibers that give
// way only where CUDA threads must meet. Blocks, and threads between two meetings, run in an order
// that is drawn anew for every launch: a kernel that relies on an order CUDA does not give fails
// sooner or later. Asynchronous copies are done when they are waited for, no sooner. Mistakes that
// would hang or corrupt a GPU end the process with a message: barriers that not all threads reach,
// warp operations that lanes do not enter together, copies that nobody waits for.
//
// Not emulated: time, and memory that is ordered less strictly than on the CPU. Threads: any number
// of launches at once, each in the thread that calls.
#ifndef WAVEKV_CUDA_EMULATOR_SIMT_H_
#define WAVEKV_CUDA_EMULATOR_SIMT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "absl/functional/function_ref.h"

namespace wavekv::emulator {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

inline constexpr int kWarpSize = 32;
inline constexpr size_t kLaneBytes = 64;  // that a lane hands to its warp

// What CUDA calls threadIdx, blockIdx, blockDim and gridDim, of the fiber that asks.
const Dim3& ThreadIdx();
const Dim3& BlockIdx();
const Dim3& BlockDim();
const Dim3& GridDim();

// The block's dynamic shared memory: bytes of 0xff at first.
std::byte* SharedMemory();
size_t SharedBytes();

void SyncBlock();

// Gives `bytes` of each lane to all lanes of the warp: lane i's stand at i * kLaneBytes of what is
// returned, until the warp's next call but one. `operation`: which one it is, for the check that
// all lanes mean the same.
const std::byte* ExchangeInWarp(const char* operation, const void* value, size_t bytes);

// Asynchronous copies of the calling thread, in groups.
void CopyAsync(void* target, const void* source, size_t bytes);
void CommitCopies();
void WaitForCopies(int groups_that_may_be_under_way);

// Runs `thread` in each thread of the grid. REQUIRES: the block's x is a multiple of 32, y and z
// are 1.
void RunGrid(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes,
             absl::FunctionRef<void()> thread);

class Stream;

// Decides when what is queued on streams is done.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  virtual void Submit(Stream& stream, std::function<void()> work) = 0;
  // Of a kernel, in the thread that launches it.
  virtual void CheckLaunch(const char* kernel) = 0;
};

// A stream: does what it is given at once, or when its scheduler says so; while it is captured, it
// notes it down for graphs.
class Stream {
 public:
  explicit Stream(Scheduler* scheduler = nullptr) : scheduler_(scheduler) {}

  void Submit(std::function<void()> work);
  // Of a kernel.
  void Launch(const char* kernel, std::function<void()> work);
  void BeginCapture() { capturing_ = true; }
  // What was submitted meanwhile, to be run as often as wanted.
  std::function<void()> EndCapture();
  bool capturing() const { return capturing_; }

 private:
  Scheduler* const scheduler_;
  bool capturing_ = false;
  std::vector<std::function<void()>> noted_;
};

}  // namespace wavekv::emulator

#endif  // WAVEKV_CUDA_EMULATOR_SIMT_H_
