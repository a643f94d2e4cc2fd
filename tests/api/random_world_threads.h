// A random writer, and readers beside it whose answers must be one of those that were true while
// they asked.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_THREADS_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_THREADS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/api/random_world_log.h"
#include "tests/api/random_world_shape.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

struct SharedWorldCounts {
  std::atomic<int64_t> answers{0};  // of readers, compared
  std::atomic<int64_t> forks{0};    // of readers, compared and appended to
  std::atomic<int64_t> writes{0};
  std::atomic<int64_t> refused{0};  // RESOURCE_EXHAUSTED, anybody's
  std::atomic<int64_t> aborted{0};  // second writers, told so
  std::atomic<int64_t> removed{0};  // sequences, by the writer or by eviction
};

class SharedWorld {
 public:
  SharedWorld(uint64_t seed, const WorldShape& shape, int num_readers);
  ~SharedWorld();

  // Until the writer has done so many operations or somebody has met an error, which is returned.
  // In the end everything is removed and nothing may be left.
  absl::Status Run(int64_t num_operations);

  const SharedWorldCounts& counts() const { return counts_; }

 private:
  using Log = std::shared_ptr<SequenceLog>;

  absl::Status Open();
  absl::Status Finish();
  void RunReader(uint64_t seed);
  void Fail(const absl::Status& status);

  absl::Status Write(Random& random);
  absl::Status AppendLayers(Random& random);
  absl::Status AppendToLayer(Random& random, const std::vector<Log>& logs, int layer,
                             const std::vector<int32_t>& cu_seqlens);
  absl::Status Truncate(Random& random);
  absl::Status Replace(size_t slot, bool remove);
  absl::Status DisturbMemory(Random& random);

  absl::Status Read(Random& random);
  absl::Status AttendTo(Random& random, const Log& log);
  absl::Status RetrieveFrom(Random& random, const Log& log);
  absl::Status ForkFrom(Random& random, const Log& log);
  absl::Status UseFork(Random& random, const Sequence& child,
                       const std::vector<SequenceLog::Version>& candidates);
  absl::Status RivalWrite(Random& random, const Log& log);

  // OK for what may be answered to anybody at any time: RESOURCE_EXHAUSTED, ABORTED to a second
  // writer, NOT_FOUND once the sequence is gone.
  absl::Status Tolerate(const absl::Status& status, const Sequence& sequence, bool writes);

  Log Slot(size_t slot) const;

  const uint64_t seed_;
  const WorldShape shape_;
  const int num_readers_;
  std::unique_ptr<Engine> engine_;
  ModelSpec model_;
  std::vector<Tenant> tenants_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<Log> slots_;
  absl::Status error_;

  std::atomic<bool> stop_{false};
  SharedWorldCounts counts_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_THREADS_H_
