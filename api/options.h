// What an engine is opened with, and what one step asks for.
#ifndef WAVEKV_API_OPTIONS_H_
#define WAVEKV_API_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "wavekv/executor.h"
#include "wavekv/export.h"
#include "wavekv/model_spec.h"
#include "wavekv/types.h"

namespace wavekv {

// How segments are cut and clustered. Defaults are RetroInfer's (arXiv 2505.02922) unless said.
struct IndexOptions {
  int64_t segment_tokens = 8192;  // cut while a prompt is appended; a multiple of 64, at most 65536
  int64_t update_tokens = 1024;   // cut while tokens are generated; divides segment_tokens
  int tokens_per_cluster = 16;    // average
  int cluster_tokens_max = 64;    // larger clusters are split (the paper has no cap)
  int kmeans_iterations = 2;      // a round fewer than clusters get; docs/wave_index.md
  int64_t sink_tokens = 4;        // first tokens of a sequence, always attended exactly
  int64_t window_tokens = 64;     // last tokens of a sequence, never sealed
  // Neighbouring segments that were cut while tokens were generated are merged, once they reach
  // segment_tokens, into one that is clustered as if it had been appended at once.
  bool merge_segments = true;
  int clusters_per_super = 16;                            // average
  StatisticsFormat statistics = StatisticsFormat::kInt4;  // of stored centroids and value means
  // Of a key's element in the token codes: 1, 2 or 4; 0: 2 for keys of up to 64 elements, which say
  // less in one bit each, and 1 for longer ones.
  int code_bits = 0;
  uint64_t seed = 1;
};

// What a tenant may use. A full quota is answered as on_limit says, never otherwise.
struct TenantQuota {
  enum class OnLimit : uint8_t {
    kReject = 1,  // the call fails with RESOURCE_EXHAUSTED
    kEvictOwn =
        2,  // the tenant's least recently used sequences, not those of the call, are removed first
  };

  int64_t host_bytes = 0;     // ceiling of the tenant's share of the arena; 0 means the whole arena
  int64_t max_sequences = 0;  // 0 means no ceiling
  OnLimit on_limit = OnLimit::kReject;

