// Tests of operations on GPUs, each on the emulator and on CUDA device 0 where there is one.
#ifndef WAVEKV_TESTS_CUDA_GPU_FIXTURE_H_
#define WAVEKV_TESTS_CUDA_GPU_FIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "cpu/cpu_backend.h"
#include "cuda/emulator/emulated_gpu.h"
#include "cuda/gpu.h"
#include "gtest/gtest.h"
#include "storage/cluster_index.h"
#include "wavekv/executor.h"

namespace wavekv::testing {

enum class GpuKind { kEmulated, kCuda };

inline std::string GpuName(const ::testing::TestParamInfo<GpuKind>& info) {
  return info.param == GpuKind::kEmulated ? "Emulated" : "Cuda";
}

class GpuFixture : public ::testing::TestWithParam<GpuKind> {
 protected:
  void SetUp() override {
    if (GetParam() == GpuKind::kEmulated) {
#if defined(__SANITIZE_THREAD__)
      GTEST_SKIP() << "TSan knows no fibers";
#endif
      gpu_ = MakeEmulatedGpu();
    } else {
      auto gpu = OpenGpu(0);
      if (!gpu.ok()) GTEST_SKIP() << gpu.status();
      gpu_ = *std::move(gpu);
    }
    auto stream = GpuOwnStream::Create(gpu_);
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
    auto event = GpuEvent::Create(gpu_);
    ASSERT_TRUE(event.ok()) << event.status();
    event_ = *std::move(event);
  }

  // What the answers are compared with.
  Backend& cpu() { return *cpu_; }
  bool emulated() const { return GetParam() == GpuKind::kEmulated; }
  Gpu& gpu() { return *gpu_; }
  const GpuOperations& operations() const { return gpu_->operations(); }
  GpuStream stream() const { return stream_.get(); }

  // Device memory that lives as long as the test, filled with 0xff: NaN, or -1.
  template <typename T>
  T* Poison(int64_t count) {
    auto memory = GpuMemory::Device(gpu_, count * static_cast<int64_t>(sizeof(T)) + 1);
    if (!memory.ok()) {
      ADD_FAILURE() << memory.status();
      return nullptr;
    }
    Expect(gpu_->Fill(memory->data(), 0xff, memory->bytes(), stream()));
    memory_.push_back(*std::move(memory));
    return reinterpret_cast<T*>(memory_.back().data());
  }

  template <typename T>
  T* Upload(absl::Span<const T> values) {
    T* const target = Poison<T>(static_cast<int64_t>(values.size()));
    Expect(gpu_->Copy(target, values.data(), static_cast<int64_t>(values.size() * sizeof(T)),
                      stream()));
    Synchronize();
    return target;
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    return Upload(absl::MakeConstSpan(values));
  }

  template <typename T>
  std::vector<T> Download(const T* from, int64_t count) {
    std::vector<T> values(count);
    Expect(gpu_->Copy(values.data(), from, count * static_cast<int64_t>(sizeof(T)), stream()));
    Synchronize();
    return values;
  }

  // A copy of the index, all of whose pointers are the device's.
  const ClusterIndex* UploadIndex(const ClusterIndex& index) {
    const int64_t bytes = ClusterIndexBytes(index.full_shape());
    const std::byte* extent = ExtentOf(index);
    std::byte* const target = Upload(absl::MakeConstSpan(extent, static_cast<size_t>(bytes)));
    const ClusterIndex moved =
        ReadOnly(LocateClusterIndex(target, index.full_shape(), index.position_begin));
    return Upload(absl::MakeConstSpan(&moved, 1));
  }

  void Expect(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }
  // Waits for all that was queued.
  void Synchronize() {
    Expect(gpu_->Record(event_.get(), stream()));
    Expect(gpu_->Await(event_.get()));
  }

 private:
  std::unique_ptr<Executor> thread_ = MakeThreadPool(1);
  std::unique_ptr<Backend> cpu_ = MakeCpuBackend(thread_.get());
  std::shared_ptr<Gpu> gpu_;
  GpuOwnStream stream_;
  GpuEvent event_;
  std::vector<GpuMemory> memory_;
};

#define WAVEKV_ON_EACH_GPU(suite)                                                              \
  INSTANTIATE_TEST_SUITE_P(Gpus, suite, ::testing::Values(GpuKind::kEmulated, GpuKind::kCuda), \
                           GpuName)

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CUDA_GPU_FIXTURE_H_
