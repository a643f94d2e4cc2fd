// The operations on SIMD CPUs, in the caller's memory.
#ifndef WAVEKV_CPU_CPU_BACKEND_H_
#define WAVEKV_CPU_CPU_BACKEND_H_

#include <memory>

#include "compute/backend.h"
#include "wavekv/executor.h"

namespace wavekv {

// `executor` outlives the backend. Every call is one ParallelFor, or runs in the caller when it is
// too small to share.
std::unique_ptr<Backend> MakeCpuBackend(Executor* executor);

}  // namespace wavekv

#endif  // WAVEKV_CPU_CPU_BACKEND_H_
