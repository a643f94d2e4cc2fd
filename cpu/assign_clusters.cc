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

using Full = hn::ScalableTag<float>;
constexpr int kLanes = hn::MaxLanes(Full());
constexpr int kColumns = BlockColumns(Full());

int64_t PointId(const AssignClustersTask& task, int64_t i) {
  return task.point_ids == nullptr ? i : task.point_ids[i];
}

int64_t CentroidId(const AssignClustersTask& task, int64_t i) {
  return task.centroid_ids == nullptr ? i : task.centroid_ids[i];
}

// Some consecutive centroids as columns of a matrix.
struct Panel {
  int64_t first = 0;
  int num_centroids = 0;
  int num_columns = 0;  // whole vectors
  alignas(64) float columns[kColumns * kHeadDimMax];
};

void Pack(const AssignClustersTask& task, int64_t first, Panel& panel) {
  panel.first = first;
  panel.num_centroids = static_cast<int>(std::min<int64_t>(kColumns, task.num_centroids - first));
  panel.num_columns = (panel.num_centroids + kLanes - 1) / kLanes * kLanes;
  const std::byte* rows[kColumns];
  for (int64_t i = 0; i < panel.num_columns; ++i) {
    const int64_t centroid = CentroidId(task, std::min(first + i, task.num_centroids - 1));
    rows[i] = reinterpret_cast<const std::byte*>(task.centroids + centroid * task.dim);
  }
  for (int r = 0; r < panel.num_columns; r += 4) {
    TransposeFourRows<DType::kFloat32>(rows + r, task.dim, panel.columns + r, panel.num_columns);
  }
}

// The best centroid so far, by its place among those of the task.
struct Best {
  float score = -std::numeric_limits<float>::infinity();
  int32_t place = 0;
};

// Only a strictly greater score wins, and of a panel's equals the first.
void Improve(const float* scores, const Panel& panel, Best& best) {
  const Full d;
  auto greatest = hn::Set(d, best.score);
  for (int i = 0; i < panel.num_columns; i += kLanes) {
    greatest = hn::Max(greatest, hn::Load(d, scores + i));
  }
  const float score = hn::GetLane(hn::MaxOfLanes(d, greatest));
  if (!(score > best.score)) return;
  const int at = static_cast<int>(std::find(scores, scores + panel.num_centroids, score) - scores);
  best = {score, static_cast<int32_t>(panel.first + at)};
}

// kBlockRows points, fewer at the end, against a panel.
void AssignBlock(const AssignClustersTask& task, int64_t begin, int64_t end, const Panel& panel,
                 Best* best) {
  // The last point stands in for those missing to a whole block. So does the last centroid for
  // those missing to a whole vector, where it changes nothing.
  const float* points[kBlockRows];
  for (int64_t r = 0; r < kBlockRows; ++r) {
    points[r] = task.points + PointId(task, std::min(begin + r, end - 1)) * task.dim;
  }
  alignas(64) float scores[kBlockRows * kColumns];
  const auto multiply = [&]<int kVectors>() HWY_ATTR {
    if constexpr (kVectors <= kBlockVectors) {
      MultiplyBlock<kVectors, /*kAdd=*/false>(Full(), points, panel.columns, panel.num_columns,
                                              task.dim, scores, kColumns);
    }
  };
  switch (panel.num_columns / kLanes) {
    case 1:
      multiply.template operator()<1>();
      break;
    case 2:
      multiply.template operator()<2>();
      break;
    case 3:
      multiply.template operator()<3>();
      break;
    default:
      multiply.template operator()<kBlockVectors>();
  }
  for (int64_t i = begin; i < end; ++i) {
    const float* const row = scores + (i - begin) * kColumns;
    Improve(row, panel, best[i - begin]);
    if (task.products != nullptr) {
      std::copy_n(row, panel.num_centroids, task.products + i * task.num_centroids + panel.first);
    }
  }
}

void AssignPart(const AssignClustersTask& task, int64_t part) {
  const int64_t begin = part * kPointsPerPart;
  const int64_t end = std::min(begin + kPointsPerPart, task.num_points);
  Best best[kPointsPerPart];
  Panel panel;
  for (int64_t first = 0; first < task.num_centroids; first += kColumns) {
    Pack(task, first, panel);
    for (int64_t i = begin; i < end; i += kBlockRows) {
      AssignBlock(task, i, std::min(i + kBlockRows, end), panel, best + (i - begin));
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const Best& found = best[i - begin];
    const int64_t point = PointId(task, i);
    task.assignment[point] = static_cast<int32_t>(CentroidId(task, found.place));
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
