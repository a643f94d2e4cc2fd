// A GPU whose kernels run on the CPU (simt.h), for tests on machines without one.
#ifndef WAVEKV_CUDA_EMULATOR_EMULATED_GPU_H_
#define WAVEKV_CUDA_EMULATOR_EMULATED_GPU_H_

#include <memory>

#include "cuda/gpu.h"

namespace wavekv {

// When what is queued on a stream is done, unless the stream is captured (emulator::Stream).
enum class EmulatedOrder {
  kAtOnce,
  // As late as events allow, streams among each other in any order (emulator::DelayedStreams).
  // Operations must be queued by threads that have entered the device.
  kDelayed,
};

// Memory is handed out filled with 0xff. What CUDA refuses of events and captured streams is
// refused here.
std::shared_ptr<Gpu> MakeEmulatedGpu(EmulatedOrder order = EmulatedOrder::kAtOnce);

}  // namespace wavekv

#endif  // WAVEKV_CUDA_EMULATOR_EMULATED_GPU_H_
