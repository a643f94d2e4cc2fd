// Attention for rows of any type and any dims that are multiples of 8, without tensor cores.
//
// A block has one task's split and 8 queries. Of a tile of 128 tokens, each thread scores one
// token, each warp weighs the scores of two queries, and each thread adds up the weighted values of
// up to five features. Rows that more than 8 queries share are read again for each 8 of them, from
// the L2 cache.
#ifndef WAVEKV_CUDA_ATTEND_ANY_ROWS_H_
#define WAVEKV_CUDA_ATTEND_ANY_ROWS_H_

#include "cuda/find_rows.h"
#include "cuda/kernel.h"
#include "wavekv/types.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

struct AnyRows {
  static constexpr int kThreads = 128;
  static constexpr int kTile = kThreads;  // tokens
  static constexpr int kQueries = 8;
  static constexpr int kFeaturesOfThread = (kHeadDimMax + kThreads - 1) / kThreads;

  static int64_t SharedBytes(const KvShape& shape) {
    return SharedSize()
        .Add<float>(kQueries * shape.head_dim_k)
        .Add<float>(kQueries * kTile)
        .Add<const std::byte*>(kTile)
        .Add<float>(3 * kQueries)
        .Add<AttendPart>(1)
        .bytes();
  }
};

// Eight elements of a row, from the one at `index` on.
template <DType kType>
WAVEKV_DEVICE void LoadEight(const std::byte* row, int index, float (&elements)[8]) {
  constexpr int kWords = 4 * DTypeBytes(kType) / 2;
  const auto* words = reinterpret_cast<const Bytes16*>(row + int64_t{index} * DTypeBytes(kType));
  WAVEKV_UNROLL
  for (int w = 0; w < kWords; w += 4) {
    const Bytes16 loaded = words[w / 4];
    WAVEKV_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = loaded.words[i];
      if constexpr (kType == DType::kFloat32) {
        elements[w + i] = FloatFromBits(word);
      } else if constexpr (kType == DType::kFloat16) {
        elements[2 * i] = HalfToFloat(static_cast<uint16_t>(word));
        elements[2 * i + 1] = HalfToFloat(static_cast<uint16_t>(word >> 16));
      } else {
        elements[2 * i] = BFloatToFloat(static_cast<uint16_t>(word));
        elements[2 * i + 1] = BFloatToFloat(static_cast<uint16_t>(word >> 16));
      }
    }
  }
}

