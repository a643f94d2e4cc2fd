#include "buffer/io_error.h"

#include <cerrno>

namespace wavekv {

absl::Status IoError(int error, const std::string& what) {
  // ErrnoToStatus appends the error's words, thread-safe.
  const absl::Status status = absl::ErrnoToStatus(error, what);
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(status.message());
    case EIO:
    case ENXIO:
    case EREMOTEIO:
    case ETIMEDOUT:
      return absl::UnavailableError(status.message());
    default:
      return status;
  }
}

}  // namespace wavekv
