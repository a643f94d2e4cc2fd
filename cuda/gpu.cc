#include "cuda/gpu.h"

#include "storage/status_macros.h"

namespace wavekv {

absl::StatusOr<GpuMemory> GpuMemory::Device(std::shared_ptr<Gpu> gpu, int64_t bytes) {
  GpuMemory memory;
  WAVEKV_ASSIGN_OR_RETURN(memory.data_, gpu->AllocateDevice(bytes));
  memory.gpu_ = std::move(gpu);
  memory.bytes_ = bytes;
  return memory;
}

absl::StatusOr<GpuMemory> GpuMemory::Pinned(std::shared_ptr<Gpu> gpu, int64_t bytes) {
  GpuMemory memory;
  WAVEKV_ASSIGN_OR_RETURN(memory.data_, gpu->AllocatePinned(bytes));
  memory.gpu_ = std::move(gpu);
  memory.bytes_ = bytes;
  memory.pinned_ = true;
  return memory;
}

GpuMemory& GpuMemory::operator=(GpuMemory&& other) noexcept {
  std::swap(gpu_, other.gpu_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

GpuMemory::~GpuMemory() {
  if (gpu_ == nullptr) return;
  pinned_ ? gpu_->FreePinned(data_) : gpu_->FreeDevice(data_);
}

absl::StatusOr<GpuOwnStream> GpuOwnStream::Create(std::shared_ptr<Gpu> gpu) {
  GpuOwnStream stream;
  WAVEKV_ASSIGN_OR_RETURN(stream.stream_, gpu->CreateStream());
  stream.gpu_ = std::move(gpu);
  return stream;
}

GpuOwnStream& GpuOwnStream::operator=(GpuOwnStream&& other) noexcept {
  std::swap(gpu_, other.gpu_);
  std::swap(stream_, other.stream_);
  return *this;
}

GpuOwnStream::~GpuOwnStream() {
  if (gpu_ != nullptr) gpu_->DestroyStream(stream_);
}

absl::StatusOr<GpuEvent> GpuEvent::Create(std::shared_ptr<Gpu> gpu) {
  GpuEvent event;
  WAVEKV_ASSIGN_OR_RETURN(event.event_, gpu->CreateEvent());
  event.gpu_ = std::move(gpu);
  return event;
}

absl::StatusOr<GpuEvent> GpuEvent::CreateTiming(std::shared_ptr<Gpu> gpu) {
  GpuEvent event;
  WAVEKV_ASSIGN_OR_RETURN(event.event_, gpu->CreateTimingEvent());
  event.gpu_ = std::move(gpu);
  return event;
}

GpuEvent& GpuEvent::operator=(GpuEvent&& other) noexcept {
  std::swap(gpu_, other.gpu_);
  std::swap(event_, other.event_);
  return *this;
}

GpuEvent::~GpuEvent() {
  if (gpu_ != nullptr) gpu_->DestroyEvent(event_);
}

}  // namespace wavekv
