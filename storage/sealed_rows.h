// Rows of sealed segments in a tier below the arena. The wave buffer implements it; storage knows
// only that rows go there and come back.
#ifndef WAVEKV_STORAGE_SEALED_ROWS_H_
#define WAVEKV_STORAGE_SEALED_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/cluster_index.h"

namespace wavekv {

// The rows of one kv head of a sealed segment. Their space is freed with the object.
//
// Threads: immutable; any number of readers.
class SealedRows {
 public:
  virtual ~SealedRows() = default;

  // Copies all rows, in cluster order, to keys [num_tokens, head_dim_k] and values [num_tokens,
  // head_dim_v]. UNAVAILABLE or DATA_LOSS when they cannot be read.
  virtual absl::Status Copy(std::byte* keys, std::byte* values) const = 0;
};

// What a tenant may use of the tiers that hold rows of sealed segments, as in TenantQuota.
struct RowQuota {
  int64_t backing_bytes = 0;         // ceiling; 0: all there are
  int64_t cache_bytes = 0;           // ceiling; 0: all there are
  int64_t reserved_cache_bytes = 0;  // floor
  double weight = 1.0;
};

// One tenant's part of those tiers. Threads: safe.
class RowTier {
 public:
  virtual ~RowTier() = default;

  // Stores the rows that index.rows points to. RESOURCE_EXHAUSTED when the backing tier or the
  // tenant's part of it is full, UNAVAILABLE when the device fails; nothing is kept then.
  virtual absl::StatusOr<std::unique_ptr<const SealedRows>> Store(const ClusterIndex& index) = 0;

  // RESOURCE_EXHAUSTED, and no change, when the floors of all tenants exceed the cache.
  virtual absl::Status SetQuota(const RowQuota& quota) = 0;

  // Waits for segments that calls which have ended still hold; false when there are none.
  virtual bool AwaitReleases() = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_SEALED_ROWS_H_
