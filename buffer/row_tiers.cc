#include "buffer/row_tiers.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "buffer/checksum.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Share of the cache's bytes that reads in flight take, unless calls need more.
constexpr int64_t kStagingShare = 64;
// Of the cache's bytes that they take at most.
constexpr int64_t kStagingShareMax = 2;

// Reads of one call that the device has at a time.
constexpr int kQueueDepth = 256;

// What a quota in bytes is in slots: never more bytes.
CacheShare ToShare(const RowQuota& quota, int64_t slot_bytes) {
  CacheShare share;
  share.floor_slots = quota.reserved_cache_bytes / slot_bytes;
  share.ceiling_slots =
      quota.cache_bytes == 0 ? 0 : std::max<int64_t>(1, quota.cache_bytes / slot_bytes);
  share.weight = quota.weight;
  return share;
}

}  // namespace

absl::StatusOr<std::shared_ptr<RowTiers>> RowTiers::Create(const RowTiersOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  std::shared_ptr<RowTiers> tiers(new RowTiers);
  tiers->shape_ = BlockShape::Of(options.kv, options.block_tokens);
  const int64_t block_bytes = tiers->shape_.bytes;
  const int64_t fetch_blocks =
      std::max(options.fetch_blocks_min,
               options.cache_bytes / kStagingShare / options.num_fetches / block_bytes);
  const int64_t staging_blocks = fetch_blocks * options.num_fetches;
  const int64_t num_slots = options.cache_bytes / block_bytes - staging_blocks;
  if (staging_blocks > options.cache_bytes / kStagingShareMax / block_bytes) {
    return absl::InvalidArgumentError(fmt::format(
        "cache_bytes must be at least {}, twice what {} calls at a time read at once, got {}",
        kStagingShareMax * staging_blocks * block_bytes, options.num_fetches, options.cache_bytes));
  }
  WAVEKV_ASSIGN_OR_RETURN(tiers->file_, BackingFile::Create(options.directory, options.backing));
  BlockCache::Options cache;
  cache.memory = {num_slots, block_bytes, options.prefault_threads};
  cache.replacement = options.replacement;
  WAVEKV_ASSIGN_OR_RETURN(tiers->cache_, BlockCache::Create(cache));
  WAVEKV_ASSIGN_OR_RETURN(
      tiers->staging_, SlotMemory::Create({staging_blocks, block_bytes, options.prefault_threads}));
  for (int i = 0; i < options.num_fetches; ++i) {
    const auto memory =
        absl::MakeSpan(tiers->staging_->slot(static_cast<uint32_t>(i * fetch_blocks)),
                       static_cast<size_t>(fetch_blocks * block_bytes));
    ReaderOptions reader_options;
    reader_options.queue_depth = kQueueDepth;
    reader_options.reserved_reads = fetch_blocks;
    reader_options.memory = memory;
    WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> reader,
                            tiers->file_->NewReader(reader_options));
    tiers->fetches_.emplace_back(new BlockFetch(*tiers, memory, std::move(reader)));
    tiers->free_.push_back(tiers->fetches_.back().get());
  }
  try {
    tiers->admissions_ = std::thread([raw = tiers.get()] { raw->RunAdmissions(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        fmt::format("no thread for the block cache: {}", error.what()));
  }
  tiers->open_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return tiers;
}

RowTiers::~RowTiers() { Stop(); }

void RowTiers::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  returned_.notify_all();
  if (admissions_.joinable()) admissions_.join();
}

void RowTiers::Release() {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.clear();
  fetches_.clear();
  staging_.reset();
  cache_.reset();
  file_.reset();
}

void RowTiers::RemoveTenant(BlockCache::TenantId id) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (cache_ != nullptr) cache_->RemoveTenant(id);
}

absl::Status RowTiers::SetShare(BlockCache::TenantId id, const CacheShare& share) {
  std::lock_guard<std::mutex> lock(mutex_);
  return cache_ == nullptr ? absl::OkStatus() : cache_->SetShare(id, share);
}

CacheTenantStats RowTiers::CacheStats(BlockCache::TenantId id) {
  std::lock_guard<std::mutex> lock(mutex_);
  return cache_ == nullptr ? CacheTenantStats() : cache_->stats(id);
}

absl::StatusOr<std::shared_ptr<TenantRowTier>> RowTiers::AddTenant(const RowQuota& quota) {
  WAVEKV_ASSIGN_OR_RETURN(const BlockCache::TenantId id,
                          cache_->AddTenant(ToShare(quota, shape_.bytes)));
  return std::shared_ptr<TenantRowTier>(new TenantRowTier(shared_from_this(), id, quota));
}

FetchLease RowTiers::Acquire(uint32_t step, BlockReader::TimePoint deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_free = [this] { return !free_.empty(); };
  if (deadline == BlockReader::TimePoint::max()) {
    idle_.wait(lock, is_free);  // condition variables take no infinite deadline
  } else if (!idle_.wait_until(lock, deadline, is_free)) {
    return {};
  }
  BlockFetch* const fetch = free_.back();
  free_.pop_back();
  lock.unlock();
  fetch->Begin(step);
  return FetchLease(this, fetch);
}

void RowTiers::TakeBack(BlockFetch* fetch) {
  if (fetch->has_leftovers()) {
    std::lock_guard<std::mutex> lock(mutex_);
    to_admit_.push_back(fetch);
    returned_.notify_one();
  } else {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(fetch);
    idle_.notify_all();
  }
}

