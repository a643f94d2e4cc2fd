#include "buffer/uring_reader.h"

#include <algorithm>
#include <cerrno>
#include <functional>
#include <mutex>
#include <vector>

#include "buffer/io_error.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

// The kernel takes at most 1 GiB in one piece.
constexpr int64_t kPartBytes = int64_t{1} << 30;
// The kernel is out of something for the moment: so many attempts without any progress, about a
// millisecond apart, before its word is taken for final.
constexpr int kRefusalsMax = 1000;
// Of an entry that stands for no read any more.
constexpr uint64_t kNobody = ~uint64_t{0};

// Held while a ring comes or goes. liburing maps and unmaps its memory by bare system calls, which
// ThreadSanitizer does not see: without the order that this gives, a ring where another thread had
// one before looks like a race.
std::mutex& RingsMutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}

absl::Status InitRing(int num_entries, io_uring& ring) {
  std::lock_guard<std::mutex> lock(RingsMutex());
  // Completions are looked at when we ask, so the kernel need not interrupt us (Linux 5.19).
  int error = io_uring_queue_init(num_entries, &ring,
                                  IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
  if (error == -EINVAL) error = io_uring_queue_init(num_entries, &ring, 0);
  if (error < 0) return IoError(-error, "io_uring_queue_init");
  if ((ring.features & IORING_FEAT_EXT_ARG) == 0 || (ring.features & IORING_FEAT_NODROP) == 0) {
    io_uring_queue_exit(&ring);
    return absl::UnimplementedError("io_uring of this kernel is older than Linux 5.11's");
  }
  return absl::OkStatus();
}

void ExitRing(io_uring& ring) {
  std::lock_guard<std::mutex> lock(RingsMutex());
  io_uring_queue_exit(&ring);
}

}  // namespace

absl::Status UringReader::Probe() {
  io_uring ring;
  WAVEKV_RETURN_IF_ERROR(InitRing(1, ring));
  ExitRing(ring);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<UringReader>> UringReader::Create(const Source& source,
                                                                 const ReaderOptions& options) {
  std::unique_ptr<UringReader> reader(new UringReader(source, options));
  WAVEKV_RETURN_IF_ERROR(InitRing(options.queue_depth, reader->ring_));
  reader->has_ring_ = true;
  reader->parts_.resize(*reader->ring_.sq.kring_entries);
  reader->has_registered_file_ = io_uring_register_files(&reader->ring_, &source.fd, 1) == 0;
  reader->RegisterMemory(options.memory);
  return reader;
}

UringReader::UringReader(const Source& source, const ReaderOptions& options)
    : BlockReader(source, options) {}

UringReader::~UringReader() {
  if (!has_ring_) return;
  Drain();
  ExitRing(ring_);
}

void UringReader::RegisterMemory(absl::Span<std::byte> memory) {
  std::vector<iovec> parts;
  for (size_t at = 0; at < memory.size(); at += kPartBytes) {
    parts.push_back({memory.data() + at, std::min<size_t>(kPartBytes, memory.size() - at)});
  }
  if (parts.empty()) return;
  // Refused where it would exceed the locked-memory limit: then each read maps its pages itself.
  if (io_uring_register_buffers(&ring_, parts.data(), parts.size()) == 0) memory_ = memory;
}

int UringReader::RegisteredPart(const iovec& part) const {
  const auto* const target = static_cast<const std::byte*>(part.iov_base);
  // std::less orders pointers into different objects, which < need not.
  const std::less<const std::byte*> less;
  if (memory_.empty() || less(target, memory_.data())) return -1;
  if (!less(target, memory_.data() + memory_.size())) return -1;
  const int64_t begin = target - memory_.data();
  const int64_t end = begin + static_cast<int64_t>(part.iov_len);
  if (end > static_cast<int64_t>(memory_.size())) return -1;
  if (begin / kPartBytes != (end - 1) / kPartBytes) return -1;
  return static_cast<int>(begin / kPartBytes);
}

void UringReader::Pump() {
  Reap();
  while (has_waiting() && num_in_flight() < queue_depth_) {
    io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) break;
    // The entry's own, until the kernel has taken it.
    Parts& parts = parts_[sqe - ring_.sq.sqes];
    const Run run = TakeRun(parts);
    const int fd = has_registered_file_ ? 0 : source_.fd;
    const int registered = run.num_parts == 1 ? RegisteredPart(parts[0]) : -1;
    if (registered >= 0) {
      io_uring_prep_read_fixed(sqe, fd, parts[0].iov_base, parts[0].iov_len, run.offset,
                               registered);
    } else if (run.num_parts == 1) {
      io_uring_prep_read(sqe, fd, parts[0].iov_base, parts[0].iov_len, run.offset);
    } else {
      io_uring_prep_readv(sqe, fd, parts.data(), run.num_parts, run.offset);
    }
    if (has_registered_file_) sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = run.id;
  }
  if (io_uring_sq_ready(&ring_) > 0) SubmitPrepared();
}

