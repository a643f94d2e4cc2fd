// Reads through io_uring.
#ifndef WAVEKV_BUFFER_URING_READER_H_
#define WAVEKV_BUFFER_URING_READER_H_

#include <liburing.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "buffer/block_reader.h"

namespace wavekv {

// A ring of its own, with the file registered and, where the kernel takes it, the targets' memory.
// Needs Linux 5.11 (waits with a time-out in one call).
class UringReader final : public BlockReader {
 public:
  // OK when a ring can be had here. Containers often forbid it (EPERM), old kernels lack it
  // (ENOSYS).
  static absl::Status Probe();

  // As IoError says when there is no ring for us.
  static absl::StatusOr<std::unique_ptr<UringReader>> Create(const Source& source,
                                                             const ReaderOptions& options);
  ~UringReader() override;

  IoEngine engine() const override { return IoEngine::kIoUring; }
  bool uses_registered_memory() const override { return !memory_.empty(); }

 private:
  UringReader(const Source& source, const ReaderOptions& options);

  void Pump() override;
  void Block(int64_t at_least, TimePoint deadline) override;

  // Reads of a registered part of memory_ name it by number; -1 when the target is in none.
  int RegisteredPart(const iovec& part) const;
  void RegisterMemory(absl::Span<std::byte> memory);
  void Reap();
  // Hands over what is prepared; what the kernel refuses for good fails with its error.
  void SubmitPrepared();
  void FailPrepared(int error);

  io_uring ring_ = {};
  std::vector<Parts> parts_;  // of each entry of the submission queue
  bool has_ring_ = false;
  bool has_registered_file_ = false;
  int num_refusals_ = 0;          // in a row
  absl::Span<std::byte> memory_;  // registered, in parts of kPartBytes
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_URING_READER_H_
