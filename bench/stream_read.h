// The floors of everything that must read memory once: all of it, or pieces here and there.
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

// Reads num_pieces pieces of piece_bytes, a multiple of 64, at random places, each asked for some
// pieces before it is needed; the same ones at each call.
uint64_t RandomRead(absl::Span<const std::byte> bytes, int64_t num_pieces, int64_t piece_bytes,
                    Executor& executor);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_STREAM_READ_H_
