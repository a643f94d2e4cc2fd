// Weighted sums of rows by one thread block: the half of estimate_clusters.cu that moves bytes.
#ifndef WAVEKV_CUDA_ESTIMATE_ROWS_H_
#define WAVEKV_CUDA_ESTIMATE_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "cuda/kernel.h"
#include "cuda/rotation_signs.h"
#include "storage/statistics_row.h"
#include "wavekv/types.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE::estimate {

// One number for each query of a tile, loaded as one.
template <int kQueries>
struct alignas(kQueries % 4 == 0 ? 16 : 4) OfQueries {
  float of[kQueries];
};

// A thread adds up 8 elements of every so many-th row: `chunk` says which, `first` and `step` which
// rows. Neighbours have neighbouring chunks. Threads that are left over have no rows.
struct RowShare {
  static constexpr int kElements = 8;

  WAVEKV_DEVICE explicit RowShare(int dim)
      : chunk(ThreadIndex() % (dim / kElements)),
        first(ThreadIndex() / (dim / kElements)),
        step(BlockThreads() / (dim / kElements)) {}

  WAVEKV_DEVICE bool has_rows() const { return first < step; }

  int chunk;
  int first;
  int step;
};

// Floats of shared memory in which the threads' sums meet.
constexpr int64_t SharesFloats(int threads) { return int64_t{threads} * RowShare::kElements; }

template <int kQueries>
struct RowSums {
  float of[kQueries][RowShare::kElements] = {};

  WAVEKV_DEVICE void Add(const OfQueries<kQueries>& weights,
                         const float (&elements)[RowShare::kElements]) {
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      WAVEKV_UNROLL
      for (int e = 0; e < RowShare::kElements; ++e) {
        of[q][e] = MulAdd(weights.of[q], elements[e], of[q][e]);
      }
    }
  }
};

// Elements 4 chunk to 4 chunk + 3 of a stored mean and those dim / 2 after them, without the row's
// scale: where int4 keeps them in the same bytes.
template <StatisticsFormat kFormat>
struct MeanChunk;

template <>
struct MeanChunk<StatisticsFormat::kInt4> {
  static constexpr int kAhead = 6;  // rows a thread has under way
  uint32_t word;

  WAVEKV_DEVICE void Load(const std::byte* row, int chunk, int) {
    word = reinterpret_cast<const uint32_t*>(row)[chunk];
  }
  WAVEKV_DEVICE void Unpack(float (&elements)[RowShare::kElements]) const {
    // As the low bits of 2^23, a number is a float without conversion.
    WAVEKV_UNROLL
    for (int e = 0; e < 4; ++e) {
      elements[e] = FloatFromBits((word >> (8 * e) & 15u) | 0x4b000000u) - 8388616.0f;
      elements[e + 4] = FloatFromBits((word >> (8 * e + 4) & 15u) | 0x4b000000u) - 8388616.0f;
    }
  }
};

template <>
struct MeanChunk<StatisticsFormat::kInt8> {
  static constexpr int kAhead = 3;
  uint32_t words[2];

  WAVEKV_DEVICE void Load(const std::byte* row, int chunk, int dim) {
    words[0] = reinterpret_cast<const uint32_t*>(row)[chunk];
    words[1] = reinterpret_cast<const uint32_t*>(row + dim / 2)[chunk];
  }
  WAVEKV_DEVICE void Unpack(float (&elements)[RowShare::kElements]) const {
    WAVEKV_UNROLL
    for (int e = 0; e < 8; ++e) {
      elements[e] = static_cast<float>(static_cast<int8_t>(words[e / 4] >> (e % 4 * 8)));
    }
  }
};

template <>
struct MeanChunk<StatisticsFormat::kFloat32> {
  static constexpr int kAhead = 1;
  Bytes16 quads[2];

  WAVEKV_DEVICE void Load(const std::byte* row, int chunk, int dim) {
    quads[0] = reinterpret_cast<const Bytes16*>(row)[chunk];
    quads[1] = reinterpret_cast<const Bytes16*>(row + int64_t{dim} * 2)[chunk];
  }
  WAVEKV_DEVICE void Unpack(float (&elements)[RowShare::kElements]) const {
    WAVEKV_UNROLL
    for (int e = 0; e < 8; ++e) elements[e] = FloatFromBits(quads[e / 4].words[e % 4]);
  }
};

// sums += weights . means of the rows listed; `weights`, by number of the row, are multiplied by
// its scale.
template <StatisticsFormat kFormat, int kQueries>
WAVEKV_DEVICE void AddMeans(const std::byte* rows, int dim, const uint32_t* list, int count,
                            const OfQueries<kQueries>* weights, const RowShare& share,
                            RowSums<kQueries>& sums) {
  using Chunk = MeanChunk<kFormat>;
  constexpr int kAhead = Chunk::kAhead;
  const auto row_bytes = static_cast<uint32_t>(StatisticsRowBytes(kFormat, dim));
  if (!share.has_rows()) return;
  for (int begin = share.first; begin < count; begin += kAhead * share.step) {
    Chunk chunks[kAhead];
    WAVEKV_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int j = begin + a * share.step;
      if (j < count) chunks[a].Load(rows + int64_t{list[j]} * row_bytes, share.chunk, dim);
    }
    WAVEKV_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int j = begin + a * share.step;
      if (j >= count) continue;
      float elements[RowShare::kElements];
      chunks[a].Unpack(elements);
      sums.Add(weights[list[j]], elements);
    }
  }
}

