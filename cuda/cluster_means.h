// The means of super-clusters and clusters as stored, and the spreads about them: kernel code of
// write_indexes.cu.
#ifndef WAVEKV_CUDA_CLUSTER_MEANS_H_
#define WAVEKV_CUDA_CLUSTER_MEANS_H_

#include <cstddef>
#include <cstdint>

#include "cuda/index_scratch.h"
#include "cuda/kernel.h"
#include "cuda/rotate_tile.h"
#include "cuda/rotation_signs.h"
#include "cuda/store_means.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kMeansThreads = 128;
constexpr int kMeansWarps = kMeansThreads / kWarp;

struct SideOutput {
  float* mean = nullptr;
  float* spreads = nullptr;
  float* super_spreads = nullptr;
  MutableStatisticsRows means;
  MutableStatisticsRows super_means;
};

WAVEKV_DEVICE SideOutput OutputOf(const MutableClusterIndex& out, SideName side) {
  if (side == SideName::kKeys) {
    return {out.mean_key, out.key_spreads, out.super_key_spreads, out.centroids,
            out.super_centroids};
  }
  return {out.mean_value, out.value_spreads, out.super_value_spreads, out.value_means,
          out.super_value_means};
}

SharedSize MeansSharedSize(int dim) {
  return SharedSize()
      .Add<float>(kMeansWarps * TileShapeOf(dim).num_floats())
      .Add<uint32_t>(dim / kRowLanes)
      .Add<uint32_t>(dim / kRowLanes)
      .Add<float>(dim)
      .Add<float>(dim)
      .Add<float>(dim)
      .Add<double>(kMeansWarps);
}

