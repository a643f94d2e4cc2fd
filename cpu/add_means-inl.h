// Weighted sums of stored means, decoded in registers. Compiled once per instruction set.
#if defined(WAVEKV_CPU_ADD_MEANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ADD_MEANS_INL_H_
#undef WAVEKV_CPU_ADD_MEANS_INL_H_
#else
#define WAVEKV_CPU_ADD_MEANS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"
#include "storage/cluster_index.h"
#include "storage/statistics_row.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Means that are added up together.
inline constexpr int kMeansTile = 32;

// Some means by address, and their weights, into which the scales of their rows are multiplied.
struct WeightedMeans {
  int count = 0;
  const std::byte* rows[kMeansTile];
  PerQuery weights;
};

// How two vectors of elements of a row are unpacked together, without scale and offset: those from
// i on, and those Second() elements behind them. The next two begin at i + Step().
template <StatisticsFormat kFormat>
struct Unpacked {
  template <class D>
  static HWY_INLINE int Second(D d, int dim) {
    return kFormat == StatisticsFormat::kInt4 ? dim / 2 : static_cast<int>(hn::Lanes(d));
  }
  template <class D>
  static HWY_INLINE int Step(D d) {
    return static_cast<int>(hn::Lanes(d)) * (kFormat == StatisticsFormat::kInt4 ? 1 : 2);
  }

  template <class D>
  static HWY_INLINE void Load(D d, const std::byte* row, int i, hn::Vec<D>& first,
                              hn::Vec<D>& second) {
    const hn::Rebind<int32_t, D> di;
    const int n = static_cast<int>(hn::Lanes(d));
    if constexpr (kFormat == StatisticsFormat::kInt4) {
      const hn::Rebind<uint8_t, D> d8;
      const auto both = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(row) + i));
      first = hn::ConvertTo(d, hn::And(both, hn::Set(di, 15)));
      second = hn::ConvertTo(d, hn::ShiftRight<4>(both));
    } else if constexpr (kFormat == StatisticsFormat::kInt8) {
      const hn::Rebind<int8_t, D> d8;
      const auto* bytes = reinterpret_cast<const int8_t*>(row) + i;
      first = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, bytes)));
      second = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, bytes + n)));
    } else {
      first = hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
      second = hn::LoadU(d, reinterpret_cast<const float*>(row) + i + n);
    }
  }
};

// sums += weights . rows over kPairs pairs of vectors.
template <StatisticsFormat kFormat, int kQueries, int kPairs, class D>
HWY_INLINE void AddMeanColumns(D d, const WeightedMeans& means, int first_query, int column,
                               int dim, float* sums) {
  using Format = Unpacked<kFormat>;
  using V = hn::Vec<D>;
  const int step = Format::Step(d), second = Format::Second(d, dim);
  V acc[kQueries][2 * kPairs];
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      const float* from = sums + q * dim + column + p * step;
      acc[q][2 * p] = hn::LoadU(d, from);
      acc[q][2 * p + 1] = hn::LoadU(d, from + second);
    }
  }
  for (int r = 0; r < means.count; ++r) {
    V value[2 * kPairs];
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      Format::Load(d, means.rows[r], column + p * step, value[2 * p], value[2 * p + 1]);
    }
    HWY_UNROLL(4)
    for (int q = 0; q < kQueries; ++q) {
      const V weight = hn::Set(d, *means.weights.From(first_query + q, r).data);
      HWY_UNROLL(8)
      for (int v = 0; v < 2 * kPairs; ++v) acc[q][v] = hn::MulAdd(weight, value[v], acc[q][v]);
    }
  }
  HWY_UNROLL(4)
  for (int q = 0; q < kQueries; ++q) {
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      float* to = sums + q * dim + column + p * step;
      hn::StoreU(acc[q][2 * p], d, to);
      hn::StoreU(acc[q][2 * p + 1], d, to + second);
    }
  }
}

// For kQueries queries over all columns.
template <StatisticsFormat kFormat, int kQueries, class D>
HWY_INLINE void AddMeansTo(D d, const WeightedMeans& means, int first_query, int dim, float* sums) {
  constexpr int kPairs = 2;
  const int step = Unpacked<kFormat>::Step(d);
  const int end = kFormat == StatisticsFormat::kInt4 ? dim / 2 : dim;
  int column = 0;
  for (; column + kPairs * step <= end; column += kPairs * step) {
    AddMeanColumns<kFormat, kQueries, kPairs>(d, means, first_query, column, dim, sums);
  }
  for (; column < end; column += step) {
    AddMeanColumns<kFormat, kQueries, 1>(d, means, first_query, column, dim, sums);
  }
}

