// Copies rows between element types, and rotates rows.
//
// Both are bound by memory: each element is read and written once. ConvertRows moves eight elements
// at a time where addresses and strides allow it, in 16-byte pieces, four of them under way per
// thread. RotateRows has a warp per row, whose lanes hold elements lane + 32 i: sums and
// differences of near elements go through shuffles, those of far ones stay in a lane. They are the
// CPU's, in its order.
#include <algorithm>
#include <type_traits>

#include "cuda/convert_rows.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 32;         // of a block's step
constexpr int kRotatedRows = 16;  // of a block's step
constexpr int64_t kGridYMax = 65535;

constexpr int kVector = 8;    // elements that are moved as one
constexpr int kUnderWay = 4;  // vectors of a thread

template <DType kType>
struct Vector {
  Bytes16 pieces[kType == DType::kFloat32 ? 2 : 1];
};

template <DType kType>
WAVEKV_DEVICE uint32_t BitsAt(const Vector<kType>& vector, int i) {
  if constexpr (kType == DType::kFloat32) {
    return vector.pieces[i / 4].words[i % 4];
  } else {
    return vector.pieces[0].words[i / 2] >> (16 * (i % 2)) & 0xffffu;
  }
}

template <DType kType>
WAVEKV_DEVICE float ValueOf(uint32_t bits) {
  if constexpr (kType == DType::kFloat32) return FloatFromBits(bits);
  const auto half = static_cast<uint16_t>(bits);
  return kType == DType::kFloat16 ? HalfToFloat(half) : BFloatToFloat(half);
}

template <DType kType>
WAVEKV_DEVICE uint32_t BitsOf(float value) {
  if constexpr (kType == DType::kFloat32) return FloatBits(value);
  return kType == DType::kFloat16 ? FloatToHalf(value) : FloatToBFloat(value);
}

// The bits of infinity; those of finite numbers, without the sign, are below.
template <DType kType>
constexpr uint32_t kInfinityBits = kType == DType::kFloat32   ? 0x7f800000u
                                   : kType == DType::kFloat16 ? 0x7c00u
                                                              : 0x7f80u;

template <DType kType>
WAVEKV_DEVICE bool IsFiniteAs(uint32_t bits) {
  constexpr uint32_t kMagnitude = kType == DType::kFloat32 ? 0x7fffffffu : 0x7fffu;
  return (bits & kMagnitude) < kInfinityBits<kType>;
}

// An element's bits as the target's. What is infinite or NaN stays so when multiplied and rounded,
// so looking at the result is enough.
template <DType kSource, DType kTarget>
WAVEKV_DEVICE uint32_t ConvertBits(uint32_t bits, float scale, bool* finite) {
  // Bits that stay the same keep what a NaN holds.
  if (kSource != kTarget || scale != 1.0f) bits = BitsOf<kTarget>(ValueOf<kSource>(bits) * scale);
  *finite &= IsFiniteAs<kTarget>(bits);
  return bits;
}

template <DType kSource, DType kTarget>
WAVEKV_DEVICE Vector<kTarget> ConvertVector(const Vector<kSource>& source, float scale,
                                            bool* finite) {
  Vector<kTarget> target = {};
  WAVEKV_UNROLL
  for (int i = 0; i < kVector; ++i) {
    const uint32_t bits = ConvertBits<kSource, kTarget>(BitsAt(source, i), scale, finite);
    if constexpr (kTarget == DType::kFloat32) {
      target.pieces[i / 4].words[i % 4] = bits;
    } else {
      target.pieces[0].words[i / 2] |= bits << (16 * (i % 2));
    }
  }
  return target;
}

template <DType kType>
using Bits = std::conditional_t<kType == DType::kFloat32, uint32_t, uint16_t>;

// Whether rows that begin there can be moved in vectors.
template <DType kType>
WAVEKV_DEVICE bool IsAligned(const void* rows, int64_t stride) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 &&
         stride * static_cast<int64_t>(sizeof(Bits<kType>)) % 16 == 0;
}

