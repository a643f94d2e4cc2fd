#include "buffer/pread_reader.h"

#include <cerrno>
#include <utility>

#include "buffer/io_error.h"

namespace wavekv {

PreadReader::PreadReader(const Source& source, const ReaderOptions& options, ReadThreads* threads)
    : BlockReader(source, options), threads_(threads), jobs_(options.queue_depth) {
  for (ReadJob& job : jobs_) {
    job.owner = this;
    job.next = std::exchange(free_, &job);
  }
}

PreadReader::~PreadReader() { Drain(); }

void PreadReader::Pump() {
  ReadJob* done = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    done = std::exchange(done_, nullptr);
    num_done_ = 0;
  }
  while (done != nullptr) {
    ReadJob* const job = std::exchange(done, done->next);
    Ended(job->id, job->result);
    job->next = std::exchange(free_, job);
  }

  if (!has_waiting() || free_ == nullptr) return;
  const BackingFaults::Fault fault = source_.faults->Next(BackingFaults::Site::kSubmit);
  if (fault == BackingFaults::Fault::kTransient) return;
  ReadJob* first = nullptr;
  ReadJob* last = nullptr;
  while (has_waiting() && free_ != nullptr) {
    ReadJob* const job = std::exchange(free_, free_->next);
    const Run run = TakeRun(job->parts);
    job->fd = source_.fd;
    job->offset = run.offset;
    job->num_parts = run.num_parts;
    job->id = run.id;
    job->next = nullptr;
    if (first == nullptr) {
      first = job;
    } else {
      last->next = job;
    }
    last = job;
  }
  if (fault == BackingFaults::Fault::kNone) {
    threads_->Start(first, last);
    return;
  }
  while (first != nullptr) {
    ReadJob* const job = std::exchange(first, first->next);
    Failed(job->id, IoError(EIO, "handing reads to threads"));
    job->next = std::exchange(free_, job);
  }
}

void PreadReader::Block(int64_t at_least, TimePoint deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  num_wanted_ = at_least;
  const auto is_enough = [&] { return num_done_ >= at_least; };
  if (deadline == TimePoint::max()) {
    is_enough_.wait(lock, is_enough);
  } else {
    is_enough_.wait_until(lock, deadline, is_enough);
  }
  num_wanted_ = 0;
}

void PreadReader::Done(ReadJob* job) {
  // Notified under the lock: once it is released, the reader may go.
  std::lock_guard<std::mutex> lock(mutex_);
  job->next = std::exchange(done_, job);
  ++num_done_;
  if (num_wanted_ > 0 && num_done_ >= num_wanted_) is_enough_.notify_one();
}

}  // namespace wavekv
