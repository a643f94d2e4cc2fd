// Random operations on an engine and on the simplest model of it, compared after every step.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/api/random_world_shape.h"
#include "tests/api/random_world_state.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

// Whether the walk went where it was meant to.
struct WorldCounts {
  int64_t appended = 0;       // calls that succeeded
  int64_t attended = 0;       // calls, all compared
  int64_t estimated = 0;      // of these, answered at least in part by estimation
  int64_t retrieved = 0;      // calls
  int64_t refused = 0;        // RESOURCE_EXHAUSTED
  int64_t device_errors = 0;  // calls
  int64_t evicted = 0;        // sequences
  int64_t sealed = 0;         // segments
  int64_t seal_failures = 0;  // builds that found no memory
  int64_t merged = 0;         // runs of segments
};

std::string ToString(const WorldCounts& counts);

// Calls of one thread: every answer is known.
//
// Builds: with kBetweenSteps they run while no call does, some steps after they were cut, and
// everything follows from the seed. With kAnyTime they run beside the calls, as they do for users;
// answers are as certain, but when memory runs out depends on the build thread.
class RandomWorld {
 public:
  enum class Builds { kBetweenSteps, kAnyTime };

  RandomWorld(uint64_t seed, const WorldShape& shape, Builds builds);
  ~RandomWorld();

  // One operation, then the invariants. INTERNAL saying what the engine did wrong; there is no
  // going on then.
  absl::Status Step();

  // Removes everything; not a byte may be left.
  absl::Status Finish();

  WorldCounts counts() const;
  // The last operations, one a line.
  std::string History() const;

 private:
  absl::Status OpenTenants();
  absl::Status RunOperation();

  absl::Status Create();
  absl::Status Append();
  absl::Status AppendToLayer(const std::vector<LiveSequence*>& chosen,
                             const std::vector<int32_t>& cu_seqlens, int layer, bool* appended);
  absl::Status AppendUnsound();
  absl::Status Fork();
  absl::Status Truncate(LiveSequence& sequence, int64_t new_length);
  absl::Status TruncateSome();
  absl::Status Remove();
  absl::Status BuildAndWait();
  absl::Status Attend();
  absl::Status Retrieve();
  absl::Status SetQuota();
  absl::Status ReopenTenant();
  absl::Status UseStaleHandles();
  absl::Status RunWithFailingAllocations();
  absl::Status RunWithFailingDevice();

  TenantQuota DrawQuota();
  std::vector<LiveSequence*> DrawBatch(int64_t num_max);
  void Note(std::string operation);
  // Whether the failing device explains the error.
  bool IsOfDevice(const absl::Status& status) const;

  // OK is true, RESOURCE_EXHAUSTED and what a failing device explains false, all else an error.
  // `keep` and `may_evict` as of WorldState::NoteEvictions.
  absl::StatusOr<bool> Accepted(const absl::Status& status,
                                const std::vector<const LiveSequence*>& keep, bool may_evict);
  absl::Status Expect(absl::StatusCode expected, const absl::Status& got);
  // Lets builds run until none is left.
  void Drain();
  absl::Status CheckInvariants();

  Random random_;
  const WorldShape shape_;
  const Builds builds_;
  std::unique_ptr<Engine> engine_;
  ModelSpec model_;
  WorldState state_;
  Sequence stale_;  // removed, evicted or of a closed tenant
  Tenant closed_tenant_;
  WorldCounts counts_;
  int64_t step_ = 0;
  bool device_fails_ = false;
  std::deque<std::string> history_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_H_