template <int kQueries>
WAVEKV_DEVICE void AddMeans(StatisticsFormat format, const std::byte* rows, int dim,
                            const uint32_t* list, int count, const OfQueries<kQueries>* weights,
                            const RowShare& share, RowSums<kQueries>& sums) {
  if (format == StatisticsFormat::kInt4) {
    AddMeans<StatisticsFormat::kInt4>(rows, dim, list, count, weights, share, sums);
  } else if (format == StatisticsFormat::kInt8) {
    AddMeans<StatisticsFormat::kInt8>(rows, dim, list, count, weights, share, sums);
  } else {
    AddMeans<StatisticsFormat::kFloat32>(rows, dim, list, count, weights, share, sums);
  }
}

// sums += weights . values, elements 8 chunk to 8 chunk + 7, of rows of the kv dtype. Rows are
// 16-byte aligned, as all rows in extents are.
template <DType kType, int kQueries>
WAVEKV_DEVICE void AddValues(const std::byte* const* rows, int count,
                             const OfQueries<kQueries>* weights, const RowShare& share,
                             RowSums<kQueries>& sums) {
  constexpr int kQuads = kType == DType::kFloat32 ? 2 : 1;
  constexpr int kAhead = 2 / kQuads;
  if (!share.has_rows()) return;
  for (int begin = share.first; begin < count; begin += kAhead * share.step) {
    Bytes16 quads[kAhead][kQuads];
    WAVEKV_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int j = begin + a * share.step;
      if (j >= count) continue;
      WAVEKV_UNROLL
      for (int i = 0; i < kQuads; ++i) {
        quads[a][i] = reinterpret_cast<const Bytes16*>(rows[j])[share.chunk * kQuads + i];
      }
    }
    WAVEKV_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int j = begin + a * share.step;
      if (j >= count) continue;
      float elements[RowShare::kElements];
      WAVEKV_UNROLL
      for (int e = 0; e < RowShare::kElements; ++e) {
        if constexpr (kType == DType::kFloat32) {
          elements[e] = FloatFromBits(quads[a][e / 4].words[e % 4]);
        } else {
          const auto bits = static_cast<uint16_t>(quads[a][0].words[e / 2] >> (e % 2 * 16));
          elements[e] = kType == DType::kFloat16 ? HalfToFloat(bits) : BFloatToFloat(bits);
        }
      }
      sums.Add(weights[j], elements);
    }
  }
}

template <int kQueries>
WAVEKV_DEVICE void AddValues(DType dtype, const std::byte* const* rows, int count,
                             const OfQueries<kQueries>* weights, const RowShare& share,
                             RowSums<kQueries>& sums) {
  if (dtype == DType::kBFloat16) {
    AddValues<DType::kBFloat16>(rows, count, weights, share, sums);
  } else if (dtype == DType::kFloat16) {
    AddValues<DType::kFloat16>(rows, count, weights, share, sums);
  } else {
    AddValues<DType::kFloat32>(rows, count, weights, share, sums);
  }
}

// Calls finish(query, element, sum) with the sums of all threads, by whichever thread. second_half:
// how far the last four elements of a chunk lie behind the first four; a chunk's first is its
// number times `stride`. shares: [SharesFloats] in shared memory. A meeting of the block.
template <int kQueries, typename Finish>
WAVEKV_DEVICE void CombineSums(const RowSums<kQueries>& sums, const RowShare& share, int dim,
                               int stride, int second_half, int num_queries, float* shares,
                               const Finish& finish) {
  WAVEKV_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    if (q >= num_queries) break;
    SyncBlock();
    if (share.has_rows()) {
      float* const at = shares + share.first * dim + share.chunk * stride;
      WAVEKV_UNROLL
      for (int e = 0; e < 4; ++e) {
        at[e] = sums.of[q][e];
        at[second_half + e] = sums.of[q][e + 4];
      }
    }
    SyncBlock();
    for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
      float sum = 0.0f;
      for (int i = 0; i < share.step; ++i) sum += shares[i * dim + d];
      finish(q, d, sum);
    }
  }
  SyncBlock();
}

// Rotation's transform and signs (compute/rotation.h) of a row in shared memory, by one warp.
WAVEKV_DEVICE void TransformRow(float* row, int length) {
  for (int half = 1; half < length; half *= 2) {
    SyncWarp();
    for (int p = LaneIndex(); p < length / 2; p += kWarp) {
      const int i = (p & -half) * 2 + (p & (half - 1));
      const float a = row[i], b = row[i + half];
      row[i] = a + b;
      row[i + half] = a - b;
    }
  }
  SyncWarp();
  const float scale = 1.0f / Sqrt(static_cast<float>(length));
  for (int i = LaneIndex(); i < length; i += kWarp) row[i] *= scale;
  SyncWarp();
}
WAVEKV_DEVICE void FlipRow(const RotationSigns& signs, int first_draw, int dim, float* row) {
  for (int i = LaneIndex(); i < dim; i += kWarp) {
    const int draw = first_draw + i;
    if ((signs.words[draw / 32] >> (draw % 32) & 1u) != 0) row[i] = -row[i];
  }
  SyncWarp();
}
// The rotation undone.
WAVEKV_DEVICE void RotateRowBack(const RotationSigns& signs, int dim, float* row) {
  const int length = 1 << (31 - LeadingZeros(static_cast<uint32_t>(dim)));
  if (length != dim) {
    TransformRow(row + dim - length, length);
    FlipRow(signs, dim, dim, row);
  }
  TransformRow(row, length);
  FlipRow(signs, 0, dim, row);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE::estimate

#endif  // WAVEKV_CUDA_ESTIMATE_ROWS_H_
