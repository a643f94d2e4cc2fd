// The two tiers of an engine that keeps the rows of sealed segments outside of its arena: blocks in
// a file, and a cache of some of them in DRAM.
#ifndef WAVEKV_BUFFER_ROW_TIERS_H_
#define WAVEKV_BUFFER_ROW_TIERS_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "buffer/backing_file.h"
#include "buffer/block_cache.h"
#include "buffer/block_fetch.h"
#include "buffer/block_reader.h"
#include "buffer/tiered_rows.h"
#include "storage/sealed_rows.h"

namespace wavekv {

struct RowTiersOptions {
  std::string directory;  // of the backing file
  BackingOptions backing;
  KvShape kv;
  int64_t block_tokens = 0;  // 0: BlockShape's default
  // DRAM for rows: slots of the cache, and the memory that misses are read into, which is a
  // sixty-fourth of it unless the calls below need more.
  int64_t cache_bytes = 0;
  ReplacementKind replacement = ReplacementKind::kLru;
  // Calls at a time that read; others wait. Each has room for as many missed blocks at a time.
  int num_fetches = 4;
  int64_t fetch_blocks_min = 1;
  int prefault_threads = 0;  // as SlotMemoryOptions
};

// Running totals, but for the gauges.
struct RowTiersStats {
  int64_t staging_bytes = 0;
  int64_t slots = 0;
  int64_t slots_free = 0;     // gauge
  int64_t slots_pinned = 0;   // gauge
  int64_t reads_pending = 0;  // gauge: blocks asked for that have not come
  FileSpace file;             // gauge
  int64_t blocks_read = 0;    // for misses
  int64_t bytes_read = 0;     // of all reads, also of whole segments
  int64_t bytes_written = 0;  // to the file
  int64_t read_failures = 0;
  double open_seconds = 0.0;
};

// One tenant's part: see RowTier.
class TenantRowTier : public RowTier, public std::enable_shared_from_this<TenantRowTier> {
 public:
  ~TenantRowTier() override;

  absl::StatusOr<std::unique_ptr<const SealedRows>> Store(const ClusterIndex& index) override;
  absl::Status SetQuota(const RowQuota& quota) override;
  bool AwaitReleases() override;

  BlockCache::TenantId id() const { return id_; }
  RowQuota quota() const;
  int64_t backing_bytes_used() const { return backing_bytes_used_.load(); }
  int64_t backing_rejects_total() const { return backing_rejects_total_.load(); }
  CacheTenantStats cache_stats() const;
  int64_t slot_bytes() const;

 private:
  friend class RowTiers;
  friend class TieredRows;
  TenantRowTier(std::shared_ptr<RowTiers> tiers, BlockCache::TenantId id, const RowQuota& quota);

  // Counts bytes of the file as used; RESOURCE_EXHAUSTED beyond the quota.
  absl::Status Charge(int64_t bytes);
  void Discharge(int64_t bytes);

  const std::shared_ptr<RowTiers> tiers_;
  const BlockCache::TenantId id_;
  mutable std::mutex mutex_;
  RowQuota quota_;                              // guarded by mutex_
  std::atomic<int64_t> backing_bytes_used_{0};  // changed under mutex_
  std::atomic<int64_t> backing_rejects_total_{0};
};

// Threads: safe. Stop() before the last reference may go in a thread of its own.
class RowTiers : public std::enable_shared_from_this<RowTiers> {
 public:
  // INVALID_ARGUMENT, RESOURCE_EXHAUSTED, or what BackingFile::Create says.
  static absl::StatusOr<std::shared_ptr<RowTiers>> Create(const RowTiersOptions& options);
  ~RowTiers();

  RowTiers(const RowTiers&) = delete;
  RowTiers& operator=(const RowTiers&) = delete;

  // RESOURCE_EXHAUSTED when the floors of all tenants would exceed the cache.
  absl::StatusOr<std::shared_ptr<TenantRowTier>> AddTenant(const RowQuota& quota);

  // Hands what one call needs to read blocks to that call; waits while all are in use, also by late
  // reads of calls that have ended. An empty lease when `deadline` passes first. `step`: see
  // BlockCache.
  FetchLease Acquire(uint32_t step,
                     BlockReader::TimePoint deadline = BlockReader::TimePoint::max());

  // Waits until everything that ended calls have read is in the cache or given up.
  void WaitUntilAdmitted();
  // And ends the thread that admits. REQUIRES: no lease is held, and none is acquired any more.
  void Stop();
  // Gives memory and file back although tenants are still referred to. REQUIRES: Stop() has
  // returned, no rows are left, and only tenants' statistics, quotas and destructors are called any
  // more.
  void Release();

  const BlockShape& shape() const { return shape_; }
  BlockCache& cache() { return *cache_; }
  BackingFile& file() { return *file_; }
  const BackingFile& file() const { return *file_; }
  RowTiersStats stats() const;

 private:
  friend class BlockFetch;
  friend class FetchLease;
  friend class TenantRowTier;
  friend class TieredRows;

  RowTiers() = default;
  void RunAdmissions();
  void TakeBack(BlockFetch* fetch);
  void RemoveTenant(BlockCache::TenantId id);
  absl::Status SetShare(BlockCache::TenantId id, const CacheShare& share);
  CacheTenantStats CacheStats(BlockCache::TenantId id);
  // Waits for what calls that have ended leave behind; false when that was nothing.
  bool AwaitAdmissions();

  BlockShape shape_;
  std::unique_ptr<BackingFile> file_;
  std::unique_ptr<BlockCache> cache_;
  std::unique_ptr<SlotMemory> staging_;
  std::vector<std::unique_ptr<BlockFetch>> fetches_;
  double open_seconds_ = 0.0;
  std::atomic<uint64_t> next_key_{0};

  std::atomic<int64_t> reads_pending_{0};
  std::atomic<int64_t> blocks_read_{0};
  std::atomic<int64_t> bytes_read_{0};
  std::atomic<int64_t> bytes_written_{0};
  std::atomic<int64_t> read_failures_{0};

  std::mutex mutex_;
  std::condition_variable idle_;      // a fetch became free
  std::condition_variable returned_;  // a fetch is to be admitted, or stop
  // Guarded by mutex_.
  std::vector<BlockFetch*> free_;
  std::deque<BlockFetch*> to_admit_;
  bool is_admitting_ = false;
  bool stop_ = false;
  std::thread admissions_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_ROW_TIERS_H_
