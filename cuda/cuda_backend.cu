#include <cuda_runtime.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend.h"

namespace wavekv {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device) {
  int num_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("CUDA backend: cudaGetDeviceCount: ", cudaGetErrorName(error), ": ",
                     cudaGetErrorString(error)));
  }
  if (num_devices == 0) {
    return absl::UnavailableError("CUDA backend: the driver reports no device");
  }
  if (device < 0 || device >= num_devices) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA backend: device: expected 0 to ", num_devices - 1, ", got ", device));
  }
  return absl::UnimplementedError("CUDA backend: not implemented yet");
}

}  // namespace wavekv
