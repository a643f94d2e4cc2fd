// What benchmarks of GPU operations share: a device, data to read, times by events, and the speed
// of a plain copy to compare with.
#ifndef WAVEKV_BENCH_CUDA_DEVICE_BENCH_H_
#define WAVEKV_BENCH_CUDA_DEVICE_BENCH_H_

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cuda/gpu.h"

namespace wavekv::bench {

struct DeviceBenchOptions {
  int64_t copy_bytes = int64_t{1} << 30;
  // What the launches of one timed pass read together, at least: a few times the largest cache.
  int64_t cold_bytes = int64_t{256} << 20;
  // How long a benchmark is timed.
  double seconds = 0.3;
};

// The memory of one benchmark's inputs and outputs.
class DeviceArena {
 public:
  DeviceArena(std::shared_ptr<Gpu> gpu, GpuStream stream) : gpu_(std::move(gpu)), stream_(stream) {}

  // Uninitialised.
  template <typename T>
  absl::StatusOr<T*> Allocate(int64_t count) {
    auto bytes = AllocateBytes(count * static_cast<int64_t>(sizeof(T)));
    if (!bytes.ok()) return bytes.status();
    return reinterpret_cast<T*>(*bytes);
  }
  template <typename T>
  absl::StatusOr<T*> Upload(const std::vector<T>& values) {
    auto bytes = UploadBytes(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
    if (!bytes.ok()) return bytes.status();
    return reinterpret_cast<T*>(*bytes);
  }

 private:
  absl::StatusOr<std::byte*> AllocateBytes(int64_t bytes);
  absl::StatusOr<std::byte*> UploadBytes(const void* source, int64_t bytes);

  std::shared_ptr<Gpu> gpu_;
  GpuStream stream_;
  std::vector<GpuMemory> memory_;
};

// Not thread-safe.
class DeviceBench {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceBench>> Create(std::shared_ptr<Gpu> gpu,
                                                             const DeviceBenchOptions& options);

  Gpu& gpu() { return *gpu_; }
  const GpuOperations& operations() const { return gpu_->operations(); }
  GpuStream stream() const { return stream_.get(); }
  DeviceArena MakeArena() { return DeviceArena(gpu_, stream()); }

  // How many copies of its data a benchmark shall go round, so that no launch finds any of it in a
  // cache: like the layers of a model. Launches read bytes_read of the bytes_held of one copy.
  int NumLayers(int64_t bytes_read, int64_t bytes_held) const;

  // At least so many bytes of random bf16 numbers, Gaussians of deviation 1, that repeat every few
  // megabytes. The next call may move them.
  absl::StatusOr<const std::byte*> RandomData(int64_t bytes);
  // The memory that is left to RandomData.
  int64_t data_bytes_max() const;

  template <typename T>
  absl::StatusOr<std::vector<T>> Download(const T* from, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    absl::Status status =
        gpu_->Copy(values.data(), from, count * static_cast<int64_t>(sizeof(T)), stream());
    if (status.ok()) status = Synchronize();
    if (!status.ok()) return status;
    return values;
  }
  absl::Status Synchronize();

  // What the device needs for the work that `queue` queues on stream().
  absl::StatusOr<double> SecondsOf(const std::function<absl::Status()>& queue);

  // Of a copy from device memory to device memory, read and written.
  double copy_bytes_per_second() const { return copy_bytes_per_second_; }

  // Registers a benchmark. `prepare` makes its inputs and checks one result; it returns what queues
  // launch `layer`; CANCELLED: it is left out. An iteration is one launch, timed as the median of
  // many. Counted: its bytes, their rate, and its share of the copy's.
  using Launch = std::function<absl::Status(int layer)>;
  struct Prepared {
    std::shared_ptr<void> owner;  // of what `launch` needs
    Launch launch;
    // Queued in front of each round, and not timed; may be left out.
    std::function<absl::Status()> before;
    int num_layers = 1;
    int64_t bytes = 0;
    std::map<std::string, double> counters;
  };
  void Register(const std::string& name,
                std::function<absl::StatusOr<Prepared>(DeviceArena& arena)> prepare);

  // The share of the copy's bytes per second that the last benchmark reached whose name begins so;
  // -1: none ran.
  double LastShare(absl::string_view prefix) const;

 private:
  DeviceBench(std::shared_ptr<Gpu> gpu, const DeviceBenchOptions& options)
      : gpu_(std::move(gpu)), options_(options) {}

  absl::Status MeasureCopy();
  absl::Status Run(benchmark::State& state, const Prepared& prepared, const std::string& name);

  const std::shared_ptr<Gpu> gpu_;
  const DeviceBenchOptions options_;
  GpuOwnStream stream_;
  GpuEvent start_, end_;
  GpuMemory data_;
  double copy_bytes_per_second_ = 0.0;
  std::vector<std::pair<std::string, double>> shares_;  // in the order of the runs
};

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_CUDA_DEVICE_BENCH_H_
