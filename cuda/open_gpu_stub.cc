#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/gpu.h"

namespace wavekv {

absl::StatusOr<std::shared_ptr<Gpu>> OpenGpu(int /*ordinal*/) {
  return absl::UnimplementedError("CUDA: wavekv was built without a CUDA toolkit");
}

}  // namespace wavekv
