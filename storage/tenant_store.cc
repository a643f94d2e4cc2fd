#include "storage/tenant_store.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"

namespace wavekv {

absl::Status SequenceNotFound() {
  return absl::NotFoundError("sequence: no such sequence (never created here, or removed)");
}

StoredSequence::StoredSequence(std::shared_ptr<StoreContext> context, SealTarget seal_target,
                               std::weak_ptr<TenantStore> tenant)
    : context_(std::move(context)),
      seal_target_(std::move(seal_target)),
      tenant_(std::move(tenant)),
      id_(context_->next_sequence_id.fetch_add(1)) {
  for (int layer = 0; layer < context_->model.num_layers; ++layer) {
    layers_.push_back(std::make_unique<LayerCache>(context_->model, context_->cut_rule));
  }
  Touch();
}

int64_t StoredSequence::length() const {
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (const auto& layer : layers_) shortest = std::min(shortest, layer->length());
  return shortest;
}

void StoredSequence::RemoveContents() {
  removed_.store(true, std::memory_order_release);
  for (const auto& layer : layers_) layer->Replace({});
}

absl::StatusOr<SequenceWriter> SequenceWriter::Acquire(std::shared_ptr<StoredSequence> sequence) {
  if (sequence->removed()) return SequenceNotFound();
  if (sequence->writing_.exchange(true, std::memory_order_acquire)) {
    // Being closed: to try again is of no use.
    if (sequence->removed()) return SequenceNotFound();
    return absl::AbortedError(fmt::format(
        "sequence {}: another call is writing to it; a sequence has one writer at a time",
        sequence->id()));
  }
  SequenceWriter writer(std::move(sequence));
  if (writer.sequence().removed()) return SequenceNotFound();
  return writer;
}

SequenceWriter SequenceWriter::AcquireForClosing(std::shared_ptr<StoredSequence> sequence) {
  sequence->removed_.store(true, std::memory_order_release);
  while (sequence->writing_.exchange(true, std::memory_order_acq_rel)) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return SequenceWriter(std::move(sequence));
}

SequenceWriter::~SequenceWriter() {
  if (sequence_ != nullptr) sequence_->writing_.store(false, std::memory_order_release);
}

TenantStore::TenantStore(std::string id, std::shared_ptr<StoreContext> context,
                         const StoreQuota& quota, std::shared_ptr<RowTier> row_tier)
    : id_(std::move(id)),
      context_(std::move(context)),
      seal_target_{MemoryAccount::Create(context_->arena, quota.host_bytes), std::move(row_tier)},
      quota_(quota) {}

absl::StatusOr<std::shared_ptr<StoredSequence>> TenantStore::CreateSequence() {
  return WithEviction({}, [&] {
    return Insert(std::make_shared<StoredSequence>(context_, seal_target_, weak_from_this()));
  });
}

absl::StatusOr<std::shared_ptr<StoredSequence>> TenantStore::Fork(
    const std::shared_ptr<StoredSequence>& parent, std::optional<int64_t> prefix_tokens) {
  WAVEKV_RETURN_IF_ERROR(CheckOwned(parent));
  if (parent->removed()) return SequenceNotFound();
  // Seen once, so that lengths and tokens belong together although the parent's writer goes on.
  std::vector<LayerContents> layers;
  int64_t length = std::numeric_limits<int64_t>::max();
  for (int layer = 0; layer < parent->num_layers(); ++layer) {
    layers.push_back(parent->layer(layer).Snapshot());
    length = std::min(length, layers.back().length);
  }
  const int64_t prefix = prefix_tokens.value_or(length);
  if (prefix < 0 || prefix > length) {
    return absl::OutOfRangeError(fmt::format(
        "prefix_tokens must be in [0, {}] (the sequence's length), got {}", length, prefix));
  }
  for (size_t layer = 0; layer < layers.size() && !prefix_tokens.has_value(); ++layer) {
    if (layers[layer].length == length) continue;
    return absl::FailedPreconditionError(
        fmt::format("sequence {}: layers must be equally long to fork all tokens, but layer {} has "
                    "{} and the shortest {}",
                    parent->id(), layer, layers[layer].length, length));
  }
  StoredSequence* const keep[] = {parent.get()};
  return WithEviction(keep, [&]() -> absl::StatusOr<std::shared_ptr<StoredSequence>> {
    auto child = std::make_shared<StoredSequence>(context_, seal_target_, weak_from_this());
    for (int layer = 0; layer < parent->num_layers(); ++layer) {
      WAVEKV_ASSIGN_OR_RETURN(
          LayerContents contents,
          parent->layer(layer).PrefixOf(layers[layer], *seal_target_.account, prefix));
      child->layer(layer).Replace(std::move(contents));
    }
    if (parent->removed()) return SequenceNotFound();
    return Insert(std::move(child));
  });
}

absl::Status TenantStore::Truncate(const std::shared_ptr<StoredSequence>& sequence,
                                   int64_t new_length) {
  WAVEKV_RETURN_IF_ERROR(CheckOwned(sequence));
  WAVEKV_ASSIGN_OR_RETURN(const SequenceWriter writer, SequenceWriter::Acquire(sequence));
  const int64_t length = sequence->length();
  if (new_length < 0 || new_length > length) {
    return absl::OutOfRangeError(fmt::format(
        "new_length must be in [0, {}] (the sequence's length), got {}", length, new_length));
  }
  StoredSequence* const keep[] = {sequence.get()};
  std::vector<LayerContents> prefixes;
  WAVEKV_RETURN_IF_ERROR(WithEviction(keep, [&]() -> absl::Status {
    prefixes.clear();
    for (int layer = 0; layer < sequence->num_layers(); ++layer) {
      WAVEKV_ASSIGN_OR_RETURN(LayerContents contents,
                              sequence->layer(layer).Prefix(*seal_target_.account, new_length));
      prefixes.push_back(std::move(contents));
    }
    return absl::OkStatus();
  }));
  for (int layer = 0; layer < sequence->num_layers(); ++layer) {
    sequence->layer(layer).Replace(std::move(prefixes[layer]));
  }
  sequence->Touch();
  return absl::OkStatus();
}

absl::Status TenantStore::Remove(const std::shared_ptr<StoredSequence>& sequence) {
  WAVEKV_RETURN_IF_ERROR(CheckOwned(sequence));
  WAVEKV_ASSIGN_OR_RETURN(const SequenceWriter writer, SequenceWriter::Acquire(sequence));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    sequences_.erase(sequence->id());
  }
  sequence->RemoveContents();
  return absl::OkStatus();
}

