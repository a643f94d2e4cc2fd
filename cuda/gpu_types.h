// Words that GPU code and the host share.
#ifndef WAVEKV_CUDA_GPU_TYPES_H_
#define WAVEKV_CUDA_GPU_TYPES_H_

#include <cstddef>
#include <cstdint>

#include "storage/kv_range.h"
#include "wavekv/types.h"

namespace wavekv {

// A cudaStream_t; with the emulator, an emulator::Stream*.
using GpuStream = void*;

struct GridShape {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

// Tasks of one launch, in device memory, as are all pointers in them. A task whose num_queries is 0
// is skipped: those who queue a launch need not know how many there will be.
template <typename Task>
struct GpuTasks {
  const Task* tasks = nullptr;
  int64_t count = 0;
};

// One token's row of keys and of values.
struct TokenRow {
  const std::byte* key = nullptr;
  const std::byte* value = nullptr;
};

// What holds for all tasks of a launch: grids and shared memory are sized by it.
struct TaskBounds {
  KvShape shape;
  StatisticsFormat statistics = StatisticsFormat::kInt4;
  int code_bits = 1;
  int num_queries = 0;    // of a task, at most
  int64_t num_items = 0;  // of a task, at most: what the operation says
};

}  // namespace wavekv

// Declares a function that queues an operation on a stream: in namespace gpu, for GPUs, and in
// namespace emulated_gpu.
#define WAVEKV_GPU_OPERATION(...)  \
  namespace wavekv::gpu {          \
  __VA_ARGS__;                     \
  }                                \
  namespace wavekv::emulated_gpu { \
  __VA_ARGS__;                     \
  }

#endif  // WAVEKV_CUDA_GPU_TYPES_H_
