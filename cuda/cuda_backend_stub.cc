#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/cuda_backend.h"

namespace wavekv {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int /*device*/) {
  return absl::UnimplementedError("CUDA backend: built without a CUDA toolkit");
}

}  // namespace wavekv
