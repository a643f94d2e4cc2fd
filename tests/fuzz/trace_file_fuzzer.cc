// libFuzzer's entry points: `./wave fuzz`.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/fuzz/fuzz_trace_file.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  wavekv::testing::FuzzTraceFile(data, size).IgnoreError();
  return 0;
}

// Half of the mutations keep the length in front of the header true: without them next to every
// change of the header cuts its JSON short, and nothing behind it is reached.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  uint64_t header_bytes = 0;
  constexpr size_t kLengthBytes = sizeof(header_bytes);
  if (size >= kLengthBytes) std::memcpy(&header_bytes, data, kLengthBytes);
  const bool is_framed = size > kLengthBytes && header_bytes <= size - kLengthBytes;
  if (!is_framed || seed % 2 == 0) return LLVMFuzzerMutate(data, size, max_size);

  const uint8_t* const header = data + kLengthBytes;
  const std::vector<uint8_t> tensors(header + header_bytes,
                                     static_cast<const uint8_t*>(data) + size);
  std::vector<uint8_t> mutated(header, header + header_bytes);
  const size_t header_max = max_size - kLengthBytes;
  mutated.resize(header_max);
  mutated.resize(LLVMFuzzerMutate(mutated.data(), header_bytes, header_max));
  header_bytes = mutated.size();
  std::memcpy(data, &header_bytes, kLengthBytes);
  std::copy(mutated.begin(), mutated.end(), data + kLengthBytes);
  const size_t kept = std::min(tensors.size(), header_max - mutated.size());
  std::copy(tensors.begin(), tensors.begin() + kept, data + kLengthBytes + mutated.size());
  return kLengthBytes + mutated.size() + kept;
}
