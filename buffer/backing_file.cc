#include "buffer/backing_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "buffer/io_error.h"
#include "buffer/pread_reader.h"
#include "buffer/read_threads.h"
#include "buffer/temporary_file.h"
#include "buffer/uring_reader.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

// No file is larger; leaves room to add.
constexpr int64_t kFileBytesMax = int64_t{1} << 62;
// Of memory that must be copied to be aligned.
constexpr int64_t kCopyBytes = int64_t{1} << 20;
constexpr int kQueueDepthMax = 4096;
constexpr int kReadThreadsMax = 256;
constexpr int64_t kReservedReadsMax = int64_t{1} << 24;

int64_t AvailableBytes(int fd) {
  struct statvfs system = {};
  if (fstatvfs(fd, &system) != 0) return 0;
  return static_cast<int64_t>(system.f_bavail) * static_cast<int64_t>(system.f_frsize);
}

bool IsUnsupported(int error) { return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL; }

}  // namespace

absl::StatusOr<std::unique_ptr<BackingFile>> BackingFile::Create(const std::string& directory,
                                                                 const BackingOptions& options) {
  if (options.capacity_bytes < 0 || options.capacity_bytes > kFileBytesMax) {
    return absl::InvalidArgumentError(fmt::format("capacity_bytes must be in [0, {}], got {}",
                                                  kFileBytesMax, options.capacity_bytes));
  }
  if (options.num_read_threads < 1 || options.num_read_threads > kReadThreadsMax) {
    return absl::InvalidArgumentError(fmt::format("num_read_threads must be in [1, {}], got {}",
                                                  kReadThreadsMax, options.num_read_threads));
  }
  WAVEKV_ASSIGN_OR_RETURN(TemporaryFile temporary,
                          TemporaryFile::Create(directory, options.unnamed_file));
  std::unique_ptr<BackingFile> file(new BackingFile(directory, std::move(temporary), options));
  file->direct_ = options.direct && file->file_->TryDirect(kAlignmentBytes);
  // Blocks are read in no order, so reading ahead would only read what nobody wants.
  if (!file->direct_) posix_fadvise(file->fd_, 0, 0, POSIX_FADV_RANDOM);
  file->engine_ = options.engine == IoEngine::kPread ? IoEngine::kPread : IoEngine::kIoUring;
  if (file->engine_ == IoEngine::kIoUring) {
    file->io_uring_status_ = UringReader::Probe();
    if (!file->io_uring_status_.ok()) {
      if (options.engine == IoEngine::kIoUring) return file->io_uring_status_;
      file->engine_ = IoEngine::kPread;
    }
  }
  return file;
}

BackingFile::BackingFile(const std::string& directory, TemporaryFile file,
                         const BackingOptions& options)
    : directory_(directory),
      file_(std::make_unique<TemporaryFile>(std::move(file))),
      fd_(file_->fd()),
      num_read_threads_(options.num_read_threads),
      extents_(options.capacity_bytes == 0 ? kFileBytesMax : options.capacity_bytes) {}

BackingFile::~BackingFile() = default;

absl::StatusOr<int64_t> BackingFile::Allocate(int64_t bytes) {
  int64_t offset = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    WAVEKV_ASSIGN_OR_RETURN(offset, extents_.Allocate(bytes));
    PublishSize();
  }
  absl::Status status = Reserve(offset, FileExtents::RoundUp(bytes));
  if (status.ok()) return offset;
  // The file system may have reserved some of it.
  WAVEKV_RETURN_IF_ERROR(Free(offset, bytes));
  return status;
}

absl::Status BackingFile::Reserve(int64_t offset, int64_t bytes) {
  int error = 0;
  switch (faults_.Next(Site::kAllocate)) {
    case Fault::kNone:
      do {
        error = fallocate(fd_, 0, offset, bytes) == 0 ? 0 : errno;
      } while (error == EINTR);
      break;
    case Fault::kIoError:
      error = EIO;
      break;
    default:
      error = ENOSPC;
      break;
  }
  // Where space cannot be reserved, a write finds out whether there is some.
  if (error == 0 || IsUnsupported(error)) return absl::OkStatus();
  return IoError(error, fmt::format("backing file in {}: requested {} bytes, {} available",
                                    directory_, bytes, AvailableBytes(fd_)));
}

absl::Status BackingFile::Free(int64_t offset, int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    WAVEKV_RETURN_IF_ERROR(extents_.CheckUsed(offset, bytes));
  }
  // While the extent is still ours, so that the next owner's bytes are safe.
  PunchHole(offset, FileExtents::RoundUp(bytes));
  std::lock_guard<std::mutex> lock(mutex_);
  WAVEKV_RETURN_IF_ERROR(extents_.Free(offset, bytes));
  PublishSize();
  return absl::OkStatus();
}

void BackingFile::PunchHole(int64_t offset, int64_t bytes) {
  // Failing, it costs disk space until the extent is used again, nothing else.
  int result;
  do {
    result = fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
  } while (result != 0 && errno == EINTR);
}