void UringReader::SubmitPrepared() {
  while (io_uring_sq_ready(&ring_) > 0) {
    int result = 0;
    switch (source_.faults->Next(Site::kSubmit)) {
      case Fault::kNone:
        result = io_uring_submit(&ring_);
        break;
      case Fault::kTransient:
        result = -EAGAIN;
        break;
      default:
        result = -EIO;
        break;
    }
    if (result > 0) {
      num_refusals_ = 0;
      continue;
    }
    if (result == -EINTR) continue;
    if (result == -EBUSY) Reap();  // completions must be taken first
    const bool is_transient = result == 0 || result == -EAGAIN || result == -EBUSY;
    if (!is_transient || ++num_refusals_ > kRefusalsMax) FailPrepared(result == 0 ? EIO : -result);
    // What was refused for the moment stays prepared and goes with the next Pump.
    return;
  }
}

void UringReader::FailPrepared(int error) {
  num_refusals_ = 0;
  // An entry that the kernel has not taken cannot be withdrawn, but it can be made to do nothing.
  const unsigned end = ring_.sq.sqe_tail;
  bool has_failed_one = false;
  for (unsigned at = end - io_uring_sq_ready(&ring_); at != end; ++at) {
    io_uring_sqe* const sqe = &ring_.sq.sqes[at & *ring_.sq.kring_mask];
    if (sqe->user_data != kNobody) {
      Failed(static_cast<int>(sqe->user_data), IoError(error, "handing reads to io_uring"));
      has_failed_one = true;
    }
    io_uring_prep_nop(sqe);
    sqe->user_data = kNobody;
  }
  // When the queue is full of entries that do nothing and are not taken, no read gets in any more.
  Parts unused;
  while (!has_failed_one && has_waiting()) {
    Failed(TakeRun(unused).id, IoError(error, "handing reads to io_uring"));
  }
}

void UringReader::Block(int64_t at_least, TimePoint deadline) {
  // What is prepared and not taken never ends: do not wait for it, but try again soon.
  const int64_t num_taken = num_in_flight() - io_uring_sq_ready(&ring_);
  if (num_taken < at_least) {
    deadline = std::min(deadline, std::chrono::steady_clock::now() + std::chrono::milliseconds(1));
  }
  io_uring_cqe* cqe = nullptr;
  if (deadline == TimePoint::max()) {
    io_uring_wait_cqe_nr(&ring_, &cqe, at_least);
    return;
  }
  const auto left = std::max(std::chrono::nanoseconds(0),
                             std::chrono::nanoseconds(deadline - std::chrono::steady_clock::now()));
  __kernel_timespec timeout = {};
  timeout.tv_sec = left.count() / 1000000000;
  timeout.tv_nsec = left.count() % 1000000000;
  // Its errors are a passed time and an interruption: either way Pump looks what is there.
  io_uring_wait_cqes(&ring_, &cqe, at_least, &timeout, nullptr);
}

void UringReader::Reap() {
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
    const uint64_t id = cqe->user_data;
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (id != kNobody) Ended(static_cast<int>(id), result);
  }
}

}  // namespace wavekv
