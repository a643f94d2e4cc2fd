// What the kernels that write an index hand to each other: kernel code.
#ifndef WAVEKV_CUDA_INDEX_SCRATCH_H_
#define WAVEKV_CUDA_INDEX_SCRATCH_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/cluster_segments.h"
#include "cuda/kernel.h"
#include "cuda/store_means.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

// Sums of rows are of differences from a row nearby, times this: of any fp32 numbers they stay
// within fp32's range.
constexpr float kDifferenceScale = 1.0f / 256;

enum class SideName { kKeys, kValues };

// A task's share of the scratch, which one side uses after the other: byte offsets.
struct ScratchLayout {
  int64_t variances = 0;   // fp64 [clusters]: mean of |row - mean of the cluster|^2
  int64_t widths = 0;      // fp32 [clusters]: largest element of row - reference row
  int64_t cluster_of = 0;  // uint16 [tokens]
  int64_t mean = 0;        // fp32 [dim]: of the segment
  int64_t scale = 0;       // SideScale
  int64_t bytes = 0;
};

ScratchLayout LayoutOf(const TaskBounds& bounds) {
  const int64_t dim = std::max(bounds.shape.head_dim_k, bounds.shape.head_dim_v);
  ScratchLayout layout;
  int64_t next = 0;
  const auto place = [&next](int64_t bytes) {
    const int64_t here = next;
    next += (bytes + 15) / 16 * 16;
    return here;
  };
  place(bounds.num_items * dim * int64_t{sizeof(float)});
  layout.variances = place(bounds.num_items * int64_t{sizeof(double)});
  layout.widths = place(bounds.num_items * int64_t{sizeof(float)});
  layout.cluster_of = place(bounds.num_items * int64_t{sizeof(uint16_t)});
  layout.mean = place(dim * int64_t{sizeof(float)});
  layout.scale = place(int64_t{sizeof(SideScale)});
  layout.bytes = (next + 255) / 256 * 256;
  return layout;
}

struct Scratch {
  // [clusters, dim]. Mean of the cluster minus the reference row, times kDifferenceScale; of keys
  // ClusterMeansKernel makes of it the centroid as stored, with the segment's mean, turned back, in
  // the side's scale, with the rotation's first signs.
  float* cluster_rows = nullptr;
  double* variances = nullptr;
  float* widths = nullptr;
  uint16_t* cluster_of = nullptr;
  float* mean = nullptr;
  SideScale* scale = nullptr;
};

WAVEKV_DEVICE Scratch Locate(std::byte* scratch, const ScratchLayout& layout, int64_t task) {
  std::byte* const here = scratch + task * layout.bytes;
  return {reinterpret_cast<float*>(here),
          reinterpret_cast<double*>(here + layout.variances),
          reinterpret_cast<float*>(here + layout.widths),
          reinterpret_cast<uint16_t*>(here + layout.cluster_of),
          reinterpret_cast<float*>(here + layout.mean),
          reinterpret_cast<SideScale*>(here + layout.scale)};
}

template <DType kType>
struct Elements {
  static constexpr int kCount = kType == DType::kFloat32 ? 4 : 8;  // in 16 bytes
};

template <DType kType>
WAVEKV_DEVICE void Decode(const Bytes16& bytes, float (&x)[Elements<kType>::kCount]) {
  WAVEKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = bytes.words[i];
    if constexpr (kType == DType::kFloat32) {
      x[i] = FloatFromBits(word);
    } else if constexpr (kType == DType::kFloat16) {
      x[2 * i] = HalfToFloat(static_cast<uint16_t>(word));
      x[2 * i + 1] = HalfToFloat(static_cast<uint16_t>(word >> 16));
    } else {
      x[2 * i] = FloatFromBits(word << 16);
      x[2 * i + 1] = FloatFromBits(word & 0xffff0000u);
    }
  }
}

WAVEKV_DEVICE const std::byte* RowOf(const TokenRow& row, SideName side) {
  return side == SideName::kKeys ? row.key : row.value;
}
WAVEKV_DEVICE int DimOf(const MutableClusterIndex& index, SideName side) {
  return side == SideName::kKeys ? index.shape.head_dim_k : index.shape.head_dim_v;
}
// Any row of the segment serves; rows are measured from it so that a mean common to all does not
// cost bits.
WAVEKV_DEVICE const std::byte* ReferenceRow(const GpuWriteIndexTask& task, SideName side) {
  return RowOf(task.rows[task.out.num_tokens / 2], side);
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_INDEX_SCRATCH_H_
