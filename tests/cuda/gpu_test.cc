#include "cuda/gpu.h"

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

// Passes with and without a toolkit, a driver and a GPU: which refusal comes depends on them.
TEST(OpenGpu, RefusesADeviceThatNoMachineHas) {
  for (const int device : {-1, 1 << 30}) {
    const absl::Status status = OpenGpu(device).status();
    EXPECT_TRUE(absl::IsUnimplemented(status) || absl::IsUnavailable(status) ||
                absl::IsInvalidArgument(status))
        << status;
    EXPECT_THAT(std::string(status.message()), testing::StartsWith("CUDA"));
  }
}

TEST(OpenGpu, SaysWhyThereIsNone) {
  const auto gpu = OpenGpu(0);
  if (gpu.ok()) GTEST_SKIP() << "there is one: " << (*gpu)->info().name;
  EXPECT_TRUE(absl::IsUnimplemented(gpu.status()) || absl::IsUnavailable(gpu.status()))
      << gpu.status();
}

}  // namespace
}  // namespace wavekv
