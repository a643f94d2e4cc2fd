// Tenants and their sequences: who exists, who may write, who pays.
#ifndef WAVEKV_STORAGE_TENANT_STORE_H_
#define WAVEKV_STORAGE_TENANT_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/layer_cache.h"
#include "storage/memory_account.h"

namespace wavekv {

class TenantStore;

// What all tenants of an engine share.
struct StoreContext {
  ModelSpec model;
  CutRule cut_rule;
  std::shared_ptr<Arena> arena;
  // Waits for what keeps freed bytes of the arena from being free, if anything does.
  std::function<bool()> await_releases;
  std::atomic<uint64_t> next_sequence_id{1};
  std::atomic<uint64_t> clock{1};  // ticks at every use of a sequence; orders them by recency
};

// One request's token stream: a LayerCache per layer.
//
// Threads: writes are guarded by SequenceWriter; everything else may be called at any time.
class StoredSequence {
 public:
  StoredSequence(std::shared_ptr<StoreContext> context, SealTarget seal_target,
                 std::weak_ptr<TenantStore> tenant);

  uint64_t id() const { return id_; }
  // nullptr when the tenant is gone.
  std::shared_ptr<TenantStore> tenant() const { return tenant_.lock(); }
  const StoreContext* context() const { return context_.get(); }
  MemoryAccount& account() const { return *seal_target_.account; }
  const std::shared_ptr<MemoryAccount>& shared_account() const { return seal_target_.account; }
  // Of its segments.
  const SealTarget& seal_target() const { return seal_target_; }

  int num_layers() const { return static_cast<int>(layers_.size()); }
  LayerCache& layer(int layer) { return *layers_[layer]; }
  const LayerCache& layer(int layer) const { return *layers_[layer]; }

  // Tokens in the shortest layer.
  int64_t length() const;

  bool removed() const { return removed_.load(std::memory_order_acquire); }

  // Marks the sequence as just used.
  void Touch() { last_use_.store(context_->clock.fetch_add(1), std::memory_order_relaxed); }
  uint64_t last_use() const { return last_use_.load(std::memory_order_relaxed); }

 private:
  friend class SequenceWriter;
  friend class TenantStore;

  // Lets go of all tokens; the handle is stale from now on.
  void RemoveContents();

  const std::shared_ptr<StoreContext> context_;
  const SealTarget seal_target_;
  const std::weak_ptr<TenantStore> tenant_;
  const uint64_t id_;
  std::vector<std::unique_ptr<LayerCache>> layers_;

  std::atomic<bool> writing_{false};
  std::atomic<bool> removed_{false};
  std::atomic<uint64_t> last_use_{0};
};

// The right to write to a sequence, held for the scope of a call.
class SequenceWriter {
 public:
  // ABORTED when another call writes to the sequence, NOT_FOUND when it was removed.
  static absl::StatusOr<SequenceWriter> Acquire(std::shared_ptr<StoredSequence> sequence);
  // For closing, which must not fail: the sequence counts as removed from here on, and the present
  // writer, if any, is waited for.
  static SequenceWriter AcquireForClosing(std::shared_ptr<StoredSequence> sequence);

  SequenceWriter(SequenceWriter&& other) noexcept : sequence_(std::move(other.sequence_)) {}
  SequenceWriter& operator=(SequenceWriter&&) = delete;
  ~SequenceWriter();

  StoredSequence& sequence() const { return *sequence_; }

 private:
  explicit SequenceWriter(std::shared_ptr<StoredSequence> sequence)
      : sequence_(std::move(sequence)) {}

  std::shared_ptr<StoredSequence> sequence_;
};

// The one answer for unknown, stale and foreign handles, so that none can be told from another.
absl::Status SequenceNotFound();

// Quota of a tenant, as in TenantQuota.
struct StoreQuota {
  int64_t host_bytes = 0;
  int64_t max_sequences = 0;
  bool evict_own = false;
  RowQuota rows;
};

// The sequences of one tenant.
//
// Threads: safe. The lock is never held while bytes are copied or freed.
class TenantStore : public std::enable_shared_from_this<TenantStore> {
 public:
  // row_tier: takes the rows of sealed segments under quota.rows; nullptr: the arena keeps them.
  // REQUIRES: owned by a shared_ptr.
  TenantStore(std::string id, std::shared_ptr<StoreContext> context, const StoreQuota& quota,
              std::shared_ptr<RowTier> row_tier = nullptr);

