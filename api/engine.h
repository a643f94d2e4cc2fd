// wavekv's front door: an engine stores the KV cache of one model for many tenants and answers
// attention from it.
//
//   auto engine = wavekv::Engine::Open(options);
//   auto tenant = (*engine)->OpenTenant("alice");
//   auto sequence = tenant->CreateSequence();
//   per step:   plan = engine.MakePlan(batch, attend_options)
//   per layer:  engine.Append(batch, layer, k, v), then engine.Attend(plan, layer, q, out, lse)
//
// Shapes. A ragged batch packs the rows of several sequences: sequence i owns rows [cu_seqlens[i],
// cu_seqlens[i + 1]). Rows are the newest tokens of their sequence. Keys come after RoPE; positions
// are the order of appending. Query head h reads kv head h / gqa_group_size. Nothing of the
// caller's tensors is kept.
//
// Threads. Engine and Tenant are thread-safe. A sequence has one writer at a time (Append,
// Truncate, Remove, BuildSegments) and any number of readers (Attend, Retrieve, Fork); a second
// writer gets ABORTED. Readers see the state of a layer at the moment their call began.
//
// Errors. Every mistake of a caller is a Status whose message names the field, what was expected
// and what came; nothing has changed then. Unknown, removed and foreign handles all get NOT_FOUND.
//   INVALID_ARGUMENT    shape, stride, dtype, range, null pointer, NaN or infinity
//   NOT_FOUND           unknown, stale or foreign handle
//   ALREADY_EXISTS      a tenant of that id is open
//   OUT_OF_RANGE        fork or truncate beyond the sequence's length
//   RESOURCE_EXHAUSTED  arena or quota; the message has requested, available and quota bytes
//   FAILED_PRECONDITION layers of a sequence differ in length where they must not
//   ABORTED             a second writer; retry
//   DEADLINE_EXCEEDED   a bounded wait ended
//   UNAVAILABLE         with TierOptions: the device of the file reports an error; retry
//   DATA_LOSS           with TierOptions: rows came back damaged
//   UNIMPLEMENTED       a device or stream this build does not have
#ifndef WAVEKV_API_ENGINE_H_
#define WAVEKV_API_ENGINE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "wavekv/export.h"
#include "wavekv/options.h"
#include "wavekv/stats.h"
#include "wavekv/tensor_view.h"

namespace wavekv {

class StoredSequence;
class TenantStore;
struct PlanState;

// The caller's stream on a device; nullptr on the CPU, where every call has completed when it
// returns.
using Stream = void*;

// A cheap handle to one request's token stream. A default-constructed or removed sequence is not
// valid. The data lives until Tenant::Remove or Engine::CloseTenant, not as long as the handle.
class WAVEKV_EXPORT Sequence {
 public:
  Sequence() = default;

  // Unique within the engine, never reused; 0 for a default-constructed handle.
  uint64_t id() const;
  bool valid() const;
  // Tokens appended to every layer (the shortest layer counts); 0 when not valid.
  int64_t length() const;

 private:
  friend class Engine;
  friend class Tenant;
  explicit Sequence(std::shared_ptr<StoredSequence> stored) : stored_(std::move(stored)) {}

  std::shared_ptr<StoredSequence> stored_;
};

// The rows of a step: cu_seqlens has sequences.size() + 1 entries, starts at 0 and does not
// decrease.
struct RaggedBatch {
  absl::Span<const Sequence> sequences;
  absl::Span<const int32_t> cu_seqlens;
};

// A cheap handle to a tenant; whoever holds it may use the tenant's sequences.
class WAVEKV_EXPORT Tenant {
 public:
  Tenant() = default;  // answers NOT_FOUND to everything

  absl::StatusOr<Sequence> CreateSequence() const;

  // A new sequence whose first prefix_tokens tokens (all, when left out) are those of `parent`.
  // Sealed segments and full growing rows are shared, not copied. The parent's layers must be
  // equally long up to there, else FAILED_PRECONDITION.
  absl::StatusOr<Sequence> Fork(const Sequence& parent,
                                std::optional<int64_t> prefix_tokens = std::nullopt) const;

  // Drops all tokens from new_length on, in every layer: the rollback of speculative decoding.
  // Survivors of a sealed segment become exact again until they are sealed anew.
  absl::Status Truncate(const Sequence& sequence, int64_t new_length) const;

  // Frees the sequence's bytes, zeroed before any reuse, once no running call and no fork reads
  // them.
  absl::Status Remove(const Sequence& sequence) const;

