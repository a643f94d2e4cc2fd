// Pages of fresh memory, touched before somebody waits for them.
#ifndef WAVEKV_STORAGE_PREFAULT_H_
#define WAVEKV_STORAGE_PREFAULT_H_

#include <cstddef>
#include <cstdint>

namespace wavekv {

// Writes a zero into each page of [base, base + bytes), which nobody uses yet and which are zero
// already, by `num_threads` threads; 0: does nothing. The memory has to be there: the system ends
// a process that touches more than it may have.
void PrefaultPages(std::byte* base, int64_t bytes, int num_threads);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_PREFAULT_H_
