#include "cuda/cuda_backend.h"

#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

// Passes with and without a toolkit, a driver and a GPU: which refusal comes depends on them.
TEST(CudaBackend, SaysWhyThereIsNone) {
  const absl::Status status = MakeCudaBackend(0).status();
  EXPECT_TRUE(absl::IsUnimplemented(status) || absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("CUDA backend: "));
}

TEST(CudaBackend, RefusesADeviceThatNoMachineHas) {
  for (const int device : {-1, 1 << 30}) {
    const absl::Status status = MakeCudaBackend(device).status();
    EXPECT_TRUE(absl::IsUnimplemented(status) || absl::IsUnavailable(status) ||
                absl::IsInvalidArgument(status))
        << status;
  }
}

}  // namespace
}  // namespace wavekv