  // A quota below what is in use stops growth; it removes nothing by itself, but for copies in the
  // cache. RESOURCE_EXHAUSTED when the floors of all tenants exceed the cache.
  absl::Status SetQuota(const TenantQuota& quota) const;
  absl::StatusOr<TenantStats> stats() const;

 private:
  friend class Engine;
  explicit Tenant(std::shared_ptr<TenantStore> store) : store_(std::move(store)) {}

  std::shared_ptr<TenantStore> store_;
};

// What a step does, decided once and used for each of its layers: validated handles, budgets and a
// workspace that grows to the largest layer seen and is then reused.
//
// Threads: one Attend or Retrieve at a time per plan, else ABORTED.
class WAVEKV_EXPORT Plan {
 public:
  Plan() = default;
  int64_t num_rows() const;

 private:
  friend class Engine;
  explicit Plan(std::shared_ptr<PlanState> state) : state_(std::move(state)) {}

  std::shared_ptr<PlanState> state_;
};

// One cluster of a ranking.
struct RankedCluster {
  int64_t segment_begin = 0;  // position of the segment's first token
  int64_t cluster = 0;        // within the segment
  int64_t num_tokens = 0;
  float probability = 0.0f;  // by rank score, summed over the group's heads, among sealed clusters
  int64_t num_read = 0;      // of its tokens
};

// Appends of at most this many rows are decode steps (one row, or a few of speculative decoding);
// longer ones are chunks of a prompt.
inline constexpr int kDecodeRowsMax = 16;

// What one (row, kv head) would read exactly.
struct RetrievedTokens {
  std::vector<RankedCluster> clusters;  // of the retrieval or the sketch zone, best first
  std::vector<int64_t> positions;       // of the tokens read, cluster by cluster
  // Of the same tokens, place within their cluster, in which rows are stored: ascending in each.
  std::vector<int64_t> places;
};

class WAVEKV_EXPORT Engine {
 public:
  // Reserves the arena and starts the threads. INVALID_ARGUMENT as ValidateEngineOptions;
  // RESOURCE_EXHAUSTED when arena, cache or threads cannot be had; UNIMPLEMENTED or UNAVAILABLE for
  // a device that this build or machine lacks. With TierOptions also INVALID_ARGUMENT for a cache
  // that is too small for one step, and what the system says of the directory (NOT_FOUND, ..).
  static absl::StatusOr<std::unique_ptr<Engine>> Open(const EngineOptions& options);

  // Waits for running builds. Handles may outlive the engine and answer NOT_FOUND then.
  ~Engine();

  const EngineOptions& options() const;

  // id: 1..128 bytes, opaque. ALREADY_EXISTS when it is open; RESOURCE_EXHAUSTED when the floors of
  // all tenants would exceed the cache.
  absl::StatusOr<Tenant> OpenTenant(absl::string_view id);
  absl::StatusOr<Tenant> OpenTenant(absl::string_view id, const TenantQuota& quota);

  // Removes the tenant's sequences; its handles become stale.
  absl::Status CloseTenant(const Tenant& tenant);

  // Stores the batch's rows as the newest tokens of `layer`: a prompt chunk of any length or decode
  // rows. keys [total_rows, num_kv_heads, head_dim_k], values [total_rows, num_kv_heads,
  // head_dim_v], any DType. All or nothing over the whole batch. No build is waited for.
  absl::Status Append(const RaggedBatch& batch, int layer, const TensorView& keys,
                      const TensorView& values, Stream stream = nullptr);

  // The same from the caller's paged cache, whose table covers each sequence from its first
  // position on: copies the tokens at [length, length + rows) of each sequence, length being what
  // this layer holds now.
  absl::Status AppendPaged(const RaggedBatch& batch, int layer, const PagedView& keys,
                           const PagedView& values, const PageTable& table,
                           Stream stream = nullptr);

  // Seals now, in the background, what lies behind the window in multiples of update_tokens: what
  // Append does by itself when the first decode row follows a prompt.
  absl::Status BuildSegments(const Sequence& sequence);

  // Waits until no segment of the sequence is pending. RESOURCE_EXHAUSTED when one could not be
  // sealed for want of memory or of the backing file (its tokens stay exact); DEADLINE_EXCEEDED
  // after `timeout`.
  absl::Status WaitForBuilds(const Sequence& sequence,
                             absl::Duration timeout = absl::InfiniteDuration());

  // Fixes sequences, row counts and options for the layers of one step.
  absl::StatusOr<Plan> MakePlan(const RaggedBatch& batch, const AttendOptions& options = {});

