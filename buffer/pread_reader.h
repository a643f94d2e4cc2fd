// Reads by threads of the file, where there is no io_uring.
#ifndef WAVEKV_BUFFER_PREAD_READER_H_
#define WAVEKV_BUFFER_PREAD_READER_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "buffer/block_reader.h"
#include "buffer/read_threads.h"

namespace wavekv {

// As many of its reads are in the device at once as there are threads, which readers share.
class PreadReader final : public BlockReader, private ReadJobOwner {
 public:
  // `threads` outlive the reader.
  PreadReader(const Source& source, const ReaderOptions& options, ReadThreads* threads);
  ~PreadReader() override;

  IoEngine engine() const override { return IoEngine::kPread; }

 private:
  void Pump() override;
  void Block(int64_t at_least, TimePoint deadline) override;
  void Done(ReadJob* job) override;

  ReadThreads* const threads_;
  std::vector<ReadJob> jobs_;  // queue_depth
  ReadJob* free_ = nullptr;

  std::mutex mutex_;
  std::condition_variable is_enough_;
  // Guarded by mutex_.
  ReadJob* done_ = nullptr;
  int64_t num_done_ = 0;
  int64_t num_wanted_ = 0;  // 0 when nobody waits
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_PREAD_READER_H_
