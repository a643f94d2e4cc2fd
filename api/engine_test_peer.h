// What tests may do to an engine, and see of it, that users may not.
#ifndef WAVEKV_API_ENGINE_TEST_PEER_H_
#define WAVEKV_API_ENGINE_TEST_PEER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "buffer/backing_faults.h"
#include "wavekv/engine.h"

namespace wavekv {

class Gpu;

// Threads: safe, as Engine.
class EngineTestPeer {
 public:
  // Makes engines of Device::kCuda that are opened from now on run on this one; nullptr: on CUDA's.
  static void UseGpu(std::shared_ptr<Gpu> gpu);

  // After `after` more allocations in the arena, the next `count` are refused as if it was full,
  // whoever makes them: an append or a background build. (0, 0) ends it.
  static void FailAllocations(Engine& engine, int64_t after, int64_t count);

  // Whether every byte of the arena that nobody owns is zero. Reads the whole of it.
  static bool FreeBytesAreZero(const Engine& engine);

  // Plants a failure under the backing file. REQUIRES: the engine has TierOptions.
  static BackingFaults& Faults(Engine& engine);
  // Waits until the cache has what ended calls have read, and until kernels have read it.
  static void WaitUntilAdmitted(const Engine& engine);
  // Bytes of the file that a tenant's segments hold. REQUIRES: the tenant is open, and the engine
  // has TierOptions.
  static int64_t BackingBytesUsed(const Engine& engine, const std::string& tenant_id);
  // Takes all blocks out of the cache that nobody reads.
  static void EmptyCache(Engine& engine);

  // The arena's memory, for a benchmark that puts a file in its place.
  static absl::Span<std::byte> ArenaMemory(Engine& engine);

  // No build begins while paused; those that have begun end as ever. For tests whose outcome must
  // not depend on when a build thread runs.
  static void PauseBuilds(Engine& engine, bool paused);

  // [begin, end) of the sequence's sealed segments in this layer, in position order.
  static std::vector<std::pair<int64_t, int64_t>> SealedRuns(const Sequence& sequence, int layer);

  // INTERNAL naming the first invariant of the storage that does not hold: positions without gaps,
  // sealed segments that hold each of their positions once, every extent charged once and to the
  // tenant that holds it, sums that agree with the accounts, the arena, the tiers and the
  // statistics.
  // REQUIRES: no call and no build runs.
  static absl::Status Audit(const Engine& engine);
};

}  // namespace wavekv

#endif  // WAVEKV_API_ENGINE_TEST_PEER_H_
