// Sealed indexes from clustered rows: index/segment_builder.cc's WriteClusterIndex on GPUs.
//
// Keys go through four kernels, values through the first three of them:
//   GatherKernel        a warp per cluster copies its rows into cluster order and takes their mean
//                       and their squared distances from it on the way: rows are read and written
//                       once.
//   SegmentMeanKernel   the mean of the clusters' means, and the scale to compute in.
//   ClusterMeansKernel  a block per super-cluster rotates and stores its mean and those of its
//                       clusters. Spreads are those about the true mean plus the squared distance
//                       of the mean as stored, so rows need not be read for them.
//   TokenCodesKernel    a warp per 32 tokens, eight lanes per token: the rotated distances of keys
//                       from the centroid as stored. Keys are read once more.
//
// Memory bounds all of it: per token 2 (head_dim_k + head_dim_v) elements moved for the rows and
// head_dim_k more read for the codes; per cluster ten rows of fp32, a quarter of that at 16 tokens
// of bf16 per cluster. The codes' arithmetic, some 90 warp instructions per token of head_dim 128,
// takes about as long as reading the keys.
#include <algorithm>

#include "cuda/cluster_means.h"
#include "cuda/gather_rows.h"
#include "cuda/index_scratch.h"
#include "cuda/kernel.h"
#include "cuda/rotate_tile.h"
#include "cuda/rotation_signs.h"
#include "cuda/token_codes.h"
#include "cuda/write_indexes.h"
#include "storage/status_macros.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int64_t kCodeSharedBytes = 48 << 10;
// What there is on average, for the size of grids: more or fewer only share blocks.
constexpr int64_t kTokensPerCluster = 16;
constexpr int64_t kTokensPerSuper = 256;

unsigned Parts(int64_t items, int64_t per_part) {
  constexpr int64_t kGridMax = 65535;
  return static_cast<unsigned>(std::clamp((items + per_part - 1) / per_part, int64_t{1}, kGridMax));
}

absl::Status WriteSide(GpuTasks<GpuWriteIndexTask> tasks, const TaskBounds& bounds,
                       std::byte* scratch, SideName side, GpuStream stream) {
  const ScratchLayout layout = LayoutOf(bounds);
  const int dim = side == SideName::kKeys ? bounds.shape.head_dim_k : bounds.shape.head_dim_v;
  const auto num_tasks = static_cast<unsigned>(tasks.count);
  constexpr int kGatherWarps = kGatherThreads / kWarp;
  const GridShape gather = {num_tasks, Parts(bounds.num_items, kTokensPerCluster * kGatherWarps)};
  const auto launch_gather = [&](auto kernel) {
    return Launch("GatherRows", kernel, gather, kGatherThreads, 0, stream, tasks.tasks, scratch,
                  layout, side);
  };
  WAVEKV_RETURN_IF_ERROR(
      bounds.shape.dtype == DType::kFloat32   ? launch_gather(GatherKernel<DType::kFloat32>)
      : bounds.shape.dtype == DType::kFloat16 ? launch_gather(GatherKernel<DType::kFloat16>)
                                              : launch_gather(GatherKernel<DType::kBFloat16>));
  WAVEKV_RETURN_IF_ERROR(Launch("SegmentMeans", SegmentMeanKernel, {num_tasks, Parts(dim, kWarp)},
                                kMeanThreads,
                                SharedSize().Add<double>(kMeanThreads).Add<float>(33).bytes(),
                                stream, tasks.tasks, scratch, layout, side));
  const TileShape shape = TileShapeOf(dim);
  WAVEKV_RETURN_IF_ERROR(WithColumns(shape, [&](auto columns) {
    return Launch("ClusterMeans", ClusterMeansKernel<columns()>,
                  {num_tasks, Parts(bounds.num_items, kTokensPerSuper)}, kMeansThreads,
                  MeansSharedSize(dim).bytes(), stream, tasks.tasks, scratch, layout, side, shape,
                  kRotationSigns);
  }));
  if (side == SideName::kValues) return absl::OkStatus();
  int warps = kCodeWarpsMax;
  while (warps > 1 && CodesSharedSize(bounds.shape, warps).bytes() > kCodeSharedBytes) warps /= 2;
  return WithColumns(shape, [&](auto columns) {
    return Launch("TokenCodes", TokenCodesKernel<columns()>,
                  {num_tasks, Parts(bounds.num_items, kCodeTokens * warps)}, warps * kWarp,
                  CodesSharedSize(bounds.shape, warps).bytes(), stream, tasks.tasks, scratch,
                  layout, shape, kRotationSigns);
  });
}

}  // namespace

int64_t WriteIndexScratchBytes(const TaskBounds& bounds) { return LayoutOf(bounds).bytes; }

absl::Status WriteIndexes(GpuTasks<GpuWriteIndexTask> tasks, const TaskBounds& bounds,
                          std::byte* scratch, GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(WriteSide(tasks, bounds, scratch, SideName::kKeys, stream));
  return WriteSide(tasks, bounds, scratch, SideName::kValues, stream);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
