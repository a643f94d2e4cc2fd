#include "buffer/tiered_rows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "buffer/row_tiers.h"
#include "fmt/format.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Blocks that Copy reads at a time.
constexpr int64_t kCopyBlocks = 512;

}  // namespace

BlockShape BlockShape::Of(const KvShape& kv, int64_t tokens) {
  BlockShape shape;
  shape.key_row_bytes = kv.head_dim_k * DTypeBytes(kv.dtype);
  shape.value_row_bytes = kv.head_dim_v * DTypeBytes(kv.dtype);
  const int64_t token_bytes = shape.key_row_bytes + shape.value_row_bytes;
  shape.tokens = tokens > 0 ? tokens : std::max<int64_t>(1, kDefaultBytes / token_bytes);
  constexpr int64_t kAlignment = BlockReader::kAlignmentBytes;
  shape.bytes = (shape.tokens * token_bytes + kAlignment - 1) / kAlignment * kAlignment;
  return shape;
}

TieredRows::TieredRows(std::shared_ptr<TenantRowTier> tier, int64_t num_tokens, int64_t offset,
                       uint64_t first_key, std::vector<uint32_t> checksums)
    : tier_(std::move(tier)),
      num_tokens_(num_tokens),
      offset_(offset),
      checksums_(std::move(checksums)),
      table_(static_cast<int64_t>(checksums_.size()), first_key, tier_->id()) {}

TieredRows::~TieredRows() {
  RowTiers& tiers = *tier_->tiers_;
  tiers.cache_->Drop(table_);
  const int64_t bytes = num_blocks() * shape().bytes;
  const absl::Status status = tiers.file_->Free(offset_, bytes);
  if (!status.ok()) {
    WAVEKV_LOG(kError, "backing file: {} bytes at {} are lost: {}", bytes, offset_,
               std::string(status.message()));
  }
  tier_->Discharge(FileExtents::RoundUp(bytes));
}

const BlockShape& TieredRows::shape() const { return tier_->tiers_->shape_; }

BlockRead TieredRows::Read(int64_t block, absl::Span<std::byte> target, uint64_t tag) const {
  return {offset_ + block * shape().bytes, target, checksums_[block], tag};
}

absl::Status TieredRows::Copy(std::byte* keys, std::byte* values) const {
  RowTiers& tiers = *tier_->tiers_;
  const BlockShape& shape = this->shape();
  const int64_t batch = std::min(num_blocks(), kCopyBlocks);
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(FileExtents::kAlignmentBytes, FileExtents::RoundUp(batch * shape.bytes)),
      &std::free);
  if (memory == nullptr) {
    return absl::UnavailableError(
        fmt::format("backing file: no memory to read {} bytes", batch * shape.bytes));
  }
  auto* const buffer = static_cast<std::byte*>(memory.get());
  // Whatever is short, evicting sequences would not help: not RESOURCE_EXHAUSTED.
  const absl::StatusOr<std::unique_ptr<BlockReader>> opened = tiers.file_->NewReader();
  if (!opened.ok()) return absl::UnavailableError(opened.status().message());
  BlockReader* const reader = opened->get();
  std::vector<BlockRead> reads;
  std::vector<BlockCompletion> completions(batch);
  for (int64_t first = 0; first < num_blocks(); first += batch) {
    const int64_t count = std::min(batch, num_blocks() - first);
    reads.clear();
    for (int64_t i = 0; i < count; ++i) {
      reads.push_back(Read(
          first + i, absl::MakeSpan(buffer + i * shape.bytes, static_cast<size_t>(shape.bytes)),
          static_cast<uint64_t>(i)));
    }
    WAVEKV_RETURN_IF_ERROR(reader->Submit(reads));
    const int64_t ended = reader->Wait(count, absl::MakeSpan(completions));
    for (int64_t i = 0; i < ended; ++i) {
      if (completions[i].status.ok()) continue;
      tiers.read_failures_.fetch_add(1, std::memory_order_relaxed);
      const absl::Status& status = completions[i].status;
      return absl::IsDataLoss(status) ? status : absl::UnavailableError(status.message());
    }
    tiers.bytes_read_.fetch_add(count * shape.bytes, std::memory_order_relaxed);
    for (int64_t i = 0; i < count; ++i) {
      const std::byte* const block = buffer + i * shape.bytes;
      const int64_t token = (first + i) * shape.tokens;
      const int64_t tokens = std::min(shape.tokens, num_tokens_ - token);
      std::memcpy(keys + token * shape.key_row_bytes, block + shape.key_offset(0),
                  tokens * shape.key_row_bytes);
      std::memcpy(values + token * shape.value_row_bytes, block + shape.value_offset(0),
                  tokens * shape.value_row_bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv
