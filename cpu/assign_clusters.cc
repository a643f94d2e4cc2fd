#include "cpu/assign_clusters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/targets.h"
#include "wavekv/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/assign_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/gemm-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Products are of 16-bit integers: twice as many fit an instruction as of fp32, and sums in 32 bits
// are exact, so that the result is the same with any instructions. Two neighbouring elements form a
// word, which one instruction multiplies with another word and adds up.
//
// Bounds: a point's integers are at most 2^12, a centroid of length 1 has one of 2^14, so by Cauchy
// and Schwarz a sum is at most 2^12 sqrt(kHeadDimMax) 2^14, below 2^31.
constexpr float kPointMax = 4096.0f;
constexpr float kCentroidUnit = 16384.0f;
static_assert(kHeadDimMax <= 900);

using Words = hn::ScalableTag<int32_t>;
constexpr int kLanes = hn::MaxLanes(Words());
constexpr int kColumns = kBlockVectors * kLanes;
constexpr int kWordsMax = kHeadDimMax / 2;

int64_t PointId(const AssignClustersTask& task, int64_t i) {
  return task.point_ids == nullptr ? i : task.point_ids[i];
}

int64_t CentroidId(const AssignClustersTask& task, int64_t i) {
  return task.centroid_ids == nullptr ? i : task.centroid_ids[i];
}

// to = row * scale, to nearest.
void Quantize(const float* row, int dim, float scale, int16_t* to) {
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    const hn::Rebind<int16_t, decltype(d)> d16;
    const auto factor = hn::Set(d, scale);
    for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
      const auto integers = hn::NearestInt(hn::Mul(hn::LoadU(d, row + i), factor));
      hn::StoreU(hn::DemoteTo(d16, integers), d16, to + i);
    }
  });
}

float LargestMagnitude(const float* row, int dim) {
  float result = 0.0f;
  WithVectorsFor(dim, [&](auto d) HWY_ATTR {
    auto largest = hn::Zero(d);
    for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
      largest = hn::Max(largest, hn::Abs(hn::LoadU(d, row + i)));
    }
    result = hn::GetLane(hn::MaxOfLanes(d, largest));
  });
  return result;
}

// Points of a part as integers, each in a unit of its own.
struct Points {
  const int32_t* row(int64_t i, int dim) const { return words + i * (dim / 2); }

  float units[kPointsPerPart];
  alignas(64) int32_t words[kPointsPerPart * kWordsMax];
};

void Load(const AssignClustersTask& task, int64_t begin, int64_t end, Points& points) {
  constexpr float kLeast = 1e-30f;  // what is smaller is zero
  constexpr int64_t kAhead = 8;     // rows on their way: those that are named lie anywhere
  const auto prefetch = [&](int64_t i) {
    const float* const row = task.points + PointId(task, i) * task.dim;
    PrefetchBytes(reinterpret_cast<const std::byte*>(row),
                  task.dim * static_cast<int64_t>(sizeof(float)));
  };
  for (int64_t i = begin; i < std::min(begin + kAhead, end); ++i) prefetch(i);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) prefetch(i + kAhead);
    const float* const row = task.points + PointId(task, i) * task.dim;
    const float largest = LargestMagnitude(row, task.dim);
    const float scale = largest > kLeast ? kPointMax / largest : 0.0f;
    points.units[i - begin] = largest / kPointMax / kCentroidUnit;
    Quantize(row, task.dim, scale,
             reinterpret_cast<int16_t*>(points.words + (i - begin) * (task.dim / 2)));
  }
}

// Some consecutive centroids as columns of a matrix of words.
struct Panel {
  int64_t first = 0;
  int num_centroids = 0;
  int num_columns = 0;  // whole vectors
  alignas(64) int32_t words[kColumns * kWordsMax];
};

void Pack(const AssignClustersTask& task, int64_t first, Panel& panel) {
  panel.first = first;
  panel.num_centroids = static_cast<int>(std::min<int64_t>(kColumns, task.num_centroids - first));
  panel.num_columns = (panel.num_centroids + kLanes - 1) / kLanes * kLanes;
  const int num_words = task.dim / 2;
  alignas(64) int16_t rows[4][kHeadDimMax];
  const std::byte* addresses[4];
  for (int r = 0; r < 4; ++r) addresses[r] = reinterpret_cast<const std::byte*>(rows[r]);
  for (int column = 0; column < panel.num_columns; column += 4) {
    for (int r = 0; r < 4; ++r) {
      // The last centroid stands in for those missing to a whole vector, where it changes nothing.
      const int64_t place = std::min<int64_t>(first + column + r, task.num_centroids - 1);
      Quantize(task.centroids + CentroidId(task, place) * task.dim, task.dim, kCentroidUnit,
               rows[r]);
    }
    // Moves words as if they were fp32.
    TransposeFourRows<DType::kFloat32>(addresses, num_words,
                                       reinterpret_cast<float*>(panel.words + column),
                                       panel.num_columns);
  }
}

