#include "cpu/attend_few_queries.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "cpu/row_tiles.h"
#include "cpu/targets.h"
#include "wavekv/instruction_sets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attend_few_queries.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/bf16_products-inl.h"
#include "cpu/exp-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Rows that are attended while the next ones are asked for: half of what a tile has room for
// (docs/performance.md).
constexpr int kTileRows = 32;

// Logits of rows of any type, by products in fp32.
template <DType kType>
struct Products {
  alignas(64) float queries[kFewQueries * kHeadDimMax];  // paired order

  void Prepare(const AttendRowsTask& task) {
    const int dim = task.shape.head_dim_k;
    WithVectorsFor(dim, [&](auto d) HWY_ATTR {
      StorePaired<kType>(d, task.queries, task.num_queries * dim, queries);
    });
  }
  void Dot(const Rows& keys, int num_queries, PerQuery logits) const {
    WithVectorsFor(keys.dim,
                   [&](auto d) HWY_ATTR { DotRows<kType>(d, keys, queries, num_queries, logits); });
  }
};

#if WAVEKV_BF16_PRODUCTS
// Logits of bf16 rows, by half as many products where the queries are of bf16 too. Those are exact
// in fp32, so that the result is no less exact.
struct Bf16Products {
  // From as many queries on it pays to transpose rows.
  static constexpr int kMinQueries = 6;

  alignas(64) uint16_t queries[kFewQueries * kHeadDimMax];
  float scale;
  alignas(64) uint32_t pairs[PairsOfRows::Size(kHeadDimMax)];

  // False where they are not.
  bool Prepare(const AttendRowsTask& task) {
    scale = task.query_scale;
    return ToBf16Queries(task.queries, task.num_queries, task.shape.head_dim_k, scale, queries);
  }
  void Dot(const Rows& keys, int num_queries, PerQuery logits) {
    DotBf16Rows(keys, {num_queries, scale, queries}, pairs, logits);
  }
};
#endif

// All state of a task besides its queries, on the stack: 45 KiB.
struct Scratch {
  alignas(64) float sums[kFewQueries * kHeadDimMax];  // paired order; of unnormalised weights
  alignas(64) float logits[kFewQueries * RowTile::kRows];
  OnlineSoftmax softmax[kFewQueries];
  RowTile tiles[2];
};

// Inlined, or the compiler takes calls for idle and leaves them out.
HWY_INLINE void PrefetchTile(const RowTile& tile, const KvShape& shape) {
  for (int r = 0; r < tile.num_rows; ++r) {
    PrefetchBytes(tile.keys[r], shape.head_dim_k * DTypeBytes(shape.dtype));
  }
  for (int r = 0; r < tile.num_rows; ++r) {
    PrefetchBytes(tile.values[r], shape.head_dim_v * DTypeBytes(shape.dtype));
  }
}

// Hides from each query what it does not see.
void MaskLogits(const AttendRowsTask& task, const RowTile& tile, PerQuery logits) {
  for (int q = 0; q < task.num_queries; ++q) {
    MaskRow(tile, task.visible_end[q], logits.From(q, 0).data);
  }
}

template <DType kType, class LogitsOf>
void AttendTile(const AttendRowsTask& task, LogitsOf& products, const RowTile& tile,
                const RowTile& next, Scratch& scratch) {
  const int dim_v = task.shape.head_dim_v;
  const Rows keys = {tile.keys, tile.num_rows, task.shape.head_dim_k, next.keys};
  const Rows values = {tile.values, tile.num_rows, dim_v, next.values};
  const PerQuery logits = {scratch.logits, RowTile::kRows};
  products.Dot(keys, task.num_queries, logits);
  if (task.visible_end != nullptr) MaskLogits(task, tile, logits);
  for (int q = 0; q < task.num_queries; ++q) {
    const float shrink = scratch.softmax[q].Weigh(logits.From(q, 0).data, tile.num_rows).shrink;
    if (shrink != 1.0f) ScaleRow(scratch.sums + q * dim_v, dim_v, shrink);
  }
  WithVectorsFor(dim_v, [&](auto d) HWY_ATTR {
    AddWeightedRows<kType>(d, values, logits, task.num_queries, scratch.sums);
  });
}

// Returns whether rows of `next` were asked for.
template <DType kType, class LogitsOf>
bool AttendWith(const AttendRowsTask& task, const NextRows& next_rows, LogitsOf& products) {
  const int dim_v = task.shape.head_dim_v;
  Scratch scratch;
  std::fill_n(scratch.sums, task.num_queries * dim_v, 0.0f);

  RowTiles rows(task.ranges, task.shape, /*with_positions=*/task.visible_end != nullptr, kTileRows);
  RowTile* tile = &scratch.tiles[0];
  RowTile* next = &scratch.tiles[1];
  bool more = rows.Next(tile), asks_next = false;
  // Later tiles are asked for while the one before is worked on, in the end the next task's first.
  if (more && !next_rows.asked) PrefetchTile(*tile, task.shape);
  for (; more; std::swap(tile, next)) {
    more = rows.Next(next);
    if (!more && next_rows.task != nullptr) {
      asks_next = RowTiles(next_rows.task->ranges, task.shape, /*with_positions=*/false, kTileRows)
                      .Next(next);
    }
    AttendTile<kType>(task, products, *tile, more || asks_next ? *next : *tile, scratch);
  }

  WithVectorsFor(dim_v, [&](auto d) HWY_ATTR {
    LoadPaired<kType>(d, scratch.sums, task.num_queries * dim_v, task.output);
  });
  for (int q = 0; q < task.num_queries; ++q) {
    task.lse[q] = scratch.softmax[q].lse();
    ScaleRow(task.output + static_cast<int64_t>(q) * dim_v, dim_v,
             scratch.softmax[q].inverse_mass());
  }
  return asks_next;
}

template <DType kType>
bool Attend(const AttendRowsTask& task, const NextRows& next) {
  Products<kType> products;
  products.Prepare(task);
  return AttendWith<kType>(task, next, products);
}

#if WAVEKV_BF16_PRODUCTS
// Nothing if the queries do not allow it.
std::optional<bool> AttendByBf16Products(const AttendRowsTask& task, const NextRows& next) {
  Bf16Products products;
  if (task.num_queries < Bf16Products::kMinQueries || !products.Prepare(task)) return std::nullopt;
  return AttendWith<DType::kBFloat16>(task, next, products);
}
#endif

bool AttendFewQueriesOf(const AttendRowsTask& task, const NextRows& next) {
  switch (task.shape.dtype) {
    case DType::kFloat32:
      return Attend<DType::kFloat32>(task, next);
    case DType::kFloat16:
      return Attend<DType::kFloat16>(task, next);
    case DType::kBFloat16:
#if WAVEKV_BF16_PRODUCTS
      if (UsesBf16Products()) {
        if (const std::optional<bool> asked = AttendByBf16Products(task, next)) return *asked;
      }
#endif
      return Attend<DType::kBFloat16>(task, next);
  }
  return false;
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(AttendFewQueriesOf);

bool AttendFewQueries(const AttendRowsTask& task, const NextRows& next) {
  return HWY_DYNAMIC_DISPATCH(AttendFewQueriesOf)(task, next);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
