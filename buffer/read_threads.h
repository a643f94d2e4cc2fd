// Threads that do nothing but preadv.
#ifndef WAVEKV_BUFFER_READ_THREADS_H_
#define WAVEKV_BUFFER_READ_THREADS_H_

#include <sys/uio.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace wavekv {

struct ReadJob;

// Takes jobs back. Called on one of the threads.
class ReadJobOwner {
 public:
  virtual void Done(ReadJob* job) = 0;

 protected:
  ~ReadJobOwner() = default;
};

struct ReadJob {
  int fd = -1;
  int64_t offset = 0;
  std::array<iovec, 8> parts;  // where the bytes go
  int num_parts = 0;
  int id = 0;  // the owner's
  ReadJobOwner* owner = nullptr;
  int64_t result = 0;  // bytes read, or a negated errno
  ReadJob* next = nullptr;
};

// As many reads are in the device as there are threads; jobs are begun in the order they came.
//
// Threads: safe. REQUIRES: every job is done before the object goes.
class ReadThreads {
 public:
  // RESOURCE_EXHAUSTED when not one thread can be had; fewer than asked for are fine.
  static absl::StatusOr<std::unique_ptr<ReadThreads>> Create(int num_threads);
  ~ReadThreads();

  // Takes a list of jobs, linked by `next`. Allocates nothing.
  void Start(ReadJob* first, ReadJob* last);

  int num_threads() const { return static_cast<int>(threads_.size()); }

 private:
  ReadThreads() = default;

  void Work();

  std::mutex mutex_;
  std::condition_variable work_;
  // Guarded by mutex_.
  ReadJob* first_ = nullptr;
  ReadJob* last_ = nullptr;
  bool is_ending_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_READ_THREADS_H_
