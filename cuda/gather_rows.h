// The rows of a segment in cluster order, and their means: kernel code of write_indexes.cu.
#ifndef WAVEKV_CUDA_GATHER_ROWS_H_
#define WAVEKV_CUDA_GATHER_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "cuda/index_scratch.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kGatherThreads = 128;
constexpr int kMeanThreads = 512;

// Copies one side's rows of each cluster, and of the keys what else is copied.
//
// The lanes take 32 / w rows at once, w the row's 16-byte pieces, of which rows that have more than
// 32 are worked off 32 at a time.
template <DType kType>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kGatherThreads, 5)
    GatherKernel(const GpuWriteIndexTask* tasks, std::byte* scratch_bytes, ScratchLayout layout,
                 SideName side) {
  constexpr int kElements = Elements<kType>::kCount;
  constexpr int kAtOnce = 4;
  const GpuWriteIndexTask& task = tasks[blockIdx.x];
  const MutableClusterIndex& out = task.out;
  const Scratch scratch = Locate(scratch_bytes, layout, blockIdx.x);
  const uint32_t* const offsets = task.offsets;
  const bool is_keys = side == SideName::kKeys;
  const int64_t num_clusters = out.num_clusters;
  if (num_clusters == 0) return;
  const int64_t threads = int64_t{gridDim.y} * BlockThreads();
  if (is_keys) {
    const int64_t thread = int64_t{blockIdx.y} * BlockThreads() + ThreadIndex();
    for (int64_t i = thread; i <= num_clusters; i += threads) out.offsets[i] = offsets[i];
    for (int64_t i = thread; i <= out.num_supers; i += threads) {
      out.super_offsets[i] = task.super_offsets[i];
    }
  }
  constexpr int kElementBytes = static_cast<int>(sizeof(Bytes16)) / kElements;
  const int dim = DimOf(out, side);
  const int64_t key_bytes = int64_t{out.shape.head_dim_k} * kElementBytes;
  const int64_t value_bytes = int64_t{out.shape.head_dim_v} * kElementBytes;
  const int64_t row_bytes = is_keys ? key_bytes : value_bytes;
  const int num_pieces = dim / kElements;
  const std::byte* const reference = ReferenceRow(task, side);
  const int lane = LaneIndex();

  for (int64_t cluster = int64_t{blockIdx.y} * BlockWarps() + WarpIndex(); cluster < num_clusters;
       cluster += threads / kWarp) {
    const int64_t first = offsets[cluster], size = offsets[cluster + 1] - first;
    std::byte* const target =
        out.rows + first * (key_bytes + value_bytes) + (is_keys ? 0 : size * key_bytes);
    if (is_keys && lane == 0) out.log_sizes[cluster] = Log(static_cast<float>(size));
    const double inverse_size = 1.0 / static_cast<double>(size);
    uint64_t row = 0;  // of token `loaded` + lane, an address
    int64_t loaded = -1;
    double squares = 0.0;  // of this lane's elements: distances from the cluster's first row
    double excess = 0.0;   // and what of them is not about the mean
    float width = 0.0f, offset_width = 0.0f;

    for (int piece0 = 0; piece0 < num_pieces; piece0 += kWarp) {
      const int width_pieces = Min(kWarp, num_pieces - piece0);
      const int rows_at_once = kWarp / width_pieces;
      const int group = lane / width_pieces, column = lane - group * width_pieces;
      const int64_t at = int64_t{piece0 + column} * static_cast<int64_t>(sizeof(Bytes16));
      float base[kElements] = {};
      float total[kElements] = {};
      for (int64_t tile = 0; tile < size; tile += kWarp) {
        const int tile_size = static_cast<int>(Min(int64_t{kWarp}, size - tile));
        if (loaded != tile) {
          loaded = tile;
          if (lane < tile_size) {
            const int64_t token = first + tile + lane;
            const uint32_t member = task.members[token];
            row = reinterpret_cast<uint64_t>(RowOf(task.rows[member], side));
            if (is_keys && piece0 == 0) {
              out.positions[token] = static_cast<uint16_t>(member);
              scratch.cluster_of[token] = static_cast<uint16_t>(cluster);
            }
          }
        }
        float sum[kElements] = {};
        for (int i0 = 0; i0 < tile_size; i0 += kAtOnce * rows_at_once) {
          Bytes16 pieces[kAtOnce] = {};
          WAVEKV_UNROLL
          for (int u = 0; u < kAtOnce; ++u) {
            const int i = i0 + u * rows_at_once + group;
            const uint64_t from = Shuffle(row, i);
            if (group < rows_at_once && i < tile_size) {
              pieces[u] = *reinterpret_cast<const Bytes16*>(from + at);
            }
          }
          if (tile == 0 && i0 == 0) {
            Bytes16 of_first;
            WAVEKV_UNROLL
            for (int w = 0; w < 4; ++w) of_first.words[w] = Shuffle(pieces[0].words[w], column);
            Decode<kType>(of_first, base);
            WAVEKV_UNROLL
            for (int k = 0; k < kElements; ++k) base[k] *= kDifferenceScale;
          }
          WAVEKV_UNROLL
          for (int u = 0; u < kAtOnce; ++u) {
            const int i = i0 + u * rows_at_once + group;
            if (group < rows_at_once && i < tile_size) {
              *reinterpret_cast<Bytes16*>(target + (tile + i) * row_bytes + at) = pieces[u];
              float x[kElements];
              Decode<kType>(pieces[u], x);
              float squared = 0.0f;
              WAVEKV_UNROLL
              for (int k = 0; k < kElements; ++k) {
                const float difference = MulAdd(x[k], kDifferenceScale, -base[k]);
                sum[k] += difference;
                squared = MulAdd(difference, difference, squared);
                width = Max(width, Abs(difference));
              }
              squares += static_cast<double>(squared);
            }
          }
        }
        WAVEKV_UNROLL
        for (int k = 0; k < kElements; ++k) total[k] += sum[k];
      }
      WAVEKV_UNROLL
      for (int k = 0; k < kElements; ++k) {
        const float own = total[k];
        for (int g = 1; g < rows_at_once; ++g) total[k] += Shuffle(own, column + g * width_pieces);
      }
      if (lane < width_pieces) {
        float mean[kElements];
        Decode<kType>(*reinterpret_cast<const Bytes16*>(reference + at), mean);
        WAVEKV_UNROLL
        for (int k = 0; k < kElements; ++k) {
          const float offset = MulAdd(mean[k], -kDifferenceScale, base[k]);
          offset_width = Max(offset_width, Abs(offset));
          const double sum = total[k], difference = sum * inverse_size;
          excess += difference * sum;
          mean[k] = static_cast<float>(difference + static_cast<double>(offset));
        }
        float* const to =
            scratch.cluster_rows + cluster * dim + int64_t{piece0 + column} * kElements;
        WAVEKV_UNROLL
        for (int k = 0; k < kElements; k += 4) {
          *reinterpret_cast<Bytes16*>(to + k) = {FloatBits(mean[k]), FloatBits(mean[k + 1]),
                                                 FloatBits(mean[k + 2]), FloatBits(mean[k + 3])};
        }
      }
    }
    constexpr double kUnscale = 1.0 / (double{kDifferenceScale} * kDifferenceScale);
    const double about_mean = SumOfWarp(squares) - SumOfWarp(excess);
    width = MaxOfWarp(width) + MaxOfWarp(offset_width);
    if (lane == 0) {
      scratch.variances[cluster] = Max(about_mean, 0.0) * inverse_size * kUnscale;
      scratch.widths[cluster] = width;
    }
  }
}