// Converts kRows rows, or fewer, from `first` on. False if an element is not finite.
template <DType kSource, DType kTarget>
WAVEKV_DEVICE bool ConvertSome(const ConvertRowsTask& task, int64_t first) {
  const auto* source = static_cast<const Bits<kSource>*>(task.source) + first * task.source_stride;
  auto* target = static_cast<Bits<kTarget>*>(task.target) + first * task.target_stride;
  const int64_t num_rows = Min<int64_t>(kRows, task.num_rows - first);
  bool finite = true;
  if (task.row_elements % kVector == 0 && IsAligned<kSource>(task.source, task.source_stride) &&
      IsAligned<kTarget>(task.target, task.target_stride)) {
    const auto row_vectors = static_cast<uint32_t>(task.row_elements / kVector);
    const auto num_vectors = static_cast<uint32_t>(num_rows * row_vectors);
    const auto threads = static_cast<uint32_t>(BlockThreads());
    for (uint32_t i = ThreadIndex(); i < num_vectors; i += kUnderWay * threads) {
      Vector<kSource> vectors[kUnderWay] = {};
      WAVEKV_UNROLL
      for (int j = 0; j < kUnderWay; ++j) {
        const uint32_t v = i + j * threads, row = v / row_vectors;
        if (v >= num_vectors) continue;
        vectors[j] = *reinterpret_cast<const Vector<kSource>*>(
            source + row * task.source_stride + int64_t{v - row * row_vectors} * kVector);
      }
      WAVEKV_UNROLL
      for (int j = 0; j < kUnderWay; ++j) {
        const uint32_t v = i + j * threads, row = v / row_vectors;
        if (v >= num_vectors) continue;
        *reinterpret_cast<Vector<kTarget>*>(target + row * task.target_stride +
                                            int64_t{v - row * row_vectors} * kVector) =
            ConvertVector<kSource, kTarget>(vectors[j], task.scale, &finite);
      }
    }
    return finite;
  }
  for (int64_t row = WarpIndex(); row < num_rows; row += BlockWarps()) {
    for (int64_t i = LaneIndex(); i < task.row_elements; i += kWarp) {
      target[row * task.target_stride + i] = static_cast<Bits<kTarget>>(
          ConvertBits<kSource, kTarget>(source[row * task.source_stride + i], task.scale, &finite));
    }
  }
  return finite;
}

template <DType kSource>
WAVEKV_DEVICE bool ConvertFrom(const ConvertRowsTask& task, int64_t first) {
  switch (task.target_dtype) {
    case DType::kFloat32:
      return ConvertSome<kSource, DType::kFloat32>(task, first);
    case DType::kFloat16:
      return ConvertSome<kSource, DType::kFloat16>(task, first);
    case DType::kBFloat16:
      return ConvertSome<kSource, DType::kBFloat16>(task, first);
  }
  return false;
}

WAVEKV_DEVICE bool ConvertAny(const ConvertRowsTask& task, int64_t first) {
  switch (task.source_dtype) {
    case DType::kFloat32:
      return ConvertFrom<DType::kFloat32>(task, first);
    case DType::kFloat16:
      return ConvertFrom<DType::kFloat16>(task, first);
    case DType::kBFloat16:
      return ConvertFrom<DType::kBFloat16>(task, first);
  }
  return false;
}

WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads) ConvertKernel(const ConvertRowsTask* tasks) {
  const ConvertRowsTask& task = tasks[blockIdx.x];
  bool finite = true;
  for (int64_t first = int64_t{blockIdx.y} * kRows; first < task.num_rows;
       first += int64_t{gridDim.y} * kRows) {
    finite &= ConvertAny(task, first);
  }
  // Whoever writes, writes the same.
  if (!finite && task.all_finite != nullptr) *task.all_finite = false;
}

// The signs of rotation.h, which draws those of a row's elements, and then those of the second
// round, from one sequence: bit i of the words is set where number i is negative.
struct Signs {
  uint32_t words[2 * kHeadDimMax / 32];
};

constexpr Signs DrawSigns() {
  Signs signs = {};
  uint64_t state = 0x9e3779b97f4a7c15;
  for (int i = 0; i < 2 * kHeadDimMax; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    signs.words[i / 32] |= static_cast<uint32_t>(state >> 63) << (i % 32);
  }
  return signs;
}

// Bit i: that of number begin + lane + 32 i, up to `end`.
WAVEKV_DEVICE uint32_t LaneSigns(const Signs& signs, int begin, int end) {
  uint32_t bits = 0;
  for (int i = 0, at = begin + LaneIndex(); at < end; ++i, at += kWarp) {
    bits |= (signs.words[at / 32] >> (at % 32) & 1) << i;
  }
  return bits;
}

WAVEKV_DEVICE float WithSign(float x, uint32_t lane_signs, int i) {
  return FloatFromBits(FloatBits(x) ^ (lane_signs >> i & 1) << 31);
}

// How rows of one dim are rotated.
struct RowShape {
  int dim;
  int length;       // of the transform: the greatest power of two in dim
  uint32_t first;   // this lane's signs of the first round,
  uint32_t before;  // of the second for the elements before its transform,
  uint32_t second;  // and for those in it
};