  // With TierOptions. A full backing_bytes keeps segments from being sealed, which then stay in the
  // arena; the others only move hits from one tenant to another.
  int64_t backing_bytes = 0;         // ceiling in the backing file; 0 means no ceiling
  int64_t cache_bytes = 0;           // ceiling in the cache; 0 means the whole cache
  int64_t reserved_cache_bytes = 0;  // floor: what of the tenant's is within it stays in the cache
  // Of its claim on what is beyond the floors of all.
  double cache_weight = 1.0;
};

// Rows of sealed segments in a file, and a cache of some of them in DRAM, in place of the arena:
// then only indexes and what is not sealed yet lie there. No result changes by it, whatever is in
// the cache; steps wait for what is not (docs/wave_buffer.md).
struct TierOptions {
  // Where the file is, on a local SSD. It has no name and is gone with the engine, also after a
  // crash. Empty: all stays in the arena.
  std::string directory;
  int64_t backing_bytes = 0;  // of the file at most; 0: as many as the file system has
  // DRAM for copies of rows: most for those that are kept, a sixty-fourth or what steps need at
  // once for those that are being read. Reserved at Open, never exceeded.
  int64_t cache_bytes = 0;
  // Tokens of a block, the unit of reading and caching, at most index.update_tokens; 0: as many as
  // fit 2 KiB, which is 4 for head_dim 128 in 16 bits.
  int64_t block_tokens = 0;
  std::string replacement = "lru";  // or "slru", "s3fifo"
  int prefault_threads = 0;         // that touch the cache's pages at Open; 0: steps do
};

// Of a Device::kCuda engine. All its memory is reserved at Open.
struct GpuOptions {
  int device = 0;  // as the CUDA runtime numbers them, from 0 on
  // Device memory beside the arena: what steps and builds work in. 0: what builds need, and a
  // quarter of the arena, at least 64 MiB and at most 2 GiB, for steps.
  int64_t workspace_bytes = 0;
  // Pinned host memory through which small tables and tensors of the host go to the device; at
  // least 1 MiB.
  int64_t staging_bytes = int64_t{64} << 20;
};

struct EngineOptions {
  ModelSpec model;
  IndexOptions index;
  int64_t arena_bytes = 0;  // all KV bytes and indexes live here; reserved at Open, never exceeded
  TierOptions tiers;        // but for rows of sealed segments, if a directory is given
  int worker_threads = 0;   // of Append and Attend; 0 means one per processor
  int build_threads = 1;    // that seal segments in the background; at least 1
  // That touch the arena's pages at Open, which takes memory from the system at once and Open
  // longer; 0: each page costs the call that uses it first. A device's memory is there anyway.
  int prefault_threads = 0;
  std::shared_ptr<Executor> executor;  // the caller's own threads in place of worker_threads
  TenantQuota default_quota;           // of tenants that are opened without one
  // kCuda: the arena is the device's memory, and arena_bytes and TenantQuota::host_bytes are bytes
  // of it. TierOptions are UNIMPLEMENTED there.
  Device device = Device::kCpu;
  GpuOptions gpu;
  // Where the engine writes, when it closes, what its calls and builds did when: Chrome's trace
  // JSON of the newest 65,536 events, for chrome://tracing or ui.perfetto.dev. Empty: nothing is
  // kept. Each engine needs a path of its own. INVALID_ARGUMENT from Open when the file cannot be
  // written.
  std::string trace_path;
};

// INVALID_ARGUMENT naming the first field that is out of range, with expected and got.
WAVEKV_EXPORT absl::Status ValidateEngineOptions(const EngineOptions& options);

// INVALID_ARGUMENT naming the field.
WAVEKV_EXPORT absl::Status ValidateTenantQuota(const TenantQuota& quota);

// An arena_bytes that holds num_tokens tokens in every layer, sealed, with their indexes, at most
// num_sequences growing tails, and the segments that are being built: an estimate from above for
// sizing, as clusters are split by the data. With TierOptions rows are in the arena only until they
// are sealed: a prompt that is appended faster fills it, Append says RESOURCE_EXHAUSTED, and goes
// on after WaitForBuilds. Depends on the device. REQUIRES: valid options but for arena_bytes.
WAVEKV_EXPORT int64_t ArenaBytesFor(const EngineOptions& options, int64_t num_tokens,
                                    int64_t num_sequences = 1);

// From protobuf text (proto/engine_config.proto). Fields left out keep the defaults above. Errors
// name line and column: INVALID_ARGUMENT for text that does not parse or validate, NOT_FOUND for a
// missing file.
WAVEKV_EXPORT absl::StatusOr<EngineOptions> ParseEngineOptions(absl::string_view text);
WAVEKV_EXPORT absl::StatusOr<EngineOptions> LoadEngineOptions(const std::string& path);

// A part of the sealed tokens of a sequence.
class WAVEKV_EXPORT Budget {
 public:
  // A share in [0, 1]; 1 means all of them.
  static constexpr Budget Ratio(double ratio) { return Budget(ratio, -1); }
  // A number of tokens; all of them when there are fewer, none when it is negative.
  static constexpr Budget Tokens(int64_t tokens) { return Budget(0.0, tokens < 0 ? 0 : tokens); }
  static constexpr Budget All() { return Ratio(1.0); }

  constexpr bool is_ratio() const { return tokens_ < 0; }
  constexpr double ratio() const { return ratio_; }
  constexpr int64_t tokens() const { return tokens_; }

  // Tokens out of num_tokens; a positive ratio asks for at least one.
  int64_t Resolve(int64_t num_tokens) const;

 private:
  constexpr Budget(double ratio, int64_t tokens) : ratio_(ratio), tokens_(tokens) {}

