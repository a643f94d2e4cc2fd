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
constexpr int kColumns = BlockColumns(Full());

// Some consecutive centroids as columns of a matrix.
struct Panel {
  int64_t first = 0;
  int num_centroids = 0;
  alignas(64) float columns[kColumns * kHeadDimMax];
};

void Pack(const AssignClustersTask& task, int64_t first, Panel& panel) {
  panel.first = first;
  panel.num_centroids = static_cast<int>(std::min<int64_t>(kColumns, task.num_centroids - first));
  const std::byte* rows[kColumns];
  for (int64_t i = 0; i < kColumns; ++i) {
    const int64_t centroid = std::min(first + i, task.num_centroids - 1);
    rows[i] = reinterpret_cast<const std::byte*>(task.centroids + centroid * task.dim);
  }
  PackColumns<DType::kFloat32>(Full(), rows, kColumns, task.dim, panel.columns);
}

// The best centroid so far.
struct Best {
  float score = -std::numeric_limits<float>::infinity();
  int32_t centroid = 0;
};

// Only a strictly greater score wins, and of a panel's equals the first: ties go to the lower
// index.
void Improve(const float* scores, const Panel& panel, Best& best) {
  const Full d;
  const int n = static_cast<int>(hn::Lanes(d));
  auto greatest = hn::Set(d, best.score);
  for (int i = 0; i < kColumns; i += n) greatest = hn::Max(greatest, hn::Load(d, scores + i));
  const float score = hn::GetLane(hn::MaxOfLanes(d, greatest));
  if (!(score > best.score)) return;
  const int at = static_cast<int>(std::find(scores, scores + panel.num_centroids, score) - scores);
  best = {score, static_cast<int32_t>(panel.first + at)};
}

// kBlockRows points, fewer at the end, against a panel.
void AssignBlock(const AssignClustersTask& task, int64_t begin, int64_t end, const Panel& panel,
                 Best* best) {
  // The last point stands in for those missing to a whole block. So does the last centroid in a
  // panel, where it changes nothing.
  const float* points[kBlockRows];
  for (int64_t r = 0; r < kBlockRows; ++r) {
    points[r] = task.points + std::min(begin + r, end - 1) * task.dim;
  }
  alignas(64) float scores[kBlockRows * kColumns];
  MultiplyBlock<kBlockVectors, /*kAdd=*/false>(Full(), points, panel.columns, kColumns, task.dim,
                                               scores, kColumns);
  for (int64_t i = begin; i < end; ++i) {
    Improve(scores + (i - begin) * kColumns, panel, best[i - begin]);
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
    task.assignment[i] = best[i - begin].centroid;
    if (task.scores != nullptr) task.scores[i] = best[i - begin].score;
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
