// The codes of keys: kernel code of write_indexes.cu.
#ifndef WAVEKV_CUDA_TOKEN_CODES_H_
#define WAVEKV_CUDA_TOKEN_CODES_H_

#include <cstddef>
#include <cstdint>

#include "cuda/index_scratch.h"
#include "cuda/kernel.h"
#include "cuda/rotate_tile.h"
#include "cuda/rotation_signs.h"
#include "storage/cluster_index.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kCodeWarpsMax = 4;  // of a block
constexpr int kCodeThreadsMax = kCodeWarpsMax * kWarp;
constexpr int kCodeTokens = 32;  // that a warp takes at once
constexpr int kCodeStages = 3;   // copies of kTileRows keys under way, and those in use

// The bytes of one of a tile's keys, a vector of eight elements, with their signs flipped.
WAVEKV_DEVICE void LoadVector(const std::byte* raw, const uint32_t* signs, DType dtype,
                              float (&x)[kRowLanes]) {
  if (dtype == DType::kFloat32) {
    WAVEKV_UNROLL
    for (int half = 0; half < 2; ++half) {
      Bytes16 bytes = *reinterpret_cast<const Bytes16*>(raw + half * 16);
      const Bytes16 flips = *reinterpret_cast<const Bytes16*>(signs + half * 4);
      WAVEKV_UNROLL
      for (int i = 0; i < 4; ++i) {
        x[4 * half + i] = FloatFromBits(bytes.words[i] ^ flips.words[i]);
      }
    }
    return;
  }
  Bytes16 bytes = *reinterpret_cast<const Bytes16*>(raw);
  const Bytes16 flips = *reinterpret_cast<const Bytes16*>(signs);
  WAVEKV_UNROLL
  for (int i = 0; i < 4; ++i) bytes.words[i] ^= flips.words[i];
  if (dtype == DType::kFloat16) {
    Decode<DType::kFloat16>(bytes, x);
  } else {
    Decode<DType::kBFloat16>(bytes, x);
  }
}

// Of a warp of TokenCodesKernel, and of the block.
SharedSize CodesSharedSize(const KvShape& shape, int warps) {
  const int64_t row_bytes = shape.head_dim_k * DTypeBytes(shape.dtype);
  return SharedSize()
      .Add<uint32_t>(row_bytes / 4)
      .Add<uint32_t>(shape.head_dim_k / kRowLanes)
      .Add<float>(warps * TileShapeOf(shape.head_dim_k).num_floats())
      .Add<std::byte>(warps * int64_t{kCodeStages} * kTileRows * row_bytes);
}

// What a code's elements are made with, and what they add up to.
struct Coder {
  int bits = 1;
  bool is_zero = false;  // the distance: so is the code
  float inverse_step = 0.0f;
  float product = 0.0f;  // of code and distance, of this lane's elements
  float code_squared = 0.0f;

  // Writes bytes [first, first + count) of each plane of the code: those of a row's elements
  // 8 i + lane, of which this lane has x. out: nullptr for rows that are not there.
  WAVEKV_DEVICE void Code(const float (&x)[kRowLanes], int count, int first, int64_t plane_bytes,
                          std::byte* out) {
    const int lane = LaneIndex() % kRowLanes, shift = LaneIndex() / kRowLanes * kRowLanes;
    const float greatest = static_cast<float>((1 << bits) - 1);
    const float middle = 0.5f * greatest, half = static_cast<float>(1 << bits >> 1);
    uint32_t bytes = 0;  // of planes 0 to 3, of this lane's of the count bytes
    WAVEKV_UNROLL
    for (int i = 0; i < kRowLanes; ++i) {
      if (i >= count) break;
      const float level = MulAdd(x[i], inverse_step, half);
      const int u = is_zero ? 0 : static_cast<int>(Min(Max(level, 0.0f), greatest));
      const float element = static_cast<float>(u) - middle;
      product = MulAdd(element, x[i], product);
      code_squared = MulAdd(element, element, code_squared);
      WAVEKV_UNROLL
      for (int p = 0; p < 4; ++p) {
        if (p < bits) {
          const uint32_t set = Ballot((u >> p & 1) != 0) >> shift & 0xffu;
          if (i == lane) bytes |= set << (8 * p);
        }
      }
    }
    if (out == nullptr || lane >= count) return;
    WAVEKV_UNROLL
    for (int p = 0; p < 4; ++p) {
      if (p < bits) {
        out[p * plane_bytes + first + lane] = static_cast<std::byte>(bytes >> (8 * p) & 0xffu);
      }
    }
  }
};

