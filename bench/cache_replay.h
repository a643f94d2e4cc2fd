// Replays what steps read against caches of a given size: who would have hit.
#ifndef WAVEKV_BENCH_CACHE_REPLAY_H_
#define WAVEKV_BENCH_CACHE_REPLAY_H_

#include <cstdint>
#include <vector>

#include "buffer/replacement_policy.h"

namespace wavekv::bench {

// What is looked up together: all hits and misses are known, and pinned, before the first miss is
// admitted, as in an engine whose admission runs behind the step.
struct Batch {
  std::vector<uint32_t> reads;  // units, each once, the most important first
  std::vector<uint32_t> hints;  // units that the next step may read
  int64_t step = 0;             // ascending; the batches of a step are its layers
  bool is_counted = true;       // else it warms the cache
};

// The reads of one unit of caching: tokens, blocks or clusters, numbered as they are stored.
struct UnitTrace {
  std::vector<int32_t> unit_bytes;
  std::vector<Batch> batches;

  int64_t total_bytes() const;
};

struct ReplayResult {
  int64_t num_reads = 0;  // what follows is of counted batches
  int64_t num_hits = 0;
  int64_t bytes_read = 0;
  int64_t bytes_missed = 0;
  int64_t num_requests = 0;  // runs of misses that follow one another in a batch, by number
  int64_t bytes_hinted = 0;  // fetched for hints

  double hit_ratio() const {
    return num_reads == 0 ? 0.0 : static_cast<double>(num_hits) / static_cast<double>(num_reads);
  }
  void Add(const ReplayResult& other);
};

struct ReplayOptions {
  ReplacementKind kind = ReplacementKind::kLru;
  // Units that were read in a step do not give way to later misses of the same step. Without it,
  // only a batch's own units are safe from its misses.
  bool keep_step = true;
  // The policy hears of the steps that read a unit when it names it as its victim, which then
  // stays, as in BlockCache; else at once.
  bool touch_lazily = false;
  bool use_hints = false;  // fetch those that are not there, and admit them as misses
};

// A cache of cache_bytes that starts empty. Misses are admitted best first while room can be made
// for them, and are read once and forgotten when it cannot; a unit takes unit_bytes, in whatever
// place.
ReplayResult Replay(const UnitTrace& trace, const ReplayOptions& options, int64_t cache_bytes);

// The same with Belady's choice: what is read again last, or never, goes first, and is not even
// admitted. The most hits that any policy can have when all units have the same bytes; a good
// choice, not always the best, when they have not.
ReplayResult ReplayBelady(const UnitTrace& trace, int64_t cache_bytes);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_CACHE_REPLAY_H_