  absl::StatusOr<std::shared_ptr<StoredSequence>> CreateSequence();
  absl::StatusOr<std::shared_ptr<StoredSequence>> Fork(
      const std::shared_ptr<StoredSequence>& parent, std::optional<int64_t> prefix_tokens);
  absl::Status Truncate(const std::shared_ptr<StoredSequence>& sequence, int64_t new_length);
  absl::Status Remove(const std::shared_ptr<StoredSequence>& sequence);

  // Removes all sequences; every later call answers NOT_FOUND.
  void Close();

  // Calls attempt() until it succeeds, fails otherwise than with RESOURCE_EXHAUSTED, or nothing is
  // left to evict; between two calls the least recently used sequence not in `keep` is removed, if
  // the quota says so. may_evict() is asked once, before the first removal: its error is the answer
  // then, and nothing has been removed.
  template <typename Attempt>
  auto WithEviction(absl::Span<StoredSequence* const> keep,
                    absl::FunctionRef<absl::Status()> may_evict, Attempt attempt) {
    auto result = attempt();
    // Bytes that are about to be freed may do.
    if (IsExhausted(result) && AwaitReleases()) result = attempt();
    if (result.ok() || !IsExhausted(result)) return result;
    if (!evicts_own()) {
      NoteRefusal(result);
      return result;
    }
    if (absl::Status status = may_evict(); !status.ok()) {
      if (IsExhausted(status)) NoteRefusal(status);
      return decltype(result)(status);
    }
    while (!result.ok() && IsExhausted(result) && EvictOne(keep)) {
      AwaitReleases();
      result = attempt();
    }
    NoteRefusal(result);
    return result;
  }
  template <typename Attempt>
  auto WithEviction(absl::Span<StoredSequence* const> keep, Attempt attempt) {
    return WithEviction(
        keep, [] { return absl::OkStatus(); }, attempt);
  }

  // RESOURCE_EXHAUSTED when `bytes` would not fit beside `keep` even if all else of this tenant
  // were removed.
  absl::Status CheckRoom(absl::Span<StoredSequence* const> keep, int64_t bytes) const;

  // RESOURCE_EXHAUSTED, and no change, as RowTier::SetQuota.
  absl::Status SetQuota(const StoreQuota& quota);

  const std::string& id() const { return id_; }
  // Stands for the id, which may be personal, in logs and metrics: the same for the same id while
  // the process lives, and no use to whoever guesses ids.
  std::string label() const;
  const std::shared_ptr<StoreContext>& context() const { return context_; }
  const MemoryAccount& account() const { return *seal_target_.account; }
  const RowTier* row_tier() const { return seal_target_.row_tier.get(); }
  bool closed() const;
  int64_t num_sequences() const;
  // Refusals for max_sequences; for bytes they are the account's rejects_total().
  int64_t sequence_rejects_total() const { return sequence_rejects_total_.load(); }
  int64_t rejects_total() const { return account().rejects_total() + sequence_rejects_total(); }
  int64_t evicted_sequences_total() const { return evicted_sequences_total_.load(); }
  std::vector<std::shared_ptr<StoredSequence>> sequences() const;

 private:
  static bool IsExhausted(const absl::Status& status) {
    return status.code() == absl::StatusCode::kResourceExhausted;
  }
  template <typename T>
  static bool IsExhausted(const absl::StatusOr<T>& result) {
    return IsExhausted(result.status());
  }

  void NoteRefusal(const absl::Status& status) const;
  template <typename T>
  void NoteRefusal(const absl::StatusOr<T>& result) const {
    NoteRefusal(result.status());
  }

  absl::Status CheckOwned(const std::shared_ptr<StoredSequence>& sequence) const;
  absl::StatusOr<std::shared_ptr<StoredSequence>> Insert(std::shared_ptr<StoredSequence> sequence);
  bool evicts_own() const;
  bool AwaitReleases() const {
    if (context_->await_releases != nullptr) return context_->await_releases();
    return seal_target_.row_tier != nullptr && seal_target_.row_tier->AwaitReleases();
  }
  int64_t HeldBytes(absl::Span<StoredSequence* const> sequences) const;
  bool EvictOne(absl::Span<StoredSequence* const> keep);

  const std::string id_;
  const std::shared_ptr<StoreContext> context_;
  const SealTarget seal_target_;
  std::atomic<int64_t> evicted_sequences_total_{0};
  std::atomic<int64_t> sequence_rejects_total_{0};

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  StoreQuota quota_;
  bool closed_ = false;
  std::map<uint64_t, std::shared_ptr<StoredSequence>> sequences_;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_TENANT_STORE_H_
