#include "api/gpu_context.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "fmt/format.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Pinned or device memory whose contents nobody relies on.
class FlatMemory final : public ArenaMemory {
 public:
  explicit FlatMemory(GpuMemory memory) : memory_(std::move(memory)) {}

  std::byte* data() const override { return memory_.data(); }
  int64_t bytes() const override { return memory_.bytes(); }
  void Zero(std::byte*, int64_t) override {}
  void Copy(std::byte*, const std::byte*, int64_t) override {}
  absl::Status Unseal(const ClusterIndex&, int64_t, absl::Span<std::byte* const>, int64_t,
                      int64_t) override {
    return absl::InternalError("no rows lie in scratch memory");
  }
  bool IsZero(const std::byte*, int64_t) const override { return true; }

 private:
  const GpuMemory memory_;
};

class GpuArenaMemory final : public ArenaMemory {
 public:
  GpuArenaMemory(std::shared_ptr<GpuContext> context, GpuMemory memory)
      : context_(std::move(context)), memory_(std::move(memory)) {}

  std::byte* data() const override { return memory_.data(); }
  int64_t bytes() const override { return memory_.bytes(); }

  void Zero(std::byte* at, int64_t num_bytes) override {
    context_->NoteFailure(context_->gpu().Fill(at, 0, num_bytes, context_->memory_stream()));
  }
  void Copy(std::byte* to, const std::byte* from, int64_t num_bytes) override {
    context_->NoteFailure(context_->gpu().Copy(to, from, num_bytes, context_->memory_stream()));
  }

  absl::Status Unseal(const ClusterIndex& index, int64_t num_tokens,
                      absl::Span<std::byte* const> chunks, int64_t chunk_tokens,
                      int64_t head_offset) override {
    const GpuScope scope(context_->gpu());
    const auto bytes = static_cast<int64_t>(chunks.size() * sizeof(std::byte*));
    WAVEKV_ASSIGN_OR_RETURN(const std::shared_ptr<GpuPiece> list, context_->AllocateStaging(bytes));
    std::memcpy(list->data(), chunks.data(), static_cast<size_t>(bytes));
    WAVEKV_RETURN_IF_ERROR(context_->operations().unseal_rows(
        {index, num_tokens}, reinterpret_cast<std::byte* const*>(list->data()), chunk_tokens,
        head_offset, context_->memory_stream()));
    return context_->Retire(context_->memory_stream(), list);
  }

  // Also what belongs to it alone: whoever still holds the arena will not need it.
  bool ReleasePages() override {
    memory_ = GpuMemory();
    context_.reset();
    return true;
  }

  // A copy to the host, 1 MiB at a time.
  bool IsZero(const std::byte* at, int64_t num_bytes) const override {
    constexpr int64_t kPiece = 1 << 20;
    auto event = GpuEvent::Create(context_->shared_gpu());
    if (!event.ok()) return false;
    std::vector<std::byte> copy(static_cast<size_t>(std::min(kPiece, num_bytes)));
    Gpu& gpu = context_->gpu();
    for (int64_t done = 0; done < num_bytes; done += kPiece) {
      const int64_t count = std::min(kPiece, num_bytes - done);
      if (!gpu.Copy(copy.data(), at + done, count, context_->memory_stream()).ok() ||
          !gpu.Record(event->get(), context_->memory_stream()).ok() ||
          !gpu.Await(event->get()).ok()) {
        return false;
      }
      const bool is_zero = std::all_of(copy.begin(), copy.begin() + count,
                                       [](std::byte byte) { return byte == std::byte{0}; });
      if (!is_zero) return false;
    }
    return true;
  }

 private:
  std::shared_ptr<GpuContext> context_;
  GpuMemory memory_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<GpuContext>> GpuContext::Create(std::shared_ptr<Gpu> gpu,
                                                               int64_t staging_bytes,
                                                               int64_t workspace_bytes) {
  std::shared_ptr<GpuContext> context(new GpuContext(gpu));
  WAVEKV_ASSIGN_OR_RETURN(context->memory_stream_, GpuOwnStream::Create(gpu));
  WAVEKV_ASSIGN_OR_RETURN(context->work_stream_, GpuOwnStream::Create(gpu));
  WAVEKV_ASSIGN_OR_RETURN(context->order_event_, GpuEvent::Create(gpu));
  WAVEKV_ASSIGN_OR_RETURN(context->flags_, GpuMemory::Pinned(gpu, sizeof(StepFlags)));
  new (context->flags_.data()) StepFlags;
  WAVEKV_ASSIGN_OR_RETURN(GpuMemory staging, GpuMemory::Pinned(gpu, Arena::RoundUp(staging_bytes)));
  context->staging_ = Arena::Create(std::make_unique<FlatMemory>(std::move(staging)));
  WAVEKV_ASSIGN_OR_RETURN(GpuMemory workspace,
                          GpuMemory::Device(gpu, Arena::RoundUp(workspace_bytes)));
  context->workspace_ = Arena::Create(std::make_unique<FlatMemory>(std::move(workspace)));
  return context;
}

absl::Status GpuContext::BeginUse(GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(failure());
  std::lock_guard<std::mutex> lock(order_mutex_);
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(order_event_.get(), memory_stream_.get()));
  return gpu_->WaitFor(order_event_.get(), stream);
}

