// What a failed system call on the backing file means to the caller.
#ifndef WAVEKV_BUFFER_IO_ERROR_H_
#define WAVEKV_BUFFER_IO_ERROR_H_

#include <string>

#include "absl/status/status.h"

namespace wavekv {

// `what` with the words for `error`, an errno. No space (or quota) is RESOURCE_EXHAUSTED; an error
// of the device UNAVAILABLE: the bytes are not to be had now; otherwise as absl::ErrnoToStatus
// says.
absl::Status IoError(int error, const std::string& what);

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_IO_ERROR_H_
