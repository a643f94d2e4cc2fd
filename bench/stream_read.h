// The floor of everything that must read memory once.
#ifndef WAVEKV_BENCH_STREAM_READ_H_
#define WAVEKV_BENCH_STREAM_READ_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "wavekv/executor.h"

namespace wavekv::bench {

// Reads all of `bytes`, 64-byte aligned, with the executor's threads, and returns a sum that keeps
// the compiler from leaving the reads out.
uint64_t StreamRead(absl::Span<const std::byte> bytes, Executor& executor);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_STREAM_READ_H_
