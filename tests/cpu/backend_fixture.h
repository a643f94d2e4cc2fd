// A CPU backend on two threads, for the tests of the single operations.
#ifndef WAVEKV_TESTS_CPU_BACKEND_FIXTURE_H_
#define WAVEKV_TESTS_CPU_BACKEND_FIXTURE_H_

#include <limits>
#include <memory>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/cpu/each_target.h"
#include "tests/testing/random.h"

namespace wavekv::testing {

class BackendFixture : public ::testing::Test {
 protected:
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Executor> pool_ = MakeThreadPool(2);
  std::unique_ptr<Backend> backend_ = MakeCpuBackend(pool_.get());
};

// What an operation has to overwrite.
inline std::vector<float> Poison(int64_t count) {
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
inline constexpr int kHeadDims[] = {8, 40, 64, 80, 96, 128, 256, 576};
inline constexpr int kQueryCounts[] = {1, 2, 4, 7, 8, 33, 200};

// Half a unit in the last place of 1: the relative error of one fp32 operation.
inline constexpr double kRounding = 0x1p-24;

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CPU_BACKEND_FIXTURE_H_
