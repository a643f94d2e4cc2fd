// The rows of many ranges, a tile at a time.
#ifndef WAVEKV_CPU_ROW_TILES_H_
#define WAVEKV_CPU_ROW_TILES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "storage/kv_range.h"

namespace wavekv::cpu {

// Rows from one range or several, by address: short clusters fill a tile together.
struct RowTile {
  static constexpr int kRows = 64;

  int num_rows = 0;
  // The last row is repeated to the end of the tile, so that kernels may read whole groups of rows.
  const std::byte* keys[kRows];
  const std::byte* values[kRows];
  // Where asked for: of the first num_rows, and the least and the greatest of them.
  int64_t positions[kRows];
  int64_t first_position = 0;
  int64_t last_position = 0;
};

// Walks the rows of `ranges` in order.
class RowTiles {
 public:
  // Tiles of up to `tile_rows`. Without `with_positions` those of tiles are left as they are.
  RowTiles(absl::Span<const KvRange> ranges, const KvShape& shape, bool with_positions,
           int tile_rows = RowTile::kRows)
      : ranges_(ranges),
        with_positions_(with_positions),
        tile_rows_(tile_rows),
        key_bytes_(shape.head_dim_k * DTypeBytes(shape.dtype)),
        value_bytes_(shape.head_dim_v * DTypeBytes(shape.dtype)) {}

  // Fills the next tile; false when no row is left.
  bool Next(RowTile* tile) {
    tile->num_rows = 0;
    while (tile->num_rows < tile_rows_ && range_ < ranges_.size()) {
      const KvRange& range = ranges_[range_];
      const int64_t count =
          std::min<int64_t>(tile_rows_ - tile->num_rows, range.num_tokens - token_);
      Append(range, count, tile);
      token_ += count;
      if (token_ == range.num_tokens) {
        ++range_;
        token_ = 0;
      }
    }
    if (tile->num_rows == 0) return false;
    if (with_positions_) {
      const auto [first, last] =
          std::minmax_element(tile->positions, tile->positions + tile->num_rows);
      tile->first_position = *first;
      tile->last_position = *last;
    }
    std::fill(tile->keys + tile->num_rows, tile->keys + tile_rows_, tile->keys[tile->num_rows - 1]);
    std::fill(tile->values + tile->num_rows, tile->values + tile_rows_,
              tile->values[tile->num_rows - 1]);
    return true;
  }

 private:
  void Append(const KvRange& range, int64_t count, RowTile* tile) const {
    const int at = tile->num_rows;
    const std::byte* key = range.keys + token_ * key_bytes_;
    const std::byte* value = range.values + token_ * value_bytes_;
    for (int64_t i = 0; i < count; ++i, key += key_bytes_, value += value_bytes_) {
      tile->keys[at + i] = key;
      tile->values[at + i] = value;
    }
    for (int64_t i = 0; i < count && with_positions_; ++i) {
      const int64_t token = token_ + i;
      tile->positions[at + i] =
          range.position_begin + (range.positions == nullptr ? token : range.positions[token]);
    }
    tile->num_rows += static_cast<int>(count);
  }

  const absl::Span<const KvRange> ranges_;
  const bool with_positions_;
  const int tile_rows_;
  const int64_t key_bytes_;
  const int64_t value_bytes_;
  size_t range_ = 0;
  int64_t token_ = 0;  // within the range
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ROW_TILES_H_
