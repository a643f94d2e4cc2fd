#include "cpu/attend_many_queries.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "cpu/row_tiles.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attend_many_queries.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/gemm-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

using Full = hn::ScalableTag<float>;

constexpr int kTileRows = RowTile::kRows;
static_assert(kTileRows % BlockColumns(Full()) == 0, "a tile of keys is whole panels");
static_assert(kManyQueries % kBlockRows == 0);

// A third of a second-level cache; on the heap because threads may have small stacks.
struct Scratch {
  alignas(64) float keys[kTileRows * kHeadDimMax];     // panels of PackColumns()
  alignas(64) float values[kTileRows * kHeadDimMax];   // [row, padded head_dim_v]
  alignas(64) float sums[kManyQueries * kHeadDimMax];  // [query, padded head_dim_v]
  alignas(64) float logits[kBlockRows * kTileRows];
  OnlineSoftmax softmax[kManyQueries];
  RowTile tiles[2];
};

Scratch& ThreadScratch() {
  thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

int64_t VisibleEnd(const AttendRowsTask& task, int query) {
  return task.visible_end == nullptr ? std::numeric_limits<int64_t>::max()
                                     : task.visible_end[query];
}

// The furthest that any of the queries sees.
int64_t VisibleEndMax(const AttendRowsTask& task, int begin, int end) {
  int64_t max = VisibleEnd(task, begin);
  for (int q = begin + 1; q < end; ++q) max = std::max(max, VisibleEnd(task, q));
  return max;
}

template <DType kType>
void PackValues(const RowTile& tile, int dim, int padded_dim, float* to) {
  const hn::CappedTag<float, 8> d;  // divides every dim
  const int n = static_cast<int>(hn::Lanes(d));
  for (int r = 0; r < tile.num_rows; ++r) {
    for (int i = 0; i < dim; i += n) {
      const auto values = LoadInOrder<kType>(d, tile.values[r] + i * DTypeBytes(kType));
      hn::StoreU(values, d, to + r * padded_dim + i);
    }
  }
}

void PrefetchTile(const RowTile& tile, const KvShape& shape) {
  for (int r = 0; r < tile.num_rows; ++r) {
    PrefetchBytes(tile.keys[r], shape.head_dim_k * DTypeBytes(shape.dtype));
    PrefetchBytes(tile.values[r], shape.head_dim_v * DTypeBytes(shape.dtype));
  }
}

// logits [kBlockRows, kTileRows] = queries . keys.
void Logits(const float* const* queries, const RowTile& tile, int dim, Scratch& scratch) {
  constexpr int kColumns = BlockColumns(Full());
  for (int column = 0; column < tile.num_rows; column += kColumns) {
    MultiplyBlock<kBlockVectors, /*kAdd=*/false>(Full(), queries, scratch.keys + column * dim,
                                                 kColumns, dim, scratch.logits + column, kTileRows);
  }
}

// sums [kBlockRows, padded_dim] += weights . values.
void AddWeightedValues(const RowTile& tile, int padded_dim, const Scratch& scratch, float* sums) {
  const Full d;
  const int n = static_cast<int>(hn::Lanes(d));
  const float* weights[kBlockRows];
  for (int r = 0; r < kBlockRows; ++r) weights[r] = scratch.logits + r * kTileRows;
  const auto add = [&](auto num_vectors, int column) HWY_ATTR {
    MultiplyBlock<num_vectors(), /*kAdd=*/true>(d, weights, scratch.values + column, padded_dim,
                                                tile.num_rows, sums + column, padded_dim);
  };
  int column = 0;
  for (; column + kBlockVectors * n <= padded_dim; column += kBlockVectors * n) {
    add(std::integral_constant<int, kBlockVectors>(), column);
  }
  for (; column < padded_dim; column += n) add(std::integral_constant<int, 1>(), column);
}

// kBlockRows queries, from `begin` on, against the packed tile.
void AttendTile(const AttendRowsTask& task, const RowTile& tile, int begin, int padded_dim,
                Scratch& scratch) {
  const int end = std::min(begin + kBlockRows, task.num_queries);
  if (VisibleEndMax(task, begin, end) <= tile.first_position) return;
  const int dim_k = task.shape.head_dim_k;
  // The last query stands in for those missing to a whole block.
  const float* queries[kBlockRows];
  for (int r = 0; r < kBlockRows; ++r) {
    queries[r] = task.queries + std::min(begin + r, end - 1) * dim_k;
  }
  Logits(queries, tile, dim_k, scratch);
  for (int q = begin; q < end; ++q) {
    float* logits = scratch.logits + (q - begin) * kTileRows;
    for (int r = 0; r < tile.num_rows; r += 4) {
      const hn::FixedTag<float, 4> d;
      hn::Store(ClampLogit(d, hn::Load(d, logits + r)), d, logits + r);
    }
    MaskRow(tile, VisibleEnd(task, q), logits);
    const float shrink = scratch.softmax[q].Weigh(logits, tile.num_rows).shrink;
    if (shrink != 1.0f) ScaleRow(scratch.sums + q * padded_dim, padded_dim, shrink);
  }
  AddWeightedValues(tile, padded_dim, scratch, scratch.sums + begin * padded_dim);
}

template <DType kType>
void Attend(const AttendRowsTask& task) {
  const int dim_k = task.shape.head_dim_k, dim_v = task.shape.head_dim_v;
  const int n = static_cast<int>(hn::Lanes(Full()));
  const int padded_dim = (dim_v + n - 1) / n * n;
  Scratch& scratch = ThreadScratch();
  std::fill_n(scratch.sums, kManyQueries * padded_dim, 0.0f);
  std::fill_n(scratch.values, kTileRows * padded_dim, 0.0f);
  std::fill_n(scratch.softmax, task.num_queries, OnlineSoftmax());

  const int64_t visible_end = VisibleEndMax(task, 0, task.num_queries);
  RowTiles rows(task.ranges, task.shape, /*with_positions=*/true);
  RowTile* tile = &scratch.tiles[0];
  RowTile* next = &scratch.tiles[1];
  for (bool more = rows.Next(tile); more; std::swap(tile, next)) {
    more = rows.Next(next);
    if (tile->first_position >= visible_end) continue;
    PackColumns<kType>(Full(), tile->keys, tile->num_rows, dim_k, scratch.keys);
    PackValues<kType>(*tile, dim_v, padded_dim, scratch.values);
    if (more) PrefetchTile(*next, task.shape);
    for (int q = 0; q < task.num_queries; q += kBlockRows) {
      AttendTile(task, *tile, q, padded_dim, scratch);
    }
  }

  for (int q = 0; q < task.num_queries; ++q) {
    float* output = task.output + q * dim_v;
    std::copy_n(scratch.sums + q * padded_dim, dim_v, output);
    ScaleRow(output, dim_v, scratch.softmax[q].inverse_mass());
    task.lse[q] = scratch.softmax[q].lse();
  }
}

void AttendManyQueriesOf(const AttendRowsTask& task) {
  switch (task.shape.dtype) {
    case DType::kFloat32:
      return Attend<DType::kFloat32>(task);
    case DType::kFloat16:
      return Attend<DType::kFloat16>(task);
    case DType::kBFloat16:
      return Attend<DType::kBFloat16>(task);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(AttendManyQueriesOf);

void AttendManyQueries(const AttendRowsTask& task) {
  HWY_DYNAMIC_DISPATCH(AttendManyQueriesOf)(task);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