void BackingFile::PublishSize() {
  size_bytes_.store(extents_.size_bytes(), std::memory_order_release);
}

absl::Status BackingFile::Write(int64_t offset, absl::Span<const std::byte> bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (offset % kAlignmentBytes != 0 || size % kAlignmentBytes != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "offset {} and size {} of a write must be multiples of {}", offset, size, kAlignmentBytes));
  }
  const int64_t size_bytes = size_bytes_.load(std::memory_order_acquire);
  if (offset < 0 || size > size_bytes || offset > size_bytes - size) {
    return absl::InvalidArgumentError(fmt::format(
        "{} bytes at offset {} are not in the backing file of {} bytes", size, offset, size_bytes));
  }
  const bool is_aligned = reinterpret_cast<uintptr_t>(bytes.data()) % kAlignmentBytes == 0;
  if (!direct_ || is_aligned) return WriteAligned(offset, bytes.data(), size);

  const std::unique_ptr<void, decltype(&std::free)> copy(
      std::aligned_alloc(FileExtents::kAlignmentBytes, kCopyBytes), &std::free);
  if (copy == nullptr) {
    return absl::ResourceExhaustedError(
        fmt::format("backing file: no memory for a copy of {} bytes", kCopyBytes));
  }
  for (int64_t at = 0; at < size; at += kCopyBytes) {
    const int64_t part = std::min(kCopyBytes, size - at);
    std::memcpy(copy.get(), bytes.data() + at, part);
    WAVEKV_RETURN_IF_ERROR(
        WriteAligned(offset + at, static_cast<const std::byte*>(copy.get()), part));
  }
  return absl::OkStatus();
}

absl::Status BackingFile::WriteAligned(int64_t offset, const std::byte* data, int64_t bytes) {
  int64_t done = 0;
  int num_idle = 0;
  while (done < bytes) {
    int64_t wanted = bytes - done;
    int error = 0;
    switch (faults_.Next(Site::kWrite)) {
      case Fault::kNone:
        break;
      case Fault::kShort:
        wanted = std::max(kAlignmentBytes, wanted / 2 / kAlignmentBytes * kAlignmentBytes);
        break;
      case Fault::kDiskFull:
        error = ENOSPC;
        break;
      default:
        error = EIO;
        break;
    }
    ssize_t written = 0;
    if (error == 0) {
      written = pwrite(fd_, data + done, wanted, offset + done);
      if (written < 0) error = errno;
    }
    if (error == EINTR) continue;
    if (error != 0) {
      return IoError(error,
                     fmt::format("backing file in {}: write of {} bytes at offset {}, {} available",
                                 directory_, bytes, offset, AvailableBytes(fd_)));
    }
    // Direct writes go on from a multiple of the alignment only.
    const int64_t whole = written / kAlignmentBytes * kAlignmentBytes;
    num_idle = whole > 0 ? 0 : num_idle + 1;
    if (num_idle > 16) {
      return absl::UnavailableError(
          fmt::format("backing file in {}: write of {} bytes at offset {} stopped after {}",
                      directory_, bytes, offset, done));
    }
    done += whole;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BlockReader>> BackingFile::NewReader(const ReaderOptions& options) {
  if (options.queue_depth < 1 || options.queue_depth > kQueueDepthMax) {
    return absl::InvalidArgumentError(
        fmt::format("queue_depth must be in [1, {}], got {}", kQueueDepthMax, options.queue_depth));
  }
  if (options.reserved_reads < 0 || options.reserved_reads > kReservedReadsMax) {
    return absl::InvalidArgumentError(fmt::format("reserved_reads must be in [0, {}], got {}",
                                                  kReservedReadsMax, options.reserved_reads));
  }
  const BlockReader::Source source = {fd_, &size_bytes_, &faults_};
  const IoEngine engine = options.engine == IoEngine::kAuto ? engine_ : options.engine;
  if (engine == IoEngine::kIoUring) {
    auto reader = UringReader::Create(source, options);
    if (reader.ok()) return std::unique_ptr<BlockReader>(std::move(*reader));
    // One more ring may be one too many (locked memory, descriptors); threads read as well.
    if (options.engine == IoEngine::kIoUring) return reader.status();
  }
  WAVEKV_ASSIGN_OR_RETURN(ReadThreads* const threads, StartedReadThreads());
  return std::unique_ptr<BlockReader>(std::make_unique<PreadReader>(source, options, threads));
}

absl::StatusOr<ReadThreads*> BackingFile::StartedReadThreads() {
  std::lock_guard<std::mutex> lock(read_threads_mutex_);
  if (read_threads_ == nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(read_threads_, ReadThreads::Create(num_read_threads_));
  }
  return read_threads_.get();
}

FileSpace BackingFile::space() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return extents_.space();
}

}  // namespace wavekv
