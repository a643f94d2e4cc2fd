// What a step read, and what an engine holds.
#ifndef WAVEKV_API_STATS_H_
#define WAVEKV_API_STATS_H_

#include <cstdint>

namespace wavekv {

// One Attend call. Tokens and bytes are summed over rows and kv heads; a kv head's bytes count once
// for its whole GQA group, as they are read once.
struct AttendStats {
  int64_t rows = 0;              // query rows answered
  int64_t tokens_visible = 0;    // what exact attention would read
  int64_t tokens_exact = 0;      // read exactly: steady zone and retrieval zone
  int64_t tokens_retrieved = 0;  // of these, in the retrieval zone
  int64_t tokens_sketched = 0;   // whose codes were read, the retrieved ones among them
  int64_t tokens_estimated = 0;  // answered from codes and cluster statistics
  int64_t tokens_degraded =
      0;  // of these, chosen to be read, but late or unreadable (miss_deadline)
  int64_t clusters_scored = 0;
  int64_t clusters_retrieved = 0;
  int64_t bytes_dense = 0;  // K and V bytes exact attention would read
  int64_t bytes_read = 0;   // K, V and index bytes this call read

  // With TierOptions.
  int64_t blocks_hit = 0;       // found in the cache
  int64_t blocks_missed = 0;    // not found; several rows of a step may miss the same
  int64_t tier_bytes_read = 0;  // from the backing file

  // Per query head and row, then averaged or maximised. Mass: share of the softmax that was
  // estimated. Error: predicted |output - exact| / |exact| (docs/wave_index.md, "Error estimate");
  // 0 when nothing was estimated. A prediction, not a bound.
  double estimated_mass_mean = 0.0;
  double estimated_mass_max = 0.0;
  double error_estimate_mean = 0.0;
  double error_estimate_max = 0.0;
};

struct TenantStats {
  int64_t sequences = 0;
  int64_t host_bytes_used = 0;
  int64_t host_bytes_quota = 0;  // 0: the whole arena
  int64_t evicted_sequences_total = 0;
  int64_t quota_rejects_total = 0;  // of bytes and of sequences, also where eviction then helped

  // With TierOptions.
  int64_t backing_bytes_used = 0;
  int64_t backing_bytes_quota = 0;  // 0: no ceiling
  int64_t backing_rejects_total = 0;
  int64_t cache_bytes_used = 0;
  int64_t cache_bytes_quota = 0;     // 0: the whole cache
  int64_t cache_bytes_reserved = 0;  // its floor
  int64_t block_hits_total = 0;
  int64_t block_misses_total = 0;
  int64_t blocks_admitted_total = 0;
  int64_t blocks_rejected_total = 0;  // read and found no slot
  // Blocks that gave way: to others of the tenant as it met its ceiling, to anybody's, and as
  // SetQuota lowered the ceiling.
  int64_t evictions_by_ceiling_total = 0;
  int64_t evictions_by_pressure_total = 0;
  int64_t evictions_by_quota_total = 0;
};

// Invariant: arena_bytes_used + arena_bytes_free = arena_bytes, and, while no call or build runs,
// arena_bytes_used is the sum of host_bytes_used over all tenants.
struct EngineStats {
  int64_t tenants = 0;
  int64_t sequences = 0;
  int64_t arena_bytes = 0;
  int64_t arena_bytes_used = 0;
  int64_t arena_bytes_free = 0;

  int64_t segments_sealed = 0;        // live
  int64_t segments_pending = 0;       // to be sealed, or runs to be merged: queued or in work
  int64_t segments_sealed_total = 0;  // ever
  int64_t seal_failures_total = 0;    // for want of memory or file; such tokens stay exact
  int64_t segment_merges_total = 0;   // runs of small segments replaced by one
  int64_t merge_failures_total = 0;   // for want of memory or file; the small segments stay
  double build_seconds_total = 0.0;   // of sealing and merging

  int64_t appended_tokens_total = 0;  // per layer
  int64_t attend_calls_total = 0;
  int64_t attend_rows_total = 0;
  int64_t tokens_visible_total = 0;
  int64_t tokens_exact_total = 0;
  int64_t tokens_estimated_total = 0;
  int64_t tokens_degraded_total = 0;
  int64_t bytes_dense_total = 0;
  int64_t bytes_read_total = 0;
  double attend_seconds_total = 0.0;

  // With TierOptions; blocks' hits, misses and evictions are the tenants'.
  int64_t block_bytes = 0;
  int64_t cache_bytes = 0;  // slots of the cache
  int64_t cache_bytes_free = 0;
  int64_t cache_bytes_pinned = 0;     // that calls read now
  int64_t staging_bytes = 0;          // for blocks that are being read
  int64_t reads_pending = 0;          // blocks asked for that have not come
  int64_t backing_bytes_used = 0;     // of the file
  int64_t backing_bytes_free = 0;     // holes in it
  int64_t blocks_read_total = 0;      // for misses
  int64_t tier_bytes_read_total = 0;  // blocks, and segments as a whole for merges and truncation
  int64_t tier_bytes_written_total = 0;
  int64_t read_failures_total = 0;
  double tiers_open_seconds = 0.0;  // that Open took for file and cache
};

}  // namespace wavekv

#endif  // WAVEKV_API_STATS_H_