// sums[r][column] = the product of row r and that column of b, [num_words, columns].
template <int kVectors>
HWY_INLINE void MultiplyWords(const int32_t* const* rows, const int32_t* b, int num_words,
                              int32_t (*sums)[kColumns]) {
  const Words d;
  const hn::Repartition<int16_t, Words> d16;
  using V = hn::Vec<Words>;
  V acc[kBlockRows][kVectors], more[kBlockRows][kVectors];
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = more[r][v] = hn::Zero(d);
  }
  for (int k = 0; k < num_words; ++k, b += kVectors * kLanes) {
    hn::Vec<decltype(d16)> b_row[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) b_row[v] = hn::BitCast(d16, hn::Load(d, b + v * kLanes));
    HWY_UNROLL(6)
    for (int r = 0; r < kBlockRows; ++r) {
      const auto word = hn::BitCast(d16, hn::Set(d, rows[r][k]));
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = hn::ReorderWidenMulAccumulate(d, word, b_row[v], acc[r][v], more[r][v]);
      }
    }
  }
  HWY_UNROLL(6)
  for (int r = 0; r < kBlockRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(hn::RearrangeToOddPlusEven(acc[r][v], more[r][v]), d, sums[r] + v * kLanes);
    }
  }
}

// The best centroid so far, by its place among those of the task.
struct Best {
  int32_t product = std::numeric_limits<int32_t>::min();
  int32_t place = 0;
};

// Only a strictly greater product wins, and of a panel's equals the first.
void Improve(const int32_t* products, const Panel& panel, Best& best) {
  const Words d;
  auto greatest = hn::Set(d, best.product);
  for (int i = 0; i < panel.num_columns; i += kLanes) {
    greatest = hn::Max(greatest, hn::Load(d, products + i));
  }
  const int32_t product = hn::GetLane(hn::MaxOfLanes(d, greatest));
  if (product <= best.product) return;
  const auto at = std::find(products, products + panel.num_centroids, product) - products;
  best = {product, static_cast<int32_t>(panel.first + at)};
}

// kBlockRows points, fewer at the end, against a panel.
void AssignBlock(const AssignClustersTask& task, const Points& points, int64_t begin, int64_t end,
                 const Panel& panel, int32_t (*sums)[kColumns]) {
  // The last point stands in for those missing to a whole block.
  const int32_t* rows[kBlockRows];
  for (int64_t r = 0; r < kBlockRows; ++r) {
    rows[r] = points.row(std::min(begin + r, end - 1), task.dim);
  }
  const auto multiply = [&]<int kVectors>() HWY_ATTR {
    if constexpr (kVectors <= kBlockVectors) {
      MultiplyWords<kVectors>(rows, panel.words, task.dim / 2, sums);
    }
  };
  switch (panel.num_columns / kLanes) {
    case 1:
      return multiply.template operator()<1>();
    case 2:
      return multiply.template operator()<2>();
    case 3:
      return multiply.template operator()<3>();
    default:
      return multiply.template operator()<4>();
  }
}

void StoreProducts(const int32_t* sums, float unit, int count, float* to) {
  const Words d;
  const hn::Rebind<float, Words> df;
  alignas(64) float products[kColumns];
  for (int i = 0; i < count; i += kLanes) {
    const auto product = hn::Mul(hn::ConvertTo(df, hn::Load(d, sums + i)), hn::Set(df, unit));
    hn::Store(product, df, products + i);
  }
  std::copy_n(products, count, to);
}

void AssignPart(const AssignClustersTask& task, int64_t part) {
  const int64_t begin = part * kPointsPerPart;
  const int64_t num_points = std::min(kPointsPerPart, task.num_points - begin);
  Points points;
  Load(task, begin, begin + num_points, points);
  Best best[kPointsPerPart];
  Panel panel;
  alignas(64) int32_t sums[kBlockRows][kColumns];
  for (int64_t first = 0; first < task.num_centroids; first += kColumns) {
    Pack(task, first, panel);
    for (int64_t i = 0; i < num_points; i += kBlockRows) {
      const int64_t end = std::min<int64_t>(i + kBlockRows, num_points);
      AssignBlock(task, points, i, end, panel, sums);
      for (int64_t r = i; r < end; ++r) {
        const int32_t* const row = sums[r - i];
        Improve(row, panel, best[r]);
        if (task.products == nullptr) continue;
        StoreProducts(row, points.units[r], panel.num_centroids,
                      task.products + (begin + r) * task.num_centroids + first);
      }
    }
  }
  for (int64_t i = 0; i < num_points; ++i) {
    task.assignment[PointId(task, begin + i)] =
        static_cast<int32_t>(CentroidId(task, best[i].place));
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(AssignPart);

int64_t NumParts(const AssignClustersTask& task) {
  return std::max<int64_t>(1, (task.num_points + kPointsPerPart - 1) / kPointsPerPart);
}

void AssignClusters(const AssignClustersTask& task, int64_t part) {
  HWY_DYNAMIC_DISPATCH(AssignPart)(task, part);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