void RowTiers::RunAdmissions() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    returned_.wait(lock, [this] { return stop_ || !to_admit_.empty(); });
    if (to_admit_.empty()) return;
    BlockFetch* const fetch = to_admit_.front();
    to_admit_.pop_front();
    is_admitting_ = true;
    lock.unlock();
    fetch->AdmitAll();
    lock.lock();
    is_admitting_ = false;
    free_.push_back(fetch);
    idle_.notify_all();
  }
}

bool RowTiers::AwaitAdmissions() {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto none = [this] { return to_admit_.empty() && !is_admitting_; };
  if (none()) return false;
  idle_.wait(lock, none);
  return true;
}

void RowTiers::WaitUntilAdmitted() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return free_.size() == fetches_.size(); });
}

RowTiersStats RowTiers::stats() const {
  RowTiersStats stats;
  stats.staging_bytes = staging_->bytes();
  stats.slots = cache_->memory().num_slots();
  stats.slots_free = cache_->num_free();
  stats.slots_pinned = cache_->num_pinned();
  stats.reads_pending = reads_pending_.load();
  stats.file = file_->space();
  stats.blocks_read = blocks_read_.load();
  stats.bytes_read = bytes_read_.load();
  stats.bytes_written = bytes_written_.load();
  stats.read_failures = read_failures_.load();
  stats.open_seconds = open_seconds_;
  return stats;
}

TenantRowTier::TenantRowTier(std::shared_ptr<RowTiers> tiers, BlockCache::TenantId id,
                             const RowQuota& quota)
    : tiers_(std::move(tiers)), id_(id), quota_(quota) {}

TenantRowTier::~TenantRowTier() { tiers_->RemoveTenant(id_); }

absl::Status TenantRowTier::SetQuota(const RowQuota& quota) {
  std::lock_guard<std::mutex> lock(mutex_);
  WAVEKV_RETURN_IF_ERROR(tiers_->SetShare(id_, ToShare(quota, tiers_->shape_.bytes)));
  quota_ = quota;
  return absl::OkStatus();
}

RowQuota TenantRowTier::quota() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return quota_;
}

CacheTenantStats TenantRowTier::cache_stats() const { return tiers_->CacheStats(id_); }

bool TenantRowTier::AwaitReleases() { return tiers_->AwaitAdmissions(); }

int64_t TenantRowTier::slot_bytes() const { return tiers_->shape_.bytes; }

absl::Status TenantRowTier::Charge(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int64_t used = backing_bytes_used_.load();
  if (quota_.backing_bytes > 0 && bytes > quota_.backing_bytes - used) {
    backing_rejects_total_.fetch_add(1);
    return absl::ResourceExhaustedError(fmt::format(
        "tenant quota of the backing tier: requested {} bytes, available {}, quota {}", bytes,
        std::max<int64_t>(0, quota_.backing_bytes - used), quota_.backing_bytes));
  }
  backing_bytes_used_.store(used + bytes);
  return absl::OkStatus();
}

void TenantRowTier::Discharge(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  backing_bytes_used_.fetch_sub(bytes);
}

absl::StatusOr<std::unique_ptr<const SealedRows>> TenantRowTier::Store(const ClusterIndex& index) {
  const BlockShape& shape = tiers_->shape_;
  const int64_t num_blocks = shape.num_blocks(index.num_tokens);
  const int64_t bytes = num_blocks * shape.bytes;
  const int64_t charged = FileExtents::RoundUp(bytes);
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(FileExtents::kAlignmentBytes, charged), &std::free);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        fmt::format("backing file: no memory to arrange {} bytes of blocks", bytes));
  }
  auto* const blocks = static_cast<std::byte*>(memory.get());
  std::memset(blocks, 0, bytes);
  int64_t token = 0;
  for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
    const KvRange range = index.cluster_range(cluster);
    for (int64_t done = 0; done < range.num_tokens;) {
      const int64_t at = (token + done) % shape.tokens;
      const int64_t count = std::min(range.num_tokens - done, shape.tokens - at);
      std::byte* const block = blocks + (token + done) / shape.tokens * shape.bytes;
      std::memcpy(block + shape.key_offset(at), range.keys + done * shape.key_row_bytes,
                  count * shape.key_row_bytes);
      std::memcpy(block + shape.value_offset(at), range.values + done * shape.value_row_bytes,
                  count * shape.value_row_bytes);
      done += count;
    }
    token += range.num_tokens;
  }
  std::vector<uint32_t> checksums(num_blocks);
  const auto all = absl::MakeConstSpan(blocks, static_cast<size_t>(bytes));
  BlockChecksums(all, shape.bytes, absl::MakeSpan(checksums));

  WAVEKV_RETURN_IF_ERROR(Charge(charged));
  absl::StatusOr<int64_t> offset = tiers_->file_->Allocate(bytes);
  if (!offset.ok()) {
    Discharge(charged);
    return offset.status();
  }
  // Frees the extent should the write fail.
  std::unique_ptr<const SealedRows> rows(new TieredRows(
      shared_from_this(), index.num_tokens, *offset,
      tiers_->next_key_.fetch_add(static_cast<uint64_t>(num_blocks)), std::move(checksums)));
  WAVEKV_RETURN_IF_ERROR(tiers_->file_->Write(*offset, all));
  tiers_->bytes_written_.fetch_add(bytes, std::memory_order_relaxed);
  return rows;
}

}  // namespace wavekv
