// A limit on the memory of this process, for benchmarks of what a kernel does under pressure.
#ifndef WAVEKV_BENCH_MEMORY_PRESSURE_H_
#define WAVEKV_BENCH_MEMORY_PRESSURE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace wavekv::bench {

// A control group of its own (version 1 or 2) that the process is in while the object lives. What
// the process held before is not counted; pages of files that it touches from now on are.
class MemoryPressure {
 public:
  // PERMISSION_DENIED where groups cannot be made: not root, or no such file system.
  static absl::StatusOr<std::unique_ptr<MemoryPressure>> Create(int64_t limit_bytes);
  ~MemoryPressure();

  MemoryPressure(const MemoryPressure&) = delete;
  MemoryPressure& operator=(const MemoryPressure&) = delete;

 private:
  MemoryPressure(std::string home, std::string group)
      : home_(std::move(home)), group_(std::move(group)) {}

  const std::string home_;   // where the process came from
  const std::string group_;  // ours
};

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_MEMORY_PRESSURE_H_
