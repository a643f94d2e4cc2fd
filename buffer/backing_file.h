// The backing tier of the CPU engine: blocks in a file on a local SSD.
#ifndef WAVEKV_BUFFER_BACKING_FILE_H_
#define WAVEKV_BUFFER_BACKING_FILE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "buffer/backing_faults.h"
#include "buffer/block_reader.h"
#include "buffer/file_extents.h"

namespace wavekv {

class ReadThreads;
class TemporaryFile;

struct BackingOptions {
  // The file's end never goes beyond; 0: as large as the file system lets it grow.
  int64_t capacity_bytes = 0;
  // Bypass the page cache where the file system lets us: the fast tier is the cache.
  bool direct = true;
  // kIoUring fails where there is none.
  IoEngine engine = IoEngine::kAuto;
  // Of kPread, in [1, 256]. They start with the first reader that needs them.
  int num_read_threads = 16;
  // For tests. False: as on a file system without O_TMPFILE.
  bool unnamed_file = true;
};

// One file, extents of which are allocated, written once, read by blocks and freed.
//
// The file has no name: nobody else opens it, and it is gone with the process, however that ends.
// Errors: RESOURCE_EXHAUSTED no space (the message has requested and available bytes), UNAVAILABLE
// the device reports an error, DATA_LOSS a block came back damaged, INVALID_ARGUMENT the caller's.
// Invariants: space().used_bytes + free_bytes == size_bytes <= capacity; a failed Allocate changes
// nothing.
// Threads: safe; no lock is held across a system call. A BlockReader is used by one thread at a
// time. REQUIRES: readers go before the file.
class BackingFile {
 public:
  // Offsets and sizes of writes and reads, and addresses of targets, are multiples of it.
  static constexpr int64_t kAlignmentBytes = BlockReader::kAlignmentBytes;

  // An empty file on the file system of `directory`, which must exist. Errors name the path.
  static absl::StatusOr<std::unique_ptr<BackingFile>> Create(const std::string& directory,
                                                             const BackingOptions& options = {});
  ~BackingFile();

  BackingFile(const BackingFile&) = delete;
  BackingFile& operator=(const BackingFile&) = delete;

  // Offset of an extent of at least `bytes`, a multiple of 4096, with its disk space reserved: a
  // later Write does not run out of it (where the file system can reserve). Its contents are
  // undefined.
  absl::StatusOr<int64_t> Allocate(int64_t bytes);

  // Takes back what Allocate(bytes) returned, and gives the disk space to the file system where
  // that can make holes. REQUIRES: no reads or writes of it are pending.
  absl::Status Free(int64_t offset, int64_t bytes);

  // Writes all of `bytes` or fails; then what the range holds is undefined. Memory that is not
  // aligned is copied on the way. Returns when the bytes can be read, not when they are durable.
  absl::Status Write(int64_t offset, absl::Span<const std::byte> bytes);

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader(const ReaderOptions& options = {});

  // Whether reads and writes bypass the page cache.
  bool direct() const { return direct_; }
  // What readers use unless told otherwise; never kAuto.
  IoEngine engine() const { return engine_; }
  // Why not io_uring, for the log; OK when engine() is kIoUring or kPread was asked for.
  const absl::Status& io_uring_status() const { return io_uring_status_; }

  FileSpace space() const;

  // For tests.
  BackingFaults& faults() { return faults_; }

 private:
  BackingFile(const std::string& directory, TemporaryFile file, const BackingOptions& options);

  absl::Status Reserve(int64_t offset, int64_t bytes);
  void PunchHole(int64_t offset, int64_t bytes);
  // Size as BlockReader sees it.
  void PublishSize();
  absl::Status WriteAligned(int64_t offset, const std::byte* data, int64_t bytes);
  absl::StatusOr<ReadThreads*> StartedReadThreads();

  const std::string directory_;
  const std::unique_ptr<TemporaryFile> file_;
  const int fd_;
  const int num_read_threads_;
  bool direct_ = false;                   // constant after Create
  IoEngine engine_ = IoEngine::kIoUring;  // constant after Create
  absl::Status io_uring_status_;          // constant after Create
  BackingFaults faults_;
  std::atomic<int64_t> size_bytes_{0};

  mutable std::mutex mutex_;
  FileExtents extents_;  // guarded by mutex_

  std::mutex read_threads_mutex_;
  std::unique_ptr<ReadThreads> read_threads_;  // guarded by read_threads_mutex_
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_BACKING_FILE_H_