void TenantStore::Close() {
  std::map<uint64_t, std::shared_ptr<StoredSequence>> closing;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    closing.swap(sequences_);
  }
  for (const auto& [id, sequence] : closing) {
    const SequenceWriter writer = SequenceWriter::AcquireForClosing(sequence);
    sequence->RemoveContents();
  }
  // Handles may keep the store. Asking for less cannot be refused.
  if (seal_target_.row_tier != nullptr) seal_target_.row_tier->SetQuota(RowQuota()).IgnoreError();
}

absl::Status TenantStore::SetQuota(const StoreQuota& quota) {
  std::lock_guard<std::mutex> lock(mutex_);
  // A floor of a closed tenant would stay as long as its handles.
  if (closed_) return absl::NotFoundError("tenant: no such tenant (never opened here, or closed)");
  if (seal_target_.row_tier != nullptr) {
    WAVEKV_RETURN_IF_ERROR(seal_target_.row_tier->SetQuota(quota.rows));
  }
  quota_ = quota;
  seal_target_.account->SetQuota(quota.host_bytes);
  return absl::OkStatus();
}

bool TenantStore::closed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

int64_t TenantStore::num_sequences() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(sequences_.size());
}

std::vector<std::shared_ptr<StoredSequence>> TenantStore::sequences() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::shared_ptr<StoredSequence>> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence);
  return all;
}

absl::Status TenantStore::CheckOwned(const std::shared_ptr<StoredSequence>& sequence) const {
  return sequence != nullptr && sequence->tenant().get() == this ? absl::OkStatus()
                                                                 : SequenceNotFound();
}