// The Walsh-Hadamard transform of kLaneElements * min(length, 32) elements, lane + 32 i in place i.
template <int kLaneElements>
WAVEKV_DEVICE void Transform(int length, float (&x)[kLaneElements]) {
  for (int half = 1; half < Min(length, kWarp); half *= 2) {
    const bool upper = (LaneIndex() & half) != 0;
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneElements; ++i) {
      const float other = ShuffleXor(x[i], half);
      x[i] = upper ? other - x[i] : x[i] + other;
    }
  }
  WAVEKV_UNROLL
  for (int half = 1; half < kLaneElements; half *= 2) {
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneElements; ++i) {
      if ((i & half) != 0) continue;
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
  const float scale = 1.0f / Sqrt(static_cast<float>(length));
  WAVEKV_UNROLL
  for (int i = 0; i < kLaneElements; ++i) x[i] *= scale;
}

// Rotates the warp's row. row: [kHeadDimMax] in shared memory.
template <int kLaneElements>
WAVEKV_DEVICE void RotateRow(const float* source, float* target, const RowShape& shape,
                             float* row) {
  const int lane = LaneIndex(), length = shape.length, second = shape.dim - length;
  float x[kLaneElements] = {};
  WAVEKV_UNROLL
  for (int i = 0; i < kLaneElements; ++i) {
    const int at = lane + kWarp * i;
    if (at < length) x[i] = WithSign(source[at], shape.first, i);
  }
  if (second > 0) {
    SyncWarp();  // the last row is done with
    for (int at = lane, i = 0; at < shape.dim; at += kWarp, ++i) {
      if (at >= length) row[at] = WithSign(source[at], shape.first, i);
    }
    Transform(length, x);
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneElements; ++i) {
      if (lane + kWarp * i < length) row[lane + kWarp * i] = x[i];
    }
    SyncWarp();
    for (int at = lane, i = 0; at < second; at += kWarp, ++i) {
      target[at] = WithSign(row[at], shape.before, i);
    }
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneElements; ++i) {
      const int at = lane + kWarp * i;
      if (at < length) x[i] = WithSign(row[second + at], shape.second, i);
    }
  }
  Transform(length, x);
  WAVEKV_UNROLL
  for (int i = 0; i < kLaneElements; ++i) {
    const int at = lane + kWarp * i;
    if (at < length) target[second + at] = x[i];
  }
}

// The rows of a block.
template <int kLaneElements>
WAVEKV_DEVICE void RotateSome(const RotateRowsTask& task, const RowShape& shape, float* row) {
  for (int64_t first = int64_t{blockIdx.y} * kRotatedRows; first < task.num_rows;
       first += int64_t{gridDim.y} * kRotatedRows) {
    const int64_t end = Min(first + kRotatedRows, task.num_rows);
    for (int64_t i = first + WarpIndex(); i < end; i += BlockWarps()) {
      RotateRow<kLaneElements>(task.source + i * shape.dim, task.target + i * shape.dim, shape,
                               row);
    }
  }
}

WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads)
    RotateKernel(const RotateRowsTask* tasks, const Signs signs) {
  const RotateRowsTask& task = tasks[blockIdx.x];
  if (int64_t{blockIdx.y} * kRotatedRows >= task.num_rows) return;
  SharedMemory shared;
  float* const row = shared.Take<float>(kThreads / kWarp * kHeadDimMax) + WarpIndex() * kHeadDimMax;
  const int dim = task.dim;
  const int length = 1 << (31 - LeadingZeros(static_cast<uint32_t>(dim)));
  const RowShape shape = {dim, length, LaneSigns(signs, 0, dim),
                          LaneSigns(signs, dim, 2 * dim - length),
                          LaneSigns(signs, 2 * dim - length, 2 * dim)};
  if (length <= 32) {
    RotateSome<1>(task, shape, row);
  } else if (length == 64) {
    RotateSome<2>(task, shape, row);
  } else if (length == 128) {
    RotateSome<4>(task, shape, row);
  } else if (length == 256) {
    RotateSome<8>(task, shape, row);
  } else {
    RotateSome<16>(task, shape, row);
  }
}

GridShape Grid(int64_t num_tasks, int64_t num_rows, int rows) {
  const int64_t steps = (num_rows + rows - 1) / rows;
  return {static_cast<unsigned>(num_tasks), static_cast<unsigned>(std::min(steps, kGridYMax))};
}

}  // namespace

absl::Status ConvertRows(GpuTasks<ConvertRowsTask> tasks, const TaskBounds& bounds,
                         GpuStream stream) {
  return Launch("ConvertRows", ConvertKernel, Grid(tasks.count, bounds.num_items, kRows), kThreads,
                0, stream, tasks.tasks);
}

absl::Status RotateRows(GpuTasks<RotateRowsTask> tasks, const TaskBounds& bounds,
                        GpuStream stream) {
  static constexpr Signs kSigns = DrawSigns();
  SharedSize size;
  size.Add<float>(kThreads / kWarp * kHeadDimMax);
  return Launch("RotateRows", RotateKernel, Grid(tasks.count, bounds.num_items, kRotatedRows),
                kThreads, size.bytes(), stream, tasks.tasks, kSigns);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
