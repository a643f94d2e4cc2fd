// What one sequence has held over time, for readers beside its writer.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_LOG_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_LOG_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/testing/model_sequence.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// What one sequence has held, version by version, written by the thread that writes to it.
//
// Threads: one writer, any number of readers.
class SequenceLog {
 public:
  using Version = std::shared_ptr<const ModelSequence>;

  SequenceLog(Sequence handle, size_t tenant, ModelSequence empty);

  const Sequence& handle() const { return handle_; }
  size_t tenant() const { return tenant_; }

  Version latest() const;
  // From now on the engine may hold `next`; Confirm says that it does, Withdraw that it never did.
  void Announce(ModelSequence next);
  void Confirm();
  void Withdraw();

  // To be taken before a call begins.
  int64_t Now() const;
  // All versions that may have been current at some time since `since`; none when that is too long
  // ago to be remembered.
  std::vector<Version> Since(int64_t since) const;

 private:
  const Sequence handle_;
  const size_t tenant_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::deque<Version> versions_;
  int64_t first_ = 0;  // number of versions_.front()
  bool announced_ = false;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_LOG_H_