absl::StatusOr<std::shared_ptr<StoredSequence>> TenantStore::Insert(
    std::shared_ptr<StoredSequence> sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) return absl::NotFoundError("tenant: no such tenant (never opened here, or closed)");
  const int64_t count = static_cast<int64_t>(sequences_.size());
  if (quota_.max_sequences > 0 && count >= quota_.max_sequences) {
    sequence_rejects_total_.fetch_add(1);
    return absl::ResourceExhaustedError(
        fmt::format("tenant quota of sequences: requested 1, available {}, quota {}",
                    std::max<int64_t>(0, quota_.max_sequences - count), quota_.max_sequences));
  }
  sequences_.emplace(sequence->id(), sequence);
  return sequence;
}

bool TenantStore::evicts_own() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return quota_.evict_own;
}

absl::Status TenantStore::CheckRoom(absl::Span<StoredSequence* const> keep, int64_t bytes) const {
  const Arena& arena = *context_->arena;
  const int64_t others_bytes = arena.used_bytes() - account().used_bytes();
  int64_t limit = arena.bytes() - others_bytes;
  const int64_t quota = account().quota_bytes();
  if (quota > 0) limit = std::min(limit, quota);
  const int64_t available = std::max<int64_t>(0, limit - HeldBytes(keep));
  if (bytes <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(fmt::format(
      "tenant quota of host memory: requested {} bytes, available {} if all other sequences "
      "of the tenant were evicted, quota {}, arena {}",
      bytes, available, quota, arena.bytes()));
}

int64_t TenantStore::HeldBytes(absl::Span<StoredSequence* const> sequences) const {
  std::map<const void*, int64_t> held;  // by object, as forks share them
  const auto add_chunk = [&held](const RowChunk& chunk) { held[&chunk] = chunk.bytes(); };
  for (const StoredSequence* sequence : sequences) {
    if (sequence->shared_account() != seal_target_.account) continue;
    for (int layer = 0; layer < sequence->num_layers(); ++layer) {
      const LayerContents contents = sequence->layer(layer).Snapshot();
      if (contents.sinks != nullptr) add_chunk(*contents.sinks);
      for (const auto& chunk : contents.tail) add_chunk(*chunk);
      for (const auto& segment : contents.segments) {
        const Segment::Pin pin = segment->Read();
        for (const auto& chunk : pin.chunks) add_chunk(*chunk);
        if (pin.sealed == nullptr) continue;
        for (const SealedHead& head : pin.sealed->heads) held[&head] = head.extent.bytes();
      }
    }
  }
  int64_t bytes = 0;
  for (const auto& [object, object_bytes] : held) bytes += object_bytes;
  return bytes;
}

std::string TenantStore::label() const {
  static const uint64_t salt = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  return fmt::format("{:016x}", std::hash<std::string>{}(fmt::format("{:016x}{}", salt, id_)));
}

void TenantStore::NoteRefusal(const absl::Status& status) const {
  if (!status.ok()) {
    WAVEKV_LOG(kInfo, "tenant {} refused: {}", label(), std::string(status.message()));
  }
}

bool TenantStore::EvictOne(absl::Span<StoredSequence* const> keep) {
  std::vector<std::shared_ptr<StoredSequence>> by_recency;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!quota_.evict_own) return false;
    for (const auto& [id, sequence] : sequences_) by_recency.push_back(sequence);
  }
  std::sort(by_recency.begin(), by_recency.end(),
            [](const auto& a, const auto& b) { return a->last_use() < b->last_use(); });
  for (const std::shared_ptr<StoredSequence>& sequence : by_recency) {
    if (std::find(keep.begin(), keep.end(), sequence.get()) != keep.end()) continue;
    // One that is being written to is in use: the next oldest is tried.
    if (!Remove(sequence).ok()) continue;
    evicted_sequences_total_.fetch_add(1);
    WAVEKV_LOG(kInfo, "tenant {}: sequence {} evicted for its newer ones", label(), sequence->id());
    return true;
  }
  return false;
}

}  // namespace wavekv
