#include "buffer/block_reader.h"

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "buffer/checksum.h"
#include "buffer/io_error.h"
#include "fmt/format.h"

namespace wavekv {
namespace {

using Clock = std::chrono::steady_clock;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

// Reads that come to nothing, of one block, before it is given up.
constexpr int kRetriesMax = 32;

}  // namespace

BlockReader::BlockReader(const Source& source, const ReaderOptions& options)
    : source_(source), queue_depth_(options.queue_depth) {
  requests_.resize(std::max<int64_t>(options.reserved_reads, 1));
  for (size_t id = 0; id < requests_.size(); ++id) Append(free_, static_cast<int>(id));
}

absl::Status BlockReader::Submit(absl::Span<const BlockRead> reads) {
  const int64_t size_bytes = source_.size_bytes->load(std::memory_order_acquire);
  for (size_t i = 0; i < reads.size(); ++i) {
    if (absl::Status status = Check(reads[i], size_bytes); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("reads[", i, "]: ", status.message()));
    }
  }
  for (const BlockRead& read : reads) {
    if (free_.first == kNone) {
      const size_t old_size = requests_.size();
      requests_.resize(2 * old_size);
      for (size_t id = old_size; id < requests_.size(); ++id) Append(free_, static_cast<int>(id));
    }
    const int id = PopFront(free_);
    requests_[id] = Request{read};
    Append(waiting_, id);
    ++num_pending_;
  }
  Pump();
  return absl::OkStatus();
}

int64_t BlockReader::Wait(int64_t at_least, absl::Span<BlockCompletion> completions,
                          TimePoint deadline) {
  const auto num_fit = static_cast<int64_t>(completions.size());
  at_least = std::min({at_least, num_fit, num_pending_});
  int64_t count = 0;
  for (;;) {
    Pump();
    TimePoint until = std::min(deadline, FinishDelayed());
    while (count < num_fit && finished_.first != kNone) {
      const int id = PopFront(finished_);
      completions[count++] = {requests_[id].read.tag, std::move(requests_[id].status)};
      Append(free_, id);
      --num_pending_;
    }
    if (count >= at_least) return count;
    if (deadline != TimePoint::max() && Clock::now() >= deadline) return count;
    if (num_in_flight_ > 0) {
      // While others wait, come back before the device runs dry.
      int64_t wanted = at_least - count;
      if (has_waiting()) wanted = std::min(wanted, num_in_flight_ / 4);
      if (!delayed_.empty()) wanted = 1;
      wanted = (wanted + kRunBlocksMax - 1) / kRunBlocksMax;  // so many may come with one run
      Block(std::clamp<int64_t>(wanted, 1, num_in_flight_), until);
    } else {
      // Nothing is in the device: all are delayed, or it does not take any at the moment.
      if (has_waiting()) until = std::min(until, Clock::now() + std::chrono::milliseconds(1));
      std::this_thread::sleep_until(until);
    }
  }
}

void BlockReader::Drain() {
  waiting_ = {};
  while (num_in_flight_ > 0) {
    Block(1, TimePoint::max());
    Pump();
  }
}

BlockReader::Run BlockReader::TakeRun(Parts& parts) {
  ++num_in_flight_;
  Run run;
  run.id = PopFront(waiting_);
  const auto rest_of = [this](int id) {
    const Request& request = requests_[id];
    return request.read.target.subspan(request.done_bytes);
  };
  const Request& first = requests_[run.id];
  run.offset = first.read.offset + first.done_bytes;
  absl::Span<std::byte> rest = rest_of(run.id);
  parts[0] = {rest.data(), rest.size()};
  run.num_parts = 1;
  auto bytes = static_cast<int64_t>(rest.size());
  int last = run.id;
  for (int count = 1; count < kRunBlocksMax && has_waiting(); ++count) {
    const int id = waiting_.first;
    const Request& next = requests_[id];
    rest = rest_of(id);
    if (first.is_alone || next.is_alone ||
        bytes + static_cast<int64_t>(rest.size()) > kRunBytesMax ||
        next.read.offset + next.done_bytes != run.offset + bytes) {
      break;
    }
    iovec& part = parts[run.num_parts - 1];
    if (static_cast<std::byte*>(part.iov_base) + part.iov_len == rest.data()) {
      part.iov_len += rest.size();
    } else {
      parts[run.num_parts++] = {rest.data(), rest.size()};
    }
    bytes += static_cast<int64_t>(rest.size());
    PopFront(waiting_);
    requests_[last].next = id;
    last = id;
  }
  requests_[last].next = kNone;
  return run;
}

void BlockReader::Ended(int id, int64_t result) {
  --num_in_flight_;
  switch (source_.faults->Next(Site::kRun)) {
    case Fault::kIoError:
      result = -EIO;
      break;
    case Fault::kTransient:
      result = -EAGAIN;
      break;
    case Fault::kShort:
      result = std::max(result / 2 / kAlignmentBytes, int64_t{1}) * kAlignmentBytes;
      break;
    default:
      break;
  }
  const bool is_joined = requests_[id].next != kNone;
  for (int next = kNone; id != kNone; id = next) {
    Request& request = requests_[id];
    next = request.next;
    if (is_joined && result <= 0) {
      // Nothing says which of them cannot be read.
      request.is_alone = true;
      Append(waiting_, id);
      continue;
    }
    const auto rest_bytes = static_cast<int64_t>(request.read.target.size()) - request.done_bytes;
    const int64_t part = std::min(result, rest_bytes);
    BlockEnded(id, part);
    result -= part;
  }
}

