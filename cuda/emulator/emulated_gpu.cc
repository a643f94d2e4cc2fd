#include "cuda/emulator/emulated_gpu.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "cuda/emulator/delayed_streams.h"
#include "cuda/emulator/simt.h"

namespace wavekv {
namespace {

emulator::Stream& Of(GpuStream stream) {
  // The library never uses the default stream.
  if (stream == nullptr) std::abort();
  return *static_cast<emulator::Stream*>(stream);
}

using Clock = std::chrono::steady_clock;

struct Event {
  Clock::time_point recorded_at;
  std::shared_ptr<emulator::Ticket> ticket;  // nullptr: done
  const emulator::Stream* captured_by = nullptr;
};

Event& EventOf(void* event) { return *static_cast<Event*>(event); }

absl::Status Refused(const char* what) {
  return absl::InternalError(std::string("emulated GPU: ") + what);
}

class EmulatedGpu final : public Gpu {
 public:
  explicit EmulatedGpu(EmulatedOrder order)
      : delayed_(order == EmulatedOrder::kDelayed ? std::make_unique<emulator::DelayedStreams>()
                                                  : nullptr) {}

  const GpuInfo& info() const override { return info_; }
  const GpuOperations& operations() const override { return emulated_gpu::Operations(); }

  GpuThreadState Enter() override { return {delayed_ == nullptr ? 0 : delayed_->Enter(), 0}; }
  void Leave(const GpuThreadState& before) override {
    if (delayed_ != nullptr) delayed_->Leave(before.device);
  }

  absl::StatusOr<std::byte*> AllocateDevice(int64_t bytes) override {
    constexpr int64_t kAlignment = 256;
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(
        kAlignment, static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment)));
    if (memory == nullptr) return absl::ResourceExhaustedError("emulated GPU: out of memory");
    std::memset(memory, 0xff, static_cast<size_t>(bytes));
    return memory;
  }
  // Waits for the device, as CUDA does.
  void FreeDevice(std::byte* memory) override {
    if (delayed_ != nullptr) delayed_->DrainAll();
    std::free(memory);
  }
  absl::StatusOr<std::byte*> AllocatePinned(int64_t bytes) override {
    return AllocateDevice(bytes);
  }
  void FreePinned(std::byte* memory) override { FreeDevice(memory); }

  absl::StatusOr<GpuStream> CreateStream() override {
    return static_cast<GpuStream>(new emulator::Stream(delayed_.get()));
  }
  void DestroyStream(GpuStream stream) override {
    if (delayed_ != nullptr) delayed_->Drain(Of(stream));
    delete &Of(stream);
  }
  absl::StatusOr<void*> CreateEvent() override { return static_cast<void*>(new Event); }
  absl::StatusOr<void*> CreateTimingEvent() override { return CreateEvent(); }
  void DestroyEvent(void* event) override { delete &EventOf(event); }

  absl::Status Copy(void* target, const void* source, int64_t bytes, GpuStream stream) override {
    if (bytes == 0) return absl::OkStatus();
    Of(stream).Submit([=] { std::memcpy(target, source, static_cast<size_t>(bytes)); });
    return absl::OkStatus();
  }
  absl::Status Fill(void* target, int value, int64_t bytes, GpuStream stream) override {
    if (bytes == 0) return absl::OkStatus();
    Of(stream).Submit([=] { std::memset(target, value, static_cast<size_t>(bytes)); });
    return absl::OkStatus();
  }
  absl::Status Record(void* event, GpuStream stream) override {
    Event& recorded = EventOf(event);
    recorded.recorded_at = Clock::now();
    recorded.captured_by = Of(stream).capturing() ? &Of(stream) : nullptr;
    const bool queues = delayed_ != nullptr && !Of(stream).capturing();
    recorded.ticket = queues ? delayed_->Record(Of(stream)) : nullptr;
    return absl::OkStatus();
  }
  absl::Status WaitFor(void* event, GpuStream stream) override {
    const Event& awaited = EventOf(event);
    if (Of(stream).capturing() && awaited.captured_by == nullptr) {
      return Refused("a captured stream waits for what is not captured");
    }
    if (!Of(stream).capturing() && awaited.captured_by != nullptr) {
      return Refused("a stream that is not captured waits for what is");
    }
    if (Of(stream).capturing() || delayed_ == nullptr) return absl::OkStatus();
    delayed_->WaitFor(awaited.ticket, Of(stream));
    return absl::OkStatus();
  }
  absl::StatusOr<bool> IsDone(void* event) override {
    if (EventOf(event).captured_by != nullptr) return Refused("a captured event is asked for");
    return delayed_ == nullptr || delayed_->IsDone(EventOf(event).ticket);
  }
  absl::Status Await(void* event) override {
    if (EventOf(event).captured_by != nullptr) return Refused("a captured event is awaited");
    if (delayed_ != nullptr) delayed_->Await(EventOf(event).ticket);
    return absl::OkStatus();
  }
  absl::StatusOr<double> ElapsedSeconds(void* start, void* end) override {
    return std::chrono::duration<double>(EventOf(end).recorded_at - EventOf(start).recorded_at)
        .count();
  }
  absl::StatusOr<bool> IsCapturing(GpuStream stream) override { return Of(stream).capturing(); }
  absl::Status BeginCapture(GpuStream stream) override {
    Of(stream).BeginCapture();
    return absl::OkStatus();
  }
  absl::StatusOr<void*> EndCapture(GpuStream stream) override {
    return static_cast<void*>(new std::function<void()>(Of(stream).EndCapture()));
  }
  absl::Status LaunchGraph(void* graph, GpuStream stream) override {
    Of(stream).Submit(*static_cast<std::function<void()>*>(graph));
    return absl::OkStatus();
  }
  void DestroyGraph(void* graph) override { delete static_cast<std::function<void()>*>(graph); }

 private:
  const std::unique_ptr<emulator::DelayedStreams> delayed_;
  const GpuInfo info_ = {"emulated GPU", 8, 0, 4, int64_t{1} << 34};
};

}  // namespace

std::shared_ptr<Gpu> MakeEmulatedGpu(EmulatedOrder order) {
  return std::make_shared<EmulatedGpu>(order);
}

}  // namespace wavekv