absl::Status GpuContext::EndWrite(GpuStream stream) {
  std::lock_guard<std::mutex> lock(order_mutex_);
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(order_event_.get(), stream));
  return gpu_->WaitFor(order_event_.get(), memory_stream_.get());
}

absl::StatusOr<std::shared_ptr<GpuPiece>> GpuContext::AllocateStaging(int64_t bytes) {
  return Allocate(staging_, bytes, "gpu.staging_bytes");
}

absl::StatusOr<std::shared_ptr<GpuPiece>> GpuContext::AllocateWorkspace(int64_t bytes) {
  return Allocate(workspace_, bytes, "gpu.workspace_bytes");
}

absl::StatusOr<std::shared_ptr<GpuPiece>> GpuContext::Allocate(const std::shared_ptr<Arena>& arena,
                                                               int64_t bytes, const char* name) {
  const int64_t rounded = Arena::RoundUp(std::max<int64_t>(bytes, 1));
  Collect();
  while (true) {
    if (std::byte* data = arena->Allocate(rounded); data != nullptr) {
      return std::make_shared<GpuPiece>(arena, data, rounded);
    }
    if (rounded > arena->bytes() || !CollectOne()) break;
  }
  return absl::ResourceExhaustedError(
      fmt::format("{}: requested {} bytes, available {} (largest run {}), of {}", name, rounded,
                  arena->free_bytes(), arena->largest_free_bytes(), arena->bytes()));
}

absl::StatusOr<GpuEvent> GpuContext::TakeEvent() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!events_.empty()) {
      GpuEvent event = std::move(events_.back());
      events_.pop_back();
      return event;
    }
  }
  return GpuEvent::Create(gpu_);
}

absl::Status GpuContext::Retire(GpuStream stream, std::shared_ptr<const void> kept) {
  WAVEKV_ASSIGN_OR_RETURN(GpuEvent event, TakeEvent());
  WAVEKV_RETURN_IF_ERROR(gpu_->Record(event.get(), stream));
  Keep(std::move(event), stream, std::move(kept));
  return absl::OkStatus();
}

void GpuContext::Keep(GpuEvent event, GpuStream stream, std::shared_ptr<const void> kept) {
  std::lock_guard<std::mutex> lock(mutex_);
  kept_.push_back({std::move(event), stream, std::move(kept), next_number_++});
}

bool GpuContext::Collect() {
  std::list<Kept> done;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    // Streams whose later events need not be asked for.
    std::vector<GpuStream> busy;
    for (auto it = kept_.begin(); it != kept_.end();) {
      const auto next = std::next(it);
      if (std::find(busy.begin(), busy.end(), it->stream) == busy.end()) {
        const absl::StatusOr<bool> is_done = gpu_->IsDone(it->event.get());
        // After an error of the device nothing runs any more.
        if (!is_done.ok() && failure_.ok()) failure_ = is_done.status();
        if (!is_done.ok() || *is_done) {
          releasing_.insert(it->number);
          done.splice(done.end(), kept_, it);
        } else if (it->stream != nullptr) {
          busy.push_back(it->stream);
        }
      }
      it = next;
    }
  }
  const bool some = !done.empty();
  if (some) Release(std::move(done));
  return some;
}

bool GpuContext::CollectOne() { return CollectBefore(std::numeric_limits<uint64_t>::max()); }

bool GpuContext::CollectAll() {
  uint64_t end;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    end = next_number_;
  }
  bool some = false;
  while (CollectBefore(end)) some = true;
  return some;
}

bool GpuContext::CollectBefore(uint64_t number) {
  std::list<Kept> first;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (kept_.empty() || kept_.front().number >= number) {
      if (releasing_.empty() || *releasing_.begin() >= number) return false;
      const uint64_t awaited = *releasing_.begin();
      released_.wait(lock, [&] { return releasing_.count(awaited) == 0; });
      return true;
    }
    releasing_.insert(kept_.front().number);
    first.splice(first.end(), kept_, kept_.begin());
  }
  NoteFailure(gpu_->Await(first.front().event.get()));
  Release(std::move(first));
  return true;
}

void GpuContext::Release(std::list<Kept> done) {
  for (Kept& kept : done) kept.kept.reset();
  std::lock_guard<std::mutex> lock(mutex_);
  for (Kept& kept : done) {
    releasing_.erase(kept.number);
    events_.push_back(std::move(kept.event));
  }
  released_.notify_all();
}

absl::Status GpuContext::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void GpuContext::NoteFailure(const absl::Status& status) {
  if (status.ok()) return;
  WAVEKV_LOG(kError, "GPU: {}", std::string(status.message()));
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.ok()) failure_ = status;
}

absl::StatusOr<std::unique_ptr<ArenaMemory>> MakeGpuArenaMemory(std::shared_ptr<GpuContext> context,
                                                                int64_t bytes) {
  WAVEKV_ASSIGN_OR_RETURN(
      GpuMemory memory,
      GpuMemory::Device(context->shared_gpu(), bytes / Arena::kBlockBytes * Arena::kBlockBytes));
  WAVEKV_RETURN_IF_ERROR(
      context->gpu().Fill(memory.data(), 0, memory.bytes(), context->memory_stream()));
  return std::make_unique<GpuArenaMemory>(std::move(context), std::move(memory));
}

}  // namespace wavekv
