// The fuzzed surface: files that strangers wrote.
#ifndef WAVEKV_TESTS_FUZZ_FUZZ_TRACE_FILE_H_
#define WAVEKV_TESTS_FUZZ_FUZZ_TRACE_FILE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace wavekv::testing {

// Takes the bytes for a trace file, and uses everything that a reader accepts: every tensor is
// converted, every row of every head is loaded. Aborts when a promise of the readers is broken.
// Returns what the readers said of the file.
absl::Status FuzzTraceFile(const uint8_t* data, size_t size);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_FUZZ_FUZZ_TRACE_FILE_H_
