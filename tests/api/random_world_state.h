// What a random world believes to exist: tenants, their sequences, who was used last.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_STATE_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/testing/model_sequence.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv::testing {

struct LiveSequence {
  Sequence handle;
  ModelSequence model;
  size_t tenant = 0;
  uint64_t last_use = 0;
};

struct LiveTenant {
  std::string id;
  Tenant handle;
  TenantQuota quota;
  int64_t evicted = 0;  // by quota, ever
  // What it may hold after the present operation: of the arena, and of the file.
  int64_t used_bytes_max = 0;
  int64_t backing_bytes_max = 0;
};

class WorldState {
 public:
  std::vector<LiveTenant> tenants;
  // In the order of creation; pointers to them stay good until they are removed.
  std::vector<std::unique_ptr<LiveSequence>> sequences;

  LiveSequence& Pick(Random& random) const {
    return *sequences[random.Integer(0, static_cast<int64_t>(sequences.size()) - 1)];
  }
  LiveSequence& Add(const Sequence& handle, size_t tenant, ModelSequence model);
  void Touch(LiveSequence& sequence) { sequence.last_use = ++clock_; }
  void Remove(const LiveSequence& sequence);
  int64_t NumSequencesOf(size_t tenant) const;

  // Takes note of the sequences that the engine has evicted. INTERNAL unless their tenants evict
  // their own, `allowed`, none is in `keep`, and all that was used less recently is gone too.
  absl::Status NoteEvictions(bool allowed, const std::vector<const LiveSequence*>& keep);

  // The sequences of handles and of the statistics are these; their lengths are the model's; used
  // and free bytes make the arena. `quiet`: no build runs, so tenants' bytes add up as well, and
  // none has grown beyond its quota since the last call.
  absl::Status Check(const Engine& engine, bool quiet);

 private:
  uint64_t clock_ = 0;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_STATE_H_