// Blocks stride over the super-clusters of a task, warps over a super-cluster's clusters, four at a
// time.
template <int kColumns>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kMeansThreads, kColumns <= 16 ? 5 : 4)
    ClusterMeansKernel(const GpuWriteIndexTask* tasks, std::byte* scratch_bytes,
                       ScratchLayout layout, SideName side_name, TileShape shape,
                       RotationSigns signs) {
  const GpuWriteIndexTask& task = tasks[blockIdx.x];
  const uint32_t* const offsets = task.offsets;
  const int64_t num_supers = task.out.num_supers;
  if (num_supers == 0 || task.out.num_clusters == 0) return;
  const Scratch scratch = Locate(scratch_bytes, layout, blockIdx.x);
  const int dim = shape.columns * kRowLanes;
  SharedMemory shared;
  float* const tiles = shared.Take<float>(kMeansWarps * shape.num_floats());
  uint32_t* const first_signs = shared.Take<uint32_t>(shape.columns);
  uint32_t* const second_signs = shared.Take<uint32_t>(shape.columns);
  float* const mean = shared.Take<float>(dim);        // the segment's, with the first signs
  float* const origin = shared.Take<float>(dim);      // reference row minus the segment's mean
  float* const super_mean = shared.Take<float>(dim);  // as stored
  double* const sums = shared.Take<double>(kMeansWarps);

  const SideScale side = *scratch.scale;
  const SideOutput out = OutputOf(task.out, side_name);
  const StatisticsFormat format = task.out.statistics;
  const double unit_squared = side.unit * side.unit;
  const float from_scratch = side.scale / kDifferenceScale;
  for (int i = ThreadIndex(); i < shape.columns; i += BlockThreads()) {
    first_signs[i] = SignsOfVector(signs, shape.columns, 0, i);
    second_signs[i] = SignsOfVector(signs, shape.columns, 1, i);
  }
  SyncBlock();
  const std::byte* const reference = ReferenceRow(task, side_name);
  for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
    const float of_segment = scratch.mean[d] * side.scale;
    mean[d] = FlipIf(first_signs[d / kRowLanes] >> (d % kRowLanes) & 1u, of_segment);
    origin[d] = MulAdd(LoadAs(reference, task.out.shape.dtype, d), side.scale, -of_segment);
  }
  SyncBlock();

  float* const own_tile = tiles + WarpIndex() * shape.num_floats();
  const RotationTile<kColumns> tile(shape, own_tile, second_signs);
  const int row_of_lane = LaneIndex() / kRowLanes;
  if (blockIdx.y == 0 && WarpIndex() == 0) {
    for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
      WAVEKV_UNROLL
      for (int k = 0; k < kRowLanes; ++k) tile.At(i, k) = mean[i * kRowLanes + k];
    }
    tile.Rotate(/*back=*/false);
    if (row_of_lane == 0) {
      for (int i = 0; i < shape.columns; ++i) {
        out.mean[i * kRowLanes + tile.lane] = ToFloat(tile.At(i, tile.lane) * side.unit);
      }
    }
  }

  for (int64_t super = blockIdx.y; super < num_supers; super += gridDim.y) {
    const int64_t first = task.super_offsets[super], last = task.super_offsets[super + 1];
    const double inverse_size = 1.0 / static_cast<double>(offsets[last] - offsets[first]);
    SyncBlock();  // as the super-cluster before and the mean above are done with shared memory
    for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
      constexpr int kAtOnce = 4;
      double sum = 0.0;
      for (int64_t cluster = first; cluster < last; cluster += kAtOnce) {
        float of_cluster[kAtOnce], size[kAtOnce];
        WAVEKV_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          const int64_t c = cluster + u;
          of_cluster[u] = c < last ? scratch.cluster_rows[c * dim + d] : 0.0f;
          size[u] = c < last ? static_cast<float>(offsets[c + 1] - offsets[c]) : 0.0f;
        }
        WAVEKV_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          sum += static_cast<double>(of_cluster[u]) * static_cast<double>(size[u]);
        }
      }
      const float x = MulAdd(static_cast<float>(sum * inverse_size), from_scratch, origin[d]);
      super_mean[d] = FlipIf(first_signs[d / kRowLanes] >> (d % kRowLanes) & 1u, x);
    }
    SyncBlock();
    if (WarpIndex() == 0) {
      for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
        WAVEKV_UNROLL
        for (int k = 0; k < kRowLanes; ++k) tile.At(i, k) = super_mean[i * kRowLanes + k];
      }
      tile.Rotate(/*back=*/false);
      StoreMeans(tile, SuperFormat(format), side, out.super_means, row_of_lane == 0 ? super : -1);
      if (row_of_lane == 0) {
        for (int i = 0; i < shape.columns; ++i) {
          super_mean[i * kRowLanes + tile.lane] = tile.At(i, tile.lane);
        }
      }
    }
    SyncBlock();

    double spread =
        0.0;  // of the super-cluster, times its size: of the clusters of this lane's row
    for (int64_t base = first + WarpIndex() * kTileRows; base < last;
         base += int64_t{kMeansWarps} * kTileRows) {
      const bool active = base + row_of_lane < last;
      const int64_t cluster = active ? base + row_of_lane : first;
      float* const row = scratch.cluster_rows + cluster * dim;
      for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
        Bytes16 bytes[2] = {};
        if (active) {
          bytes[0] = *reinterpret_cast<const Bytes16*>(row + i * kRowLanes);
          bytes[1] = *reinterpret_cast<const Bytes16*>(row + i * kRowLanes + 4);
        }
        WAVEKV_UNROLL
        for (int k = 0; k < kRowLanes; ++k) {
          const float x = MulAdd(FloatFromBits(bytes[k / 4].words[k % 4]), from_scratch,
                                 origin[i * kRowLanes + k]);
          tile.At(i, k) = FlipIf(first_signs[i] >> k & 1u, x);
        }
      }
      tile.Rotate(/*back=*/false);
      for (int i = 0; i < shape.columns; ++i) {
        tile.At(i, tile.lane) -= super_mean[i * kRowLanes + tile.lane];
      }
      const StoredMean stored = StoreMeans(tile, format, side, out.means, active ? cluster : -1);
      if (active) {
        const double about_mean = scratch.variances[cluster];
        const auto size = static_cast<double>(offsets[cluster + 1] - offsets[cluster]);
        if (tile.lane == 0) {
          out.spreads[cluster] = ToFloat(about_mean + stored.error * unit_squared);
        }
        spread += size * (side_name == SideName::kKeys ? about_mean + stored.squared * unit_squared
                                                       : stored.stored_squared * unit_squared);
      }
      if (side_name != SideName::kKeys) continue;
      for (int i = 0; i < shape.columns; ++i) {
        tile.At(i, tile.lane) += super_mean[i * kRowLanes + tile.lane];
      }
      tile.Rotate(/*back=*/true);
      if (!active) continue;
      for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
        Bytes16 bytes[2];
        WAVEKV_UNROLL
        for (int k = 0; k < kRowLanes; ++k) {
          bytes[k / 4].words[k % 4] = FloatBits(tile.At(i, k) + mean[i * kRowLanes + k]);
        }
        *reinterpret_cast<Bytes16*>(row + i * kRowLanes) = bytes[0];
        *reinterpret_cast<Bytes16*>(row + i * kRowLanes + 4) = bytes[1];
      }
    }
    spread = SumOfWarp(tile.lane == 0 ? spread : 0.0);
    if (LaneIndex() == 0) sums[WarpIndex()] = spread;
    SyncBlock();
    if (ThreadIndex() == 0) {
      for (int w = 1; w < kMeansWarps; ++w) spread += sums[w];
      out.super_spreads[super] = ToFloat(spread * inverse_size);
    }
  }
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_CLUSTER_MEANS_H_
