// The CUDA runtime behind gpu.h, and the only place where its errors become Status.
#include <cuda_runtime.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cuda/gpu.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

absl::Status ToStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // not for others of this thread who look for theirs
  const std::string message =
      absl::StrCat("CUDA: ", call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

// Makes a device the calling thread's: engines of several devices, and the caller's own, share
// threads. Nothing here is part of a capture unless it is queued on a captured stream; without the
// relaxed mode, allocations, queries and waits of any thread would end the captures of all.
GpuThreadState EnterDevice(int device) {
  GpuThreadState before = {device, cudaStreamCaptureModeRelaxed};
  if (cudaGetDevice(&before.device) != cudaSuccess) before.device = device;
  if (before.device != device) cudaSetDevice(device);
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess) before.capture_mode = mode;
  return before;
}

void LeaveDevice(int device, const GpuThreadState& before) {
  auto mode = static_cast<cudaStreamCaptureMode>(before.capture_mode);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (before.device != device) cudaSetDevice(before.device);
}

class DeviceScope {
 public:
  explicit DeviceScope(int device) : device_(device), before_(EnterDevice(device)) {}
  ~DeviceScope() { LeaveDevice(device_, before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  const int device_;
  const GpuThreadState before_;
};

class CudaGpu final : public Gpu {
 public:
  CudaGpu(int device, const GpuInfo& info) : device_(device), info_(info) {}

  const GpuInfo& info() const override { return info_; }
  const GpuOperations& operations() const override { return gpu::Operations(); }

  GpuThreadState Enter() override { return EnterDevice(device_); }
  void Leave(const GpuThreadState& before) override { LeaveDevice(device_, before); }

  absl::StatusOr<std::byte*> AllocateDevice(int64_t bytes) override {
    const DeviceScope scope(device_);
    void* memory = nullptr;
    WAVEKV_RETURN_IF_ERROR(ToStatus(cudaMalloc(&memory, static_cast<size_t>(bytes)), "cudaMalloc"));
    return static_cast<std::byte*>(memory);
  }
  void FreeDevice(std::byte* memory) override {
    const DeviceScope scope(device_);
    cudaFree(memory);
  }
  absl::StatusOr<std::byte*> AllocatePinned(int64_t bytes) override {
    const DeviceScope scope(device_);
    void* memory = nullptr;
    WAVEKV_RETURN_IF_ERROR(
        ToStatus(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable),
                 "cudaHostAlloc"));
    return static_cast<std::byte*>(memory);
  }
  void FreePinned(std::byte* memory) override {
    const DeviceScope scope(device_);
    cudaFreeHost(memory);
  }

  absl::StatusOr<GpuStream> CreateStream() override {
    const DeviceScope scope(device_);
    cudaStream_t stream = nullptr;
    WAVEKV_RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                    "cudaStreamCreateWithFlags"));
    return static_cast<GpuStream>(stream);
  }
  void DestroyStream(GpuStream stream) override {
    const DeviceScope scope(device_);
    cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  }
  absl::StatusOr<void*> CreateEvent() override {
    return CreateEvent(cudaEventDisableTiming | cudaEventBlockingSync);
  }
  absl::StatusOr<void*> CreateTimingEvent() override { return CreateEvent(cudaEventBlockingSync); }
  void DestroyEvent(void* event) override {
    const DeviceScope scope(device_);
    cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }

  absl::Status Copy(void* target, const void* source, int64_t bytes, GpuStream stream) override {
    if (bytes == 0) return absl::OkStatus();
    const DeviceScope scope(device_);
    return ToStatus(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), cudaMemcpyDefault,
                                    static_cast<cudaStream_t>(stream)),
                    "cudaMemcpyAsync");
  }
  absl::Status Fill(void* target, int value, int64_t bytes, GpuStream stream) override {
    if (bytes == 0) return absl::OkStatus();
    const DeviceScope scope(device_);
    return ToStatus(cudaMemsetAsync(target, value, static_cast<size_t>(bytes),
                                    static_cast<cudaStream_t>(stream)),
                    "cudaMemsetAsync");
  }
  absl::Status Record(void* event, GpuStream stream) override {
    const DeviceScope scope(device_);
    return ToStatus(
        cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
        "cudaEventRecord");
  }
  absl::Status WaitFor(void* event, GpuStream stream) override {
    const DeviceScope scope(device_);
    return ToStatus(
        cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0),
        "cudaStreamWaitEvent");
  }

  absl::StatusOr<bool> IsDone(void* event) override {
    const DeviceScope scope(device_);
    const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (error == cudaErrorNotReady) {
      cudaGetLastError();  // where it would stay, for whoever asks next
      return false;
    }
    WAVEKV_RETURN_IF_ERROR(ToStatus(error, "cudaEventQuery"));
    return true;
  }
  absl::Status Await(void* event) override {
    const DeviceScope scope(device_);
    return ToStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "cudaEventSynchronize");
  }
  absl::StatusOr<double> ElapsedSeconds(void* start, void* end) override {
    const DeviceScope scope(device_);
    float milliseconds = 0.0f;
    WAVEKV_RETURN_IF_ERROR(
        ToStatus(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start),
                                      static_cast<cudaEvent_t>(end)),
                 "cudaEventElapsedTime"));
    return milliseconds * 1e-3;
  }
  absl::StatusOr<bool> IsCapturing(GpuStream stream) override {
    const DeviceScope scope(device_);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    WAVEKV_RETURN_IF_ERROR(
        ToStatus(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status),
                 "cudaStreamIsCapturing"));
    return status != cudaStreamCaptureStatusNone;
  }

  absl::Status BeginCapture(GpuStream stream) override {
    const DeviceScope scope(device_);
    return ToStatus(
        cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  }
  absl::StatusOr<void*> EndCapture(GpuStream stream) override {
    const DeviceScope scope(device_);
    cudaGraph_t graph = nullptr;
    WAVEKV_RETURN_IF_ERROR(ToStatus(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph),
                                    "cudaStreamEndCapture"));
    cudaGraphExec_t launchable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&launchable, graph, 0);
    cudaGraphDestroy(graph);
    WAVEKV_RETURN_IF_ERROR(ToStatus(error, "cudaGraphInstantiate"));
    return static_cast<void*>(launchable);
  }
  absl::Status LaunchGraph(void* graph, GpuStream stream) override {
    const DeviceScope scope(device_);
    return ToStatus(
        cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)),
        "cudaGraphLaunch");
  }
  void DestroyGraph(void* graph) override {
    const DeviceScope scope(device_);
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
  }

 private:
  absl::StatusOr<void*> CreateEvent(unsigned flags) {
    const DeviceScope scope(device_);
    cudaEvent_t event = nullptr;
    WAVEKV_RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&event, flags), "cudaEventCreateWithFlags"));
    return static_cast<void*>(event);
  }

  const int device_;
  const GpuInfo info_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Gpu>> OpenGpu(int ordinal) {
  int num_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return absl::UnavailableError(absl::StrCat(
        "CUDA: cudaGetDeviceCount: ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
  }
  if (num_devices == 0) return absl::UnavailableError("CUDA: the driver reports no device");
  if (ordinal < 0 || ordinal >= num_devices) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA device: expected 0 to ", num_devices - 1, ", got ", ordinal));
  }
  cudaDeviceProp properties;
  WAVEKV_RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  GpuInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  if (info.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA device ", ordinal, " (", info.name,
                                                      ") has compute capability ", info.major, ".",
                                                      info.minor, "; wavekv needs 8.0"));
  }
  return std::make_shared<CudaGpu>(ordinal, info);
}

}  // namespace wavekv
