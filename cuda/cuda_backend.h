// The door to NVIDIA GPUs.
#ifndef WAVEKV_CUDA_CUDA_BACKEND_H_
#define WAVEKV_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compute/backend.h"

namespace wavekv {

// Returns the operations of compute/ on CUDA device `device`, numbered as the CUDA runtime does.
//
// Errors: UNIMPLEMENTED when wavekv was built without a CUDA toolkit, and for now on every device;
// UNAVAILABLE, with the CUDA runtime's own words, when there is no driver or no device;
// INVALID_ARGUMENT when `device` is none of those present. Threads: may be called concurrently.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device);

}  // namespace wavekv

#endif  // WAVEKV_CUDA_CUDA_BACKEND_H_
