// The rotation of compute/rotation.h, of four rows at a time by one warp: kernel code.
//
// Eight lanes share a row. The Walsh-Hadamard transform of 8 n elements is one of length 8 of each
// run of eight neighbours (a vector, all in one lane) and one of length n over elements eight apart
// (a column, all in one lane); rows lie in shared memory in between, such that neither meets bank
// conflicts.
#ifndef WAVEKV_CUDA_ROTATE_TILE_H_
#define WAVEKV_CUDA_ROTATE_TILE_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/kernel.h"
#include "cuda/rotation_signs.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kTileRows = 4;
constexpr int kRowLanes = 8;  // as many as elements of a vector
static_assert(kTileRows * kRowLanes == kWarp && kRowLanes == kHeadDimStep);

// How a row lies in a tile: element 8 i + k at k * stride + i.
struct TileShape {
  int columns = 0;     // dim / 8, the elements of a column
  int length = 0;      // of them, that one transform covers: the greatest power of two
  float norm = 0.0f;   // of the transform
  int stride = 0;      // odd
  int row_stride = 0;  // 8 more than a multiple of 32

  constexpr int64_t num_floats() const { return int64_t{kTileRows} * row_stride; }
};

TileShape TileShapeOf(int dim) {
  TileShape shape;
  shape.columns = dim / kRowLanes;
  shape.length = static_cast<int>(std::bit_floor(static_cast<unsigned>(shape.columns)));
  shape.norm = 1.0f / std::sqrt(static_cast<float>(shape.length * kRowLanes));
  shape.stride = shape.columns | 1;
  shape.row_stride = (kRowLanes * shape.stride + 23) / 32 * 32 + 8;
  return shape;
}

// Calls call(std::integral_constant<int, n>), n what a RotationTile for such rows is made for.
template <typename Call>
absl::Status WithColumns(const TileShape& shape, const Call& call) {
  static_assert(kHeadDimMax / kRowLanes < 128);
  if (shape.length == 64) return call(std::integral_constant<int, 64>());
  if (shape.length == 32) return call(std::integral_constant<int, 32>());
  if (shape.length == 16) return call(std::integral_constant<int, 16>());
  return call(std::integral_constant<int, 8>());
}

// The signs of round 0 or 1 of vector i of a row of so many columns: bit k is that of element k.
WAVEKV_DEVICE uint32_t SignsOfVector(const RotationSigns& signs, int columns, int round, int i) {
  const int byte = round * columns + i;
  return signs.words[byte / 4] >> (8 * (byte % 4)) & 0xffu;
}

WAVEKV_DEVICE float FlipIf(uint32_t negative, float x) {
  return FloatFromBits(FloatBits(x) ^ negative << 31);
}

// Of the first `length` numbers, a power of two.
template <int kLength>
WAVEKV_DEVICE void HadamardTransform(float (&x)[kLength], int length = kLength) {
  WAVEKV_UNROLL
  for (int half = 1; half < kLength; half *= 2) {
    if (half >= length) break;
    WAVEKV_UNROLL
    for (int i = 0; i < kLength; ++i) {
      if ((i & half) == 0) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

// The four rows of a warp: `row` is that of the calling lane, which is `lane` of its eight. A
// transform covers kColumns elements of a column or, for 8, that many or fewer.
template <int kColumns>
struct RotationTile {
  TileShape shape;
  float* row = nullptr;
  int lane = 0;
  const uint32_t* second_signs = nullptr;  // [columns], of round 1

  WAVEKV_DEVICE RotationTile(const TileShape& tile_shape, float* tile, const uint32_t* signs)
      : shape(tile_shape),
        row(tile + LaneIndex() / kRowLanes * tile_shape.row_stride),
        lane(LaneIndex() % kRowLanes),
        second_signs(signs) {}

  WAVEKV_DEVICE float& At(int i, int k) const { return row[k * shape.stride + i]; }
  WAVEKV_DEVICE int length() const { return kColumns > 8 ? kColumns : shape.length; }
  // Columns that the first round covers alone; 0: there is no second round.
  WAVEKV_DEVICE int low() const { return shape.columns - length(); }

  // Transforms vectors [first, first + length()).
  WAVEKV_DEVICE void TransformVectors(int first) const {
    for (int i = first + lane; i < first + length(); i += kRowLanes) {
      float x[kRowLanes];
      WAVEKV_UNROLL
      for (int k = 0; k < kRowLanes; ++k) x[k] = At(i, k);
      HadamardTransform(x);
      WAVEKV_UNROLL
      for (int k = 0; k < kRowLanes; ++k) At(i, k) = x[k];
    }
  }

  // Transforms the elements [first, first + length()) of this lane's column, into x.
  WAVEKV_DEVICE void TransformColumn(int first, float (&x)[kColumns]) const {
    WAVEKV_UNROLL
    for (int i = 0; i < kColumns; ++i) x[i] = i < length() ? At(first + i, lane) : 0.0f;
    HadamardTransform(x, length());
    WAVEKV_UNROLL
    for (int i = 0; i < kColumns; ++i) x[i] *= shape.norm;
  }

  // The end of a round over columns [first, ...); `flip`: with the signs before another one.
  WAVEKV_DEVICE void EndRound(int first, bool flip) const {
    const auto sign = [&](int i) { return flip ? second_signs[i] >> lane & 1u : 0u; };
    float x[kColumns];
    TransformColumn(first, x);
    WAVEKV_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      if (i < length()) At(first + i, lane) = FlipIf(sign(first + i), x[i]);
    }
    if (!flip) return;
    for (int i = first == 0 ? length() : 0; i < (first == 0 ? shape.columns : first); ++i) {
      At(i, lane) = FlipIf(sign(i), At(i, lane));
    }
  }

  // What is left of a rotation, but for the last transform of columns, once the rows are there with
  // their first signs and transformed vectors of the first round.
  WAVEKV_DEVICE void RotateUpToColumns() const {
    SyncWarp();
    if (low() == 0) return;
    EndRound(0, /*flip=*/true);
    SyncWarp();
    TransformVectors(low());
    SyncWarp();
  }

  // Rotates rows, in place, whose first signs have been flipped or, `back`, turns them back but for
  // those signs. Synchronises the warp before and after.
  WAVEKV_DEVICE void Rotate(bool back) const {
    SyncWarp();
    const int rounds = low() == 0 ? 1 : 2;
    // A loop, so that there is one copy of a transform, which is long.
    for (int round = 0; round < rounds; ++round) {
      const int first = (round == 1) != back ? low() : 0;
      TransformVectors(first);
      SyncWarp();
      EndRound(first, /*flip=*/round + 1 < rounds);
      SyncWarp();
    }
  }
};

// Over the eight lanes of a row, for all of them.
template <typename T>
WAVEKV_DEVICE T SumOfRow(T value) {
  WAVEKV_UNROLL
  for (int mask = 1; mask < kRowLanes; mask *= 2) value += ShuffleXor(value, mask);
  return value;
}
WAVEKV_DEVICE float MaxOfRow(float value) {
  WAVEKV_UNROLL
  for (int mask = 1; mask < kRowLanes; mask *= 2) value = Max(value, ShuffleXor(value, mask));
  return value;
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_ROTATE_TILE_H_
