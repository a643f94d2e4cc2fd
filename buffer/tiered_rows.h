// The rows of one sealed kv head, in blocks of the backing file.
#ifndef WAVEKV_BUFFER_TIERED_ROWS_H_
#define WAVEKV_BUFFER_TIERED_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "buffer/block_reader.h"
#include "buffer/block_table.h"
#include "storage/kv_range.h"
#include "storage/sealed_rows.h"

namespace wavekv {

class RowTiers;
class TenantRowTier;

// How rows lie in blocks: `tokens` consecutive ones, in cluster order and whatever the clusters'
// bounds, first their keys, then their values, then zeros up to a multiple of 512 bytes.
struct BlockShape {
  // Unless the caller says otherwise: what sketch zones fetch is single tokens, and smaller blocks
  // mean more of them to keep track of (docs/wave_buffer.md).
  static constexpr int64_t kDefaultBytes = 2048;

  int64_t tokens = 0;
  int64_t key_row_bytes = 0;
  int64_t value_row_bytes = 0;
  int64_t bytes = 0;

  // tokens == 0: as many as kDefaultBytes hold, at least one.
  static BlockShape Of(const KvShape& kv, int64_t tokens);

  int64_t num_blocks(int64_t num_tokens) const { return (num_tokens + tokens - 1) / tokens; }
  // Where the rows of the block's i-th token begin.
  int64_t key_offset(int64_t i) const { return i * key_row_bytes; }
  int64_t value_offset(int64_t i) const { return tokens * key_row_bytes + i * value_row_bytes; }
};

// Threads: immutable, but for the table, which the block cache writes.
class TieredRows : public SealedRows {
 public:
  // Forgets the blocks in the cache and frees the extent. REQUIRES: nobody reads them.
  ~TieredRows() override;

  absl::Status Copy(std::byte* keys, std::byte* values) const override;

  const BlockShape& shape() const;
  int64_t num_blocks() const { return table_.num_blocks(); }
  BlockTable& table() const { return table_; }
  BlockRead Read(int64_t block, absl::Span<std::byte> target, uint64_t tag) const;

 private:
  friend class TenantRowTier;
  TieredRows(std::shared_ptr<TenantRowTier> tier, int64_t num_tokens, int64_t offset,
             uint64_t first_key, std::vector<uint32_t> checksums);

  const std::shared_ptr<TenantRowTier> tier_;
  const int64_t num_tokens_;
  const int64_t offset_;  // of the first block in the file
  const std::vector<uint32_t> checksums_;
  mutable BlockTable table_;
};

}  // namespace wavekv

#endif  // WAVEKV_BUFFER_TIERED_ROWS_H_