// A block per task and 32 elements of the mean; the first one also chooses the side's scale.
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kMeanThreads)
    SegmentMeanKernel(const GpuWriteIndexTask* tasks, std::byte* scratch_bytes,
                      ScratchLayout layout, SideName side) {
  constexpr int kAtOnce = 4;
  const GpuWriteIndexTask& task = tasks[blockIdx.x];
  const Scratch scratch = Locate(scratch_bytes, layout, blockIdx.x);
  const uint32_t* const offsets = task.offsets;
  const int64_t num_clusters = task.out.num_clusters;
  if (num_clusters == 0) return;
  SharedMemory shared;
  double* const sums = shared.Take<double>(BlockThreads());
  float* const largest = shared.Take<float>(33);
  const int dim = DimOf(task.out, side);
  const int element = static_cast<int>(blockIdx.y) * kWarp + LaneIndex();
  const DType dtype = task.out.shape.dtype;
  const std::byte* const reference = ReferenceRow(task, side);

  double sum = 0.0;
  if (element < dim) {
    for (int64_t cluster = WarpIndex(); cluster < num_clusters;
         cluster += int64_t{kAtOnce} * BlockWarps()) {
      float mean[kAtOnce], size[kAtOnce];
      WAVEKV_UNROLL
      for (int u = 0; u < kAtOnce; ++u) {
        const int64_t c = cluster + u * BlockWarps();
        mean[u] = c < num_clusters ? scratch.cluster_rows[c * dim + element] : 0.0f;
        size[u] = c < num_clusters ? static_cast<float>(offsets[c + 1] - offsets[c]) : 0.0f;
      }
      WAVEKV_UNROLL
      for (int u = 0; u < kAtOnce; ++u) {
        sum += static_cast<double>(mean[u]) * static_cast<double>(size[u]);
      }
    }
  }
  sums[ThreadIndex()] = sum;
  SyncBlock();
  if (WarpIndex() == 0 && element < dim) {
    for (int w = 1; w < BlockWarps(); ++w) sum += sums[w * kWarp + LaneIndex()];
    const double mean = sum / (static_cast<double>(task.out.num_tokens) * kDifferenceScale);
    scratch.mean[element] = ToFloat(mean + static_cast<double>(LoadAs(reference, dtype, element)));
  }
  if (blockIdx.y != 0) return;

  float width = 0.0f;
  for (int64_t c = ThreadIndex(); c < num_clusters; c += BlockThreads()) {
    width = Max(width, scratch.widths[c]);
  }
  // Elements that are the same in all rows, however large, must stay finite as well.
  for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
    width = Max(width, Abs(LoadAs(reference, dtype, d)) * (kDifferenceScale * 0x1p-60f));
  }
  width = MaxOfBlock(width, largest);
  if (ThreadIndex() != 0) return;
  constexpr int kExponentMax = 120, kExponentMin = -100, kBias = 127;
  constexpr int kDifferenceExponent = 8;
  static_assert(kDifferenceScale * (1 << kDifferenceExponent) == 1.0f);
  int exponent = static_cast<int>(FloatBits(width) >> 23) - kBias + kDifferenceExponent;
  exponent = width == 0.0f ? 0 : Min(Max(exponent, kExponentMin), kExponentMax);
  SideScale scale;
  scale.scale = FloatFromBits(static_cast<uint32_t>(kBias - exponent) << 23);
  scale.unit = 1.0 / static_cast<double>(scale.scale);
  *scratch.scale = scale;
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_GATHER_ROWS_H_
