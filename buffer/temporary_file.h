// A file that nobody else sees and that no crash leaves behind.
#ifndef WAVEKV_BUFFER_TEMPORARY_FILE_H_
#define WAVEKV_BUFFER_TEMPORARY_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wavekv {

// Owns the descriptor of a file without a name: it is gone with its last descriptor, so also when
// the process is killed or the machine stops.
class TemporaryFile {
 public:
  // An empty file on the file system of `directory`, readable and writable by the caller's user
  // only. `unnamed` false takes the way of file systems without O_TMPFILE: the file is created and
  // unlinked at once, and names that a crash between the two left behind are removed. Errors name
  // the path: NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED, as errno says.
  static absl::StatusOr<TemporaryFile> Create(const std::string& directory, bool unnamed = true);
  ~TemporaryFile();

  TemporaryFile(TemporaryFile&& other) noexcept;
  TemporaryFile& operator=(TemporaryFile&&) = delete;

  // Reads and writes bypass the page cache from now on, if the file system takes those that are
  // multiples of `alignment_bytes` in offset, size and address; false where it does not. It is
  // tried with a block that is written and read. REQUIRES: the file is empty.
  bool TryDirect(int64_t alignment_bytes);

  int fd() const { return fd_; }

 private:
  explicit TemporaryFile(int fd) : fd_(fd) {}

  int fd_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_TEMPORARY_FILE_H_
