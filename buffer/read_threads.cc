#include "buffer/read_threads.h"

#include <sys/uio.h>

#include <cerrno>
#include <system_error>

#include "absl/status/status.h"
#include "fmt/format.h"

namespace wavekv {

absl::StatusOr<std::unique_ptr<ReadThreads>> ReadThreads::Create(int num_threads) {
  std::unique_ptr<ReadThreads> threads(new ReadThreads);
  threads->threads_.reserve(num_threads);
  try {
    for (int i = 0; i < num_threads; ++i) {
      threads->threads_.emplace_back(&ReadThreads::Work, threads.get());
    }
  } catch (const std::system_error& error) {
    if (threads->threads_.empty()) {
      return absl::ResourceExhaustedError(
          fmt::format("cannot start a thread that reads: {}", error.what()));
    }
  }
  return threads;
}

ReadThreads::~ReadThreads() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_ending_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReadThreads::Start(ReadJob* first, ReadJob* last) {
  const bool is_one = first == last;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    last->next = nullptr;
    if (first_ == nullptr) {
      first_ = first;
    } else {
      last_->next = first;
    }
    last_ = last;
  }
  if (is_one) {
    work_.notify_one();
  } else {
    work_.notify_all();
  }
}

void ReadThreads::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return first_ != nullptr || is_ending_; });
    if (first_ == nullptr) return;
    ReadJob* const job = first_;
    first_ = job->next;
    lock.unlock();
    ssize_t result;
    do {
      result = preadv(job->fd, job->parts.data(), job->num_parts, job->offset);
    } while (result < 0 && errno == EINTR);
    job->result = result < 0 ? -errno : result;
    job->owner->Done(job);
    lock.lock();
  }
}

}  // namespace wavekv