  // A step of a plan with AttendOptions::reserve_tokens: BeginStep makes room for the batch's rows
  // in every layer and appends them, AppendStep(layer) writes them, Attend(layer) answers; EndStep,
  // or the next BeginStep, ends the step. Rows of a layer hold nothing until their AppendStep.
  //
  // In a CUDA engine AppendStep and Attend only queue kernels, which find sequences and their
  // lengths in device memory: captured in a graph after a first BeginStep, they may be launched
  // anew after every BeginStep on the same stream, for as long as that does not answer
  // FAILED_PRECONDITION because a sequence has outgrown reserve_tokens (nothing has changed then).
  // Tensors are in device memory, the same ones in every launch. Between BeginStep and EndStep no
  // other call changes or forks the sequences of the plan (ABORTED is not given for it); EndStep
  // orders what was queued before whatever the engine queues later, and comes before the plan is
  // destroyed. In a CPU engine the same calls do the same work at once.
  //
  // Errors: as Append and Attend; FAILED_PRECONDITION also for calls out of this order.
  absl::Status BeginStep(const Plan& plan, Stream stream = nullptr);
  absl::Status AppendStep(const Plan& plan, int layer, const TensorView& keys,
                          const TensorView& values, Stream stream = nullptr);
  absl::Status EndStep(const Plan& plan, Stream stream = nullptr);

  // What Attend returned last for the plan; in a CUDA engine, where tensors are in device memory,
  // it returns before the numbers are known: then those of its last call, or of the layers of its
  // last step together. Waits for it.
  absl::StatusOr<AttendStats> ReadStats(const Plan& plan);

  // queries [num_rows, num_q_heads, head_dim_k], not scaled, any DType; output [num_rows,
  // num_q_heads, head_dim_v], any DType; lse and error_estimate [num_rows, num_q_heads] or none.
  // Rows count from the end of the sequence as it is in this layer now: append first. Segments that
  // are not sealed yet are exact, so answers get cheaper and less exact as builds finish;
  // WaitForBuilds makes a step repeatable. A sequence without tokens gives output 0 and lse
  // -infinity. error_estimate: as in AttendStats, of each row and query head; 0 where it is exact.
  absl::StatusOr<AttendStats> Attend(const Plan& plan, int layer, const TensorView& queries,
                                     const MutableTensorView& output, const PerHeadView& lse = {},
                                     const PerHeadView& error_estimate = {},
                                     Stream stream = nullptr);

  // The retrieval zones of Attend, without attending to them: element row * num_kv_heads + kv_head.
  // With a target_error the steady zone is attended, as the target is relative to the output.
  absl::StatusOr<std::vector<RetrievedTokens>> Retrieve(const Plan& plan, int layer,
                                                        const TensorView& queries,
                                                        Stream stream = nullptr);

  // As wavekv::MergeStates (wavekv/merge_states.h), for states that this engine's device holds as
  // well: tensors all in device memory are merged on `stream`, where a NaN among the lses marks an
  // empty state; all in host memory, at once.
  absl::Status MergeStates(absl::Span<const TensorView> outputs, absl::Span<const PerHeadView> lses,
                           LseBase base, const MutableTensorView& output, const PerHeadView& lse,
                           Stream stream = nullptr);

  EngineStats stats() const;

  // The statistics, those of the tenants with them, and a sequence's layers and segments, as
  // protobuf text: messages EngineStats of proto/engine_stats.proto and SequenceMetadata of
  // proto/metadata.proto. StatsProto is the statistics' message serialised.
  std::string StatsText() const;
  std::string StatsProto() const;
  absl::StatusOr<std::string> Describe(const Sequence& sequence) const;

  // Writes the events so far to `path`. FAILED_PRECONDITION unless EngineOptions::trace_path is
  // set; INVALID_ARGUMENT when the file cannot be written.
  absl::Status WriteTrace(const std::string& path) const;

  // The statistics in Prometheus text format, names wavekv_*. Tenants appear as opaque labels.
  std::string PrometheusText() const;

 private:
  friend class EngineTestPeer;
  struct WAVEKV_HIDDEN Impl;
  WAVEKV_HIDDEN explicit Engine(std::unique_ptr<Impl> impl);

  WAVEKV_HIDDEN static std::vector<std::shared_ptr<StoredSequence>> Stored(
      absl::Span<const Sequence> sequences);

  std::unique_ptr<Impl> impl_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_ENGINE_H_