template <DType kType>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(AnyRows::kThreads)
    AttendAnyRowsKernel(const GpuAttendTask* tasks, KvShape shape, unsigned query_blocks,
                        int num_splits) {
  constexpr int kQueries = AnyRows::kQueries, kTile = AnyRows::kTile;
  constexpr int kThreads = AnyRows::kThreads;
  const GpuAttendTask& task = tasks[blockIdx.x / query_blocks];
  const int first_query = static_cast<int>(blockIdx.x % query_blocks) * kQueries;
  if (first_query >= task.num_queries) return;
  const int num_queries = Min(kQueries, task.num_queries - first_query);
  const int split = static_cast<int>(blockIdx.y);
  const int dim_k = shape.head_dim_k, dim_v = shape.head_dim_v;

  SharedMemory shared;
  float* const queries = shared.Take<float>(kQueries * dim_k);
  float* const weights = shared.Take<float>(kQueries * kTile);  // first the scores
  const std::byte** const values = shared.Take<const std::byte*>(kTile);
  float* const most = shared.Take<float>(3 * kQueries);
  float* const mass = most + kQueries;
  float* const shrink = mass + kQueries;

  for (int i = ThreadIndex(); i < kQueries * dim_k; i += kThreads) {
    queries[i] = i < num_queries * dim_k ? task.queries[int64_t{first_query} * dim_k + i] : 0.0f;
  }
  if (ThreadIndex() < kQueries) {
    most[ThreadIndex()] = -kInfinity;
    mass[ThreadIndex()] = 0.0f;
  }
  float sums[AnyRows::kFeaturesOfThread][kQueries] = {};

  const AttendPart* const part = SharePart(task, num_splits, split, shared);
  const TokenSpan tokens = part->tokens;
  RowFinder finder(part, int64_t{dim_k} * DTypeBytes(kType), int64_t{dim_v} * DTypeBytes(kType));
  for (int64_t begin = tokens.begin; begin < tokens.end; begin += kTile) {
    SyncBlock();  // the tile before is done with
    const int tile = static_cast<int>(Min(int64_t{kTile}, tokens.end - begin));
    float scores[kQueries] = {};
    RowFinder::Row row;
    row.position = kNeverVisible;
    if (ThreadIndex() < tile) {
      row = finder.Find(begin + ThreadIndex());
      for (int d = 0; d < dim_k; d += 8) {
        float key[8];
        LoadEight<kType>(row.at.key, d, key);
        WAVEKV_UNROLL
        for (int q = 0; q < kQueries; ++q) {
          WAVEKV_UNROLL
          for (int i = 0; i < 8; ++i) {
            scores[q] = MulAdd(queries[q * dim_k + d + i], key[i], scores[q]);
          }
        }
      }
    }
    values[ThreadIndex()] = row.at.value;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const int64_t visible_end = task.visible_end != nullptr && q < num_queries
                                      ? task.visible_end[first_query + q]
                                      : kNeverVisible;
      weights[q * kTile + ThreadIndex()] =
          row.position < visible_end ? ClampScore(scores[q]) : -kInfinity;
    }
    SyncBlock();

    for (int q = WarpIndex(); q < kQueries; q += kThreads / kWarp) {
      float* const of_query = weights + q * kTile;
      const float before = most[q];
      float now = before;
      for (int i = LaneIndex(); i < kTile; i += kWarp) now = Max(now, of_query[i]);
      now = MaxOfWarp(now);
      const float offset = now == -kInfinity ? 0.0f : now;
      float sum = 0.0f;
      for (int i = LaneIndex(); i < kTile; i += kWarp) {
        of_query[i] = Exp(of_query[i] - offset);
        sum += of_query[i];
      }
      sum = SumOfWarp(sum);
      SyncWarp();  // all lanes have read most[q]
      if (LaneIndex() == 0) {
        most[q] = now;
        shrink[q] = Exp(before - offset);
        mass[q] = mass[q] * shrink[q] + sum;
      }
    }
    SyncBlock();

    WAVEKV_UNROLL
    for (int j = 0; j < AnyRows::kFeaturesOfThread; ++j) {
      const int feature = ThreadIndex() + j * kThreads;
      if (feature < dim_v) {
        WAVEKV_UNROLL
        for (int q = 0; q < kQueries; ++q) sums[j][q] *= shrink[q];
        for (int i = 0; i < tile; ++i) {
          const float value = LoadAs(values[i], kType, feature);
          WAVEKV_UNROLL
          for (int q = 0; q < kQueries; ++q) {
            sums[j][q] = MulAdd(weights[q * kTile + i], value, sums[j][q]);
          }
        }
      }
    }
  }

  SyncBlock();
  const int64_t first_state = int64_t{split} * task.num_queries + first_query;
  WAVEKV_UNROLL
  for (int j = 0; j < AnyRows::kFeaturesOfThread; ++j) {
    const int feature = ThreadIndex() + j * kThreads;
    if (feature < dim_v) {
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        if (q < num_queries) {
          task.output[(first_state + q) * dim_v + feature] =
              mass[q] > 0.0f ? sums[j][q] / mass[q] : 0.0f;
        }
      }
    }
  }
  if (ThreadIndex() < num_queries) {
    const int q = ThreadIndex();
    task.lse[first_state + q] = mass[q] > 0.0f ? most[q] + Log(mass[q]) : -kInfinity;
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_ATTEND_ANY_ROWS_H_
