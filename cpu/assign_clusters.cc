#include "cpu/assign_clusters.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/instruction_sets.h"
#include "cpu/targets.h"
#include "wavekv/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/assign_clusters.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/gemm-inl.h"
#include "cpu/word_products-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

constexpr int kLanes = kWordLanes;
constexpr int kColumns = kWordColumns;
constexpr int kWordsMax = kHeadDimMax / 2;

int64_t PointId(const AssignClustersTask& task, int64_t i) {
  return task.point_ids == nullptr ? i : task.point_ids[i];
}

int64_t CentroidId(const AssignClustersTask& task, int64_t i) {
  return task.centroid_ids == nullptr ? i : task.centroid_ids[i];
}

const int16_t* PointOf(const AssignClustersTask& task, int64_t i) {
  return task.points + PointId(task, i) * task.dim;
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
  for (int column = 0; column < panel.num_columns; column += 4) {
    const std::byte* rows[4];
    for (int r = 0; r < 4; ++r) {
      // The last centroid stands in for those missing to a whole vector, where it changes nothing.
      const int64_t place = std::min<int64_t>(first + column + r, task.num_centroids - 1);
      rows[r] =
          reinterpret_cast<const std::byte*>(task.centroids + CentroidId(task, place) * task.dim);
    }
    // Moves words as if they were fp32.
    TransposeFourRows<DType::kFloat32>(
        rows, task.dim / 2, reinterpret_cast<float*>(panel.words + column), panel.num_columns);
  }
}

// The best centroid so far, by its place among those of the task.
struct Best {
  int32_t product = std::numeric_limits<int32_t>::min();
  int32_t place = 0;
};

// Only a strictly greater product wins, and of a panel's equals the first, which is never one of
// those that fill it up.
void Improve(const int32_t* products, const Panel& panel, Best& best) {
  const Words d;
  auto greatest = hn::Set(d, best.product);
  for (int i = 0; i < panel.num_columns; i += kLanes) {
    greatest = hn::Max(greatest, hn::Load(d, products + i));
  }
  const int32_t product = hn::GetLane(hn::MaxOfLanes(d, greatest));
  if (product <= best.product) return;
  for (int i = 0;; i += kLanes) {
    const auto equal = hn::Eq(hn::Load(d, products + i), hn::Set(d, product));
    const auto lane = hn::FindFirstTrue(d, equal);
    if (lane < 0) continue;
    best = {product, static_cast<int32_t>(panel.first + i + lane)};
    return;
  }
}

// sums = the products of kBlockRows points, fewer at the end, with a panel.
void MultiplyPanel(const AssignClustersTask& task, int64_t begin, int64_t end, const Panel& panel,
                   int32_t (*sums)[kColumns]) {
  // The last point stands in for those missing to a whole block.
  const int16_t* rows[kBlockRows];
  for (int64_t r = 0; r < kBlockRows; ++r) rows[r] = PointOf(task, std::min(begin + r, end - 1));
  const auto multiply = [&]<int kVectors>() HWY_ATTR {
    if constexpr (kVectors <= kBlockVectors) {
#if WAVEKV_INTEGER_PRODUCTS
      if (UsesIntegerProducts()) {
        return MultiplyWordsVnni<kVectors>(rows, panel.words, task.dim / 2, sums);
      }
#endif
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

void AssignPart(const AssignClustersTask& task, int64_t part) {
  const int64_t begin = part * kPointsPerPart;
  const int64_t end = std::min(begin + kPointsPerPart, task.num_points);
  // Points that are named lie anywhere.
  for (int64_t i = begin; i < end && task.point_ids != nullptr; ++i) {
    PrefetchBytes(reinterpret_cast<const std::byte*>(PointOf(task, i)),
                  task.dim * static_cast<int64_t>(sizeof(int16_t)));
  }
  Best best[kPointsPerPart];
  Panel panel;
  alignas(64) int32_t sums[kBlockRows][kColumns];
  for (int64_t first = 0; first < task.num_centroids; first += kColumns) {
    Pack(task, first, panel);
    for (int64_t i = begin; i < end; i += kBlockRows) {
      const int64_t block_end = std::min<int64_t>(i + kBlockRows, end);
      MultiplyPanel(task, i, block_end, panel, sums);
      for (int64_t r = i; r < block_end; ++r) {
        Improve(sums[r - i], panel, best[r - begin]);
        if (task.products == nullptr) continue;
        std::copy_n(sums[r - i], panel.num_centroids,
                    task.products + r * task.num_centroids + first);
      }
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    task.assignment[PointId(task, i)] =
        static_cast<int32_t>(CentroidId(task, best[i - begin].place));
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