void BlockReader::BlockEnded(int id, int64_t result) {
  Request& request = requests_[id];
  std::chrono::milliseconds delay{0};
  switch (source_.faults->Next(Site::kComplete, &delay)) {
    case Fault::kIoError:
      result = -EIO;
      break;
    case Fault::kTransient:
      result = -EAGAIN;
      break;
    case Fault::kShort:
      result = result / 2 / kAlignmentBytes * kAlignmentBytes;
      if (result == 0) result = -EAGAIN;  // half of the least is nothing, not the file's end
      break;
    case Fault::kCorrupt:
      request.read.target[request.read.target.size() / 2] ^= std::byte{0x10};
      break;
    case Fault::kDelay:
      request.delayed_until = Clock::now() + delay;
      request.delayed_result = result;
      delayed_.push_back(id);
      return;
    default:
      break;
  }
  Settle(id, result);
}

void BlockReader::Failed(int id, const absl::Status& status) {
  --num_in_flight_;
  for (int next = kNone; id != kNone; id = next) {
    next = requests_[id].next;
    Finish(id, status);
  }
}

absl::Status BlockReader::Check(const BlockRead& read, int64_t size_bytes) const {
  const auto bytes = static_cast<int64_t>(read.target.size());
  const auto address = reinterpret_cast<uintptr_t>(read.target.data());
  if (bytes == 0 || bytes % kAlignmentBytes != 0 || read.offset % kAlignmentBytes != 0 ||
      address % kAlignmentBytes != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "offset {}, size {} and address {:#x} of a target must be multiples of {}, size not 0",
        read.offset, bytes, address, kAlignmentBytes));
  }
  if (read.offset < 0 || bytes > size_bytes || read.offset > size_bytes - bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes at offset {} are not in the backing file of {} bytes", bytes,
                    read.offset, size_bytes));
  }
  return absl::OkStatus();
}

void BlockReader::Append(List& list, int id) {
  requests_[id].next = kNone;
  if (list.first == kNone) {
    list.first = id;
  } else {
    requests_[list.last].next = id;
  }
  list.last = id;
}

int BlockReader::PopFront(List& list) {
  const int id = list.first;
  list.first = requests_[id].next;
  if (list.first == kNone) list.last = kNone;
  return id;
}

void BlockReader::Settle(int id, int64_t result) {
  Request& request = requests_[id];
  // A thread that ends takes its reads with it: ECANCELED. Try again from this one.
  const bool is_transient = result == -EAGAIN || result == -EINTR || result == -ECANCELED;
  if (result < 0 && (!is_transient || request.num_retries >= kRetriesMax)) {
    Finish(id, IoError(static_cast<int>(-result), "read of " + Where(request)));
    return;
  }
  const auto bytes = static_cast<int64_t>(request.read.target.size());
  if (result == 0 && request.done_bytes < bytes) {
    Finish(id, absl::DataLossError(fmt::format("read of {}: the file ends after {} of its {} bytes",
                                               Where(request), request.done_bytes, bytes)));
    return;
  }
  if (result > 0) request.done_bytes += result;
  if (request.done_bytes < bytes) {
    // Direct reads go on from a multiple of the alignment only.
    request.done_bytes = request.done_bytes / kAlignmentBytes * kAlignmentBytes;
    ++request.num_retries;
    if (request.num_retries > kRetriesMax + bytes / kAlignmentBytes) {
      Finish(id, absl::UnavailableError(fmt::format("read of {}: given up after {} short reads",
                                                    Where(request), request.num_retries)));
      return;
    }
    Append(waiting_, id);
    return;
  }
  const uint32_t checksum = BlockChecksum(request.read.target);
  if (checksum != request.read.checksum) {
    Finish(id,
           absl::DataLossError(fmt::format("read of {}: checksum is {:#010x}, expected {:#010x}",
                                           Where(request), checksum, request.read.checksum)));
    return;
  }
  Finish(id, absl::OkStatus());
}

void BlockReader::Finish(int id, absl::Status status) {
  requests_[id].status = std::move(status);
  Append(finished_, id);
}

BlockReader::TimePoint BlockReader::FinishDelayed() {
  TimePoint next = TimePoint::max();
  if (delayed_.empty()) return next;
  const TimePoint now = Clock::now();
  size_t num_kept = 0;
  for (const int id : delayed_) {
    const Request& request = requests_[id];
    if (request.delayed_until <= now) {
      Settle(id, request.delayed_result);
    } else {
      next = std::min(next, request.delayed_until);
      delayed_[num_kept++] = id;
    }
  }
  delayed_.resize(num_kept);
  return next;
}

std::string BlockReader::Where(const Request& request) const {
  return fmt::format("the block of {} bytes at offset {} of the backing file",
                     request.read.target.size(), request.read.offset);
}

}  // namespace wavekv
