// Tests of engines on the processor, on an emulated GPU and, where there is one, on a GPU.
#ifndef WAVEKV_TESTS_API_ON_DEVICE_H_
#define WAVEKV_TESTS_API_ON_DEVICE_H_

#include <memory>
#include <string>
#include <utility>

#include "api/engine_test_peer.h"
#include "cuda/emulator/emulated_gpu.h"
#include "cuda/gpu.h"
#include "gtest/gtest.h"
#include "wavekv/types.h"

namespace wavekv::testing {

// kDelayedGpu: emulated, with streams that do everything late.
enum class TestDevice { kCpu, kEmulatedGpu, kDelayedGpu, kGpu };

// Engines that are opened with device() run where test_device() says. Without a GPU the tests on
// one are skipped, and say so.
class OnDevice : public ::testing::Test {
 protected:
  virtual TestDevice test_device() const = 0;
  // AddressSanitizer makes the emulator several times slower.
  virtual bool is_quick_on_emulator() const { return false; }

  void SetUp() override {
    if (on_cpu()) return;
    if (test_device() == TestDevice::kGpu) {
      auto gpu = OpenGpu(0);
      if (!gpu.ok()) GTEST_SKIP() << gpu.status();
      gpu_ = *std::move(gpu);
    } else {
#if defined(__SANITIZE_THREAD__)
      GTEST_SKIP() << "TSan knows no fibers";
#elif defined(__SANITIZE_ADDRESS__)
      if (!is_quick_on_emulator()) GTEST_SKIP() << "takes too long under ASan";
#endif
      gpu_ = MakeEmulatedGpu(test_device() == TestDevice::kDelayedGpu ? EmulatedOrder::kDelayed
                                                                      : EmulatedOrder::kAtOnce);
    }
    EngineTestPeer::UseGpu(gpu_);
  }
  void TearDown() override { EngineTestPeer::UseGpu(nullptr); }

  // Where the engines run; nullptr: on the processor.
  const std::shared_ptr<Gpu>& OfTest() const { return gpu_; }
  bool on_cpu() const { return test_device() == TestDevice::kCpu; }
  Device device() const { return on_cpu() ? Device::kCpu : Device::kCuda; }

 private:
  std::shared_ptr<Gpu> gpu_;
};

inline const char* NameOf(TestDevice device) {
  switch (device) {
    case TestDevice::kCpu:
      return "Cpu";
    case TestDevice::kEmulatedGpu:
      return "EmulatedCuda";
    case TestDevice::kDelayedGpu:
      return "DelayedCuda";
    case TestDevice::kGpu:
      return "Cuda";
  }
  return "";
}

inline std::string DeviceName(const ::testing::TestParamInfo<TestDevice>& info) {
  return NameOf(info.param);
}

inline auto TestDevices() {
  return ::testing::Values(TestDevice::kCpu, TestDevice::kEmulatedGpu, TestDevice::kGpu);
}
// For small tests.
inline auto AllTestDevices() {
  return ::testing::Values(TestDevice::kCpu, TestDevice::kEmulatedGpu, TestDevice::kDelayedGpu,
                           TestDevice::kGpu);
}

#define WAVEKV_ON_EACH_DEVICE(suite)                                         \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::wavekv::testing::TestDevices(), \
                           ::wavekv::testing::DeviceName)

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_ON_DEVICE_H_