template <int kColumns>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kCodeThreadsMax, kColumns <= 16 ? 5 : 4)
    TokenCodesKernel(const GpuWriteIndexTask* tasks, std::byte* scratch_bytes, ScratchLayout layout,
                     TileShape shape, RotationSigns signs) {
  const GpuWriteIndexTask& task = tasks[blockIdx.x];
  const MutableClusterIndex& out = task.out;
  const int64_t num_tokens = out.num_tokens;
  if (num_tokens == 0 || out.num_clusters == 0) return;
  const Scratch scratch = Locate(scratch_bytes, layout, blockIdx.x);
  const int dim = shape.columns * kRowLanes;
  const DType dtype = out.shape.dtype;
  const int element_bytes = dtype == DType::kFloat32 ? 4 : 2;
  const int row_bytes = dim * element_bytes, vector_bytes = kRowLanes * element_bytes;
  const int sign_words = vector_bytes / 4;  // of a vector
  SharedMemory shared;
  uint32_t* const first_signs = shared.Take<uint32_t>(shape.columns * sign_words);
  uint32_t* const second_signs = shared.Take<uint32_t>(shape.columns);
  float* const tiles = shared.Take<float>(BlockWarps() * shape.num_floats());
  std::byte* const keys =
      shared.Take<std::byte>(BlockWarps() * int64_t{kCodeStages} * kTileRows * row_bytes);
  for (int i = ThreadIndex(); i < shape.columns; i += BlockThreads()) {
    second_signs[i] = SignsOfVector(signs, shape.columns, 1, i);
    const uint32_t vector = SignsOfVector(signs, shape.columns, 0, i);
    for (int w = 0; w < sign_words; ++w) {
      first_signs[i * sign_words + w] =
          dtype == DType::kFloat32
              ? (vector >> w & 1u) << 31
              : (vector >> (2 * w) & 1u) << 15 | (vector >> (2 * w + 1) & 1u) << 31;
    }
  }
  SyncBlock();

  const RotationTile<kColumns> tile(shape, tiles + WarpIndex() * shape.num_floats(), second_signs);
  const int lane = LaneIndex(), row_of_lane = lane / kRowLanes;
  std::byte* const own_keys =
      keys + (int64_t{WarpIndex()} * kCodeStages * kTileRows + row_of_lane) * row_bytes;
  const SideScale side = *scratch.scale;
  const int64_t key_bytes = row_bytes;
  const int64_t value_bytes = int64_t{out.shape.head_dim_v} * element_bytes;
  const int64_t plane_bytes = CodeWords(dim) * static_cast<int64_t>(sizeof(uint64_t));
  const int bits = out.code_bits;
  const float code_step = static_cast<float>(CodeStep(bits));

  for (int64_t first = (int64_t{blockIdx.y} * BlockWarps() + WarpIndex()) * kCodeTokens;
       first < num_tokens; first += int64_t{gridDim.y} * BlockWarps() * kCodeTokens) {
    const int count = static_cast<int>(Min(int64_t{kCodeTokens}, num_tokens - first));
    const int64_t own_token = first + Min(lane, count - 1);
    const int own_cluster = scratch.cluster_of[own_token];
    const int64_t cluster_first = task.offsets[own_cluster];
    const int64_t own_at =
        cluster_first * (key_bytes + value_bytes) + (own_token - cluster_first) * key_bytes;
    const int num_steps = (count + kTileRows - 1) / kTileRows;
    // Lanes copy what they will read, so they wait for their own copies only.
    const auto copy_step = [&](int step) {
      const int token = step * kTileRows + row_of_lane;
      const int64_t at = Shuffle(own_at, token);
      if (token < count) {
        std::byte* const to = own_keys + step % kCodeStages * kTileRows * row_bytes;
        for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
          CopyAsync16(to + i * vector_bytes, out.rows + at + i * vector_bytes);
          if (vector_bytes > 16) {
            CopyAsync16(to + i * vector_bytes + 16, out.rows + at + i * vector_bytes + 16);
          }
        }
      }
    };
    WAVEKV_UNROLL
    for (int step = 0; step < kCodeStages - 1; ++step) {
      if (step < num_steps) copy_step(step);
      CommitCopies();
    }
    for (int step = 0; step < num_steps; ++step) {
      if (step + kCodeStages - 1 < num_steps) copy_step(step + kCodeStages - 1);
      CommitCopies();
      WaitForCopies<kCodeStages - 1>();
      const int in_tile = step * kTileRows + row_of_lane;
      const bool active = in_tile < count;
      const int64_t cluster = Shuffle(own_cluster, in_tile);
      const float* const centroid = scratch.cluster_rows + cluster * dim;
      const std::byte* const raw = own_keys + step % kCodeStages * kTileRows * row_bytes;
      float squared = 0.0f;
      SyncWarp();  // as the tile may still be read
      for (int i = tile.lane; i < shape.columns; i += kRowLanes) {
        float x[kRowLanes] = {};
        if (active) {
          LoadVector(raw + i * vector_bytes, first_signs + i * sign_words, dtype, x);
          WAVEKV_UNROLL
          for (int half = 0; half < 2; ++half) {
            const Bytes16 minus =
                *reinterpret_cast<const Bytes16*>(centroid + i * kRowLanes + half * 4);
            WAVEKV_UNROLL
            for (int k = 0; k < 4; ++k) {
              float& element = x[4 * half + k];
              element = MulAdd(element, side.scale, -FloatFromBits(minus.words[k]));
              squared = MulAdd(element, element, squared);
            }
          }
        }
        if (i < tile.length()) HadamardTransform(x);
        WAVEKV_UNROLL
        for (int k = 0; k < kRowLanes; ++k) tile.At(i, k) = x[k];
      }
      squared = SumOfRow(squared);
      tile.RotateUpToColumns();

      Coder coder;
      coder.bits = bits;
      coder.is_zero = squared == 0.0f;
      coder.inverse_step =
          coder.is_zero ? 0.0f : 1.0f / (code_step * Sqrt(squared / static_cast<float>(dim)));
      const int64_t token = first + in_tile;
      std::byte* const code =
          active ? reinterpret_cast<std::byte*>(out.codes) + token * bits * plane_bytes : nullptr;
      float column[kColumns];
      tile.TransformColumn(tile.low(), column);
      // Long columns are coded from the tile: the code is short then, and registers few.
      constexpr bool kFromRegisters = kColumns <= 16;
      WAVEKV_UNROLL
      for (int i = 0; i < kColumns; i += kRowLanes) {
        float x[kRowLanes];
        WAVEKV_UNROLL
        for (int j = 0; j < kRowLanes; ++j) {
          if constexpr (kFromRegisters) {
            x[j] = column[i + j];
          } else {
            tile.At(tile.low() + i + j, tile.lane) = column[i + j];
          }
        }
        if constexpr (kFromRegisters) {
          coder.Code(x, Min(kRowLanes, tile.length()), tile.low() + i, plane_bytes, code);
        }
      }
      const int num_left = kFromRegisters ? tile.low() : shape.columns;
      for (int i = 0; i < num_left; i += kRowLanes) {
        float x[kRowLanes];
        WAVEKV_UNROLL
        for (int j = 0; j < kRowLanes; ++j) {
          x[j] = i + j < num_left ? tile.At(i + j, tile.lane) : 0.0f;
        }
        coder.Code(x, Min(kRowLanes, num_left - i), i, plane_bytes, code);
      }
      const float product = SumOfRow(coder.product);
      const float code_squared = SumOfRow(coder.code_squared);
      if (!active) continue;
      // Bits past the row's elements.
      if (shape.columns + tile.lane < plane_bytes) {
        for (int p = 0; p < bits; ++p) {
          code[p * plane_bytes + shape.columns + tile.lane] = std::byte{0};
        }
      }
      if (tile.lane == 0) {
        constexpr float kHalfMax = 65504.0f;
        const float factor =
            coder.is_zero ? 0.0f : Sqrt(squared / product * Sqrt(squared / code_squared));
        out.code_factors[token] = FloatToHalf(Min(ToFloat(factor * side.unit), kHalfMax));
      }
    }
    WaitForCopies<0>();
  }
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_TOKEN_CODES_H_