// sums [num_queries, dim] += weights . rows. Not inlined: the loops need all registers.
template <StatisticsFormat kFormat, class D>
HWY_NOINLINE void AddTile(D d, const WeightedMeans& means, int num_queries, int dim, float* sums) {
  constexpr int kAtOnce = kAccumulators / 4;
  int q = 0;
  for (; q + kAtOnce <= num_queries; q += kAtOnce) {
    AddMeansTo<kFormat, kAtOnce>(d, means, q, dim, sums + q * dim);
  }
  for (; q < num_queries; ++q) AddMeansTo<kFormat, 1>(d, means, q, dim, sums + q * dim);
}

// Weights of listed items, in batches of four queries: [batch, item, 4], of which a batch has room
// for `stride` items and the rows behind the last may be read.
struct BatchedWeights {
  const float* batches = nullptr;
  int64_t stride = 0;

  // To [queries, columns], for items [first, first + count); columns >= count rounded up to four.
  HWY_INLINE void Transpose(int64_t first, int count, int first_query, int num_queries,
                            float* weights, int64_t columns) const {
    for (int q = 0; q < num_queries; q += 4) {
      const float* from = batches + ((first_query + q) / 4 * stride + first) * 4;
      TransposeBatches(from, count, weights + q * columns, columns);
    }
  }
};

// sums [num_queries, dim] += weights . means, for the rows listed. kMax: num_queries at most.
template <int kMax>
HWY_INLINE void AddMeans(const StatisticsRows& means, StatisticsFormat format, int dim,
                         const std::vector<uint32_t>& list, const BatchedWeights& weights,
                         int first_query, int num_queries, float* sums) {
  static_assert(kMax % 4 == 0);
  alignas(64) float of_tile[kMax * kMeansTile];
  alignas(64) float scales[kMeansTile];
  WeightedMeans tile;
  tile.weights = {of_tile, kMeansTile};
  const hn::CappedTag<float, 16> d;
  for (size_t first = 0; first < list.size(); first += kMeansTile) {
    tile.count = static_cast<int>(std::min<size_t>(kMeansTile, list.size() - first));
    for (size_t i = first + kMeansTile; i < std::min(first + 2 * kMeansTile, list.size()); ++i) {
      PrefetchBytes(means.row(list[i]), means.row_bytes);
    }
    std::fill_n(scales, kMeansTile, 0.0f);
    for (int i = 0; i < tile.count; ++i) {
      tile.rows[i] = means.row(list[first + i]);
      scales[i] = means.scale(list[first + i]);
    }
    weights.Transpose(static_cast<int64_t>(first), tile.count, first_query, num_queries, of_tile,
                      kMeansTile);
    for (int q = 0; q < num_queries; ++q) {
      float* row = of_tile + q * kMeansTile;
      auto sum = hn::Zero(d);
      for (int i = 0; i < tile.count; i += static_cast<int>(hn::Lanes(d))) {
        const auto is_row = hn::FirstN(d, tile.count - i);
        const auto scaled = hn::Mul(hn::LoadU(d, row + i), hn::Load(d, scales + i));
        const auto weight = hn::IfThenElseZero(is_row, scaled);
        hn::StoreU(weight, d, row + i);
        sum = hn::Add(sum, weight);
      }
      if (format != StatisticsFormat::kInt4) continue;
      // Integers of 4 bits are stored plus 8.
      const hn::CappedTag<float, 8> d8;  // divides every dim
      const auto offset = hn::Set(d8, -8.0f * hn::GetLane(hn::SumOfLanes(d, sum)));
      for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d8))) {
        hn::StoreU(hn::Add(hn::LoadU(d8, sums + q * dim + i), offset), d8, sums + q * dim + i);
      }
    }
    WithVectorsFor(dim, [&](auto v) HWY_ATTR {
      switch (format) {
        case StatisticsFormat::kInt4:
          return AddTile<StatisticsFormat::kInt4>(v, tile, num_queries, dim, sums);
        case StatisticsFormat::kInt8:
          return AddTile<StatisticsFormat::kInt8>(v, tile, num_queries, dim, sums);
        case StatisticsFormat::kFloat32:
          return AddTile<StatisticsFormat::kFloat32>(v, tile, num_queries, dim, sums);
      }
    });
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