  double ratio_;
  int64_t tokens_;
};

struct AttendOptions {
  Zones zones = Zones::kSketch;
  // Sealed tokens that are attended exactly: single tokens, or whole clusters for kPaper and
  // kClusters, best first. Budget::All() is exact attention.
  Budget retrieval = Budget::Ratio(0.018);
  // kSketch: sealed tokens, in whole clusters, best first, whose codes are read. The retrieved ones
  // are chosen among them, so at least as many are read (and the rest of a cluster of which more
  // than half is chosen); the others are answered by their masses by
  // code and their clusters' value means. What is outside is answered as kClusters answers what is
  // outside of `estimation`.
  Budget sketch = Budget::Ratio(0.25);
  // kPaper and kClusters: sealed tokens, in whole clusters, next best, that are answered by the
  // estimated mass and the value mean of their own cluster. The rest is left out by kPaper, and
  // answered by kClusters with estimated masses and value means of super-clusters.
  Budget estimation = Budget::Ratio(0.232);
  // Sealed tokens, in whole super-clusters, best first, whose clusters are looked at; at least as
  // many as the other budgets need. All: every cluster is. Below, centroids of the clusters
  // outside are not read, and these are answered by their super-cluster's mass: fewer bytes, but a
  // token that its super-cluster does not recommend cannot be found.
  Budget open = Budget::All();
  // Read only as much as it takes for about this relative error (AttendStats::error_estimate_*),
  // for every query head of a GQA group: `retrieval` and `sketch` become what is read at most. 0:
  // read what they say. kSketch and kClusters only. An estimate, not a bound.
  double target_error = 0.0;
  // Rows that see fewer sealed tokens are attended exactly: to rank so few takes as long as to read
  // them all (docs/report.md). 0: never. -1: 2,048, or twice index.update_tokens where that is
  // less; but 0 with a miss_deadline, as only zones can do without rows that are late. A GPU ranks
  // always: there -1 is 0, and more is UNIMPLEMENTED. So does Retrieve.
  int64_t exact_below_tokens = -1;
  // Not 0: the plan is for steps between BeginStep and EndStep, and has room for sequences of up to
  // so many tokens at addresses that stay, so that a step can be captured in a CUDA graph. Each
  // sequence of the batch has at most kDecodeRowsMax rows.
  int64_t reserve_tokens = 0;
  // kSecondOrder errs a third less on real keys (docs/wave_index.md); with kLowerBound every
  // cluster's estimated mass is a lower bound of the true one, up to the rounding of the stored
  // centroids, and so is the log-sum-exp returned for kClusters. kPaper always takes kLowerBound.
  MassEstimate mass = MassEstimate::kSecondOrder;
  // With TierOptions: how long the call waits for rows. Those that have not come by then, or cannot
  // be read, are answered from their cluster's statistics, as if they had not been chosen, and
  // counted in AttendStats::tokens_degraded. Where they are to be attended exactly (Budget::All, or
  // a row that sees part of a sealed segment) late ones are DEADLINE_EXCEEDED, and those that
  // cannot be read UNAVAILABLE or DATA_LOSS. Few calls read at a time (docs/wave_buffer.md); one
  // that gets no turn by then finds no row. Infinite: all rows are waited for, so that results do
  // not depend on the device, and a failed read fails the call.
  absl::Duration miss_deadline = absl::InfiniteDuration();
  LseBase lse_base = LseBase::kE;
  // Row r of the n rows of a sequence sees all but its last n - 1 - r tokens; false: all tokens.
  bool causal = true;

  // RetroInfer (arXiv 2505.02922) as published.
  static AttendOptions Paper() {
    AttendOptions options;
    options.zones = Zones::kPaper;
    options.mass = MassEstimate::kLowerBound;
    options.exact_below_tokens = 0;
    return options;
  }

  static AttendOptions Clusters() {
    AttendOptions options;
    options.zones = Zones::kClusters;
    return options;
  }

  static AttendOptions Exact() {
    AttendOptions options;
    options.retrieval = Budget::All();
    return options;
  }
};

// INVALID_ARGUMENT naming the field.
WAVEKV_EXPORT absl::Status ValidateAttendOptions(const AttendOptions& options);

}  // namespace wavekv

#endif  // WAVEKV_API_OPTIONS_H_
