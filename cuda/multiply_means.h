// Products of queries with rows of stored means, by tensor cores.
//
// Integers of a row become fp16 numbers by a mask alone, as 0x0007 is 7 * 2^-24, and a query is the
// sum of two fp16 numbers in two columns: 22 bits of each element relative to the largest. What
// integers are stored as above (8 or 128) is taken off through the sum of the query's elements.
// fp32 rows are multiplied in fp32.
//
// A warp takes tiles of 32 rows, of which lane 4 g + t loads pieces of rows g, g + 8, g + 16 and
// g + 24 and gets the products of heads t and t + 4.
#ifndef WAVEKV_CUDA_MULTIPLY_MEANS_H_
#define WAVEKV_CUDA_MULTIPLY_MEANS_H_

#include <cstddef>
#include <cstdint>

#include "cuda/kernel.h"
#include "cuda/mma.h"
#include "storage/statistics_row.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

inline constexpr int kHeads = 8;      // that share a pass over the rows
inline constexpr int kTileHeads = 4;  // of a tile of eight columns, two a head
inline constexpr int kTile = 32;      // rows that a warp multiplies at once
inline constexpr int kLaneRows = 4;   // of them, that a lane loads
inline constexpr int kLaneWords = 4;  // of a row, that a lane loads at once

// Rows of integers as words of 32 bits, loaded in panels of 16 words: `width` words at a time, as
// wide as alignment allows and all four lanes of a row find some.
struct RowWords {
  int count = 0;  // 0: fp32
  int width = 1;
  int panels = 0;
};

constexpr RowWords WordsOf(StatisticsFormat format, int dim) {
  if (format == StatisticsFormat::kFloat32) return {};
  const int count = static_cast<int>(StatisticsRowBytes(format, dim) / 4);
  const int width = count % 4 == 0 && count > 8 ? 4 : count % 2 == 0 ? 2 : 1;
  return {count, width, (count + 15) / 16};
}

// Steps of a panel: words of a lane, or halves of them.
constexpr int WordSteps(StatisticsFormat format) {
  return format == StatisticsFormat::kInt4 ? 2 : 1;
}

constexpr int64_t FragmentsOf(StatisticsFormat format, int dim, int num_tiles) {
  return int64_t{WordsOf(format, dim).panels} * kLaneWords * WordSteps(format) * num_tiles * kWarp;
}

// The first word of those that lane t of a row loads as number i of panel p.
WAVEKV_DEVICE int FirstWord(const RowWords& words, int p, int i, int t) {
  return 16 * p + 4 * i + t * words.width;
}

struct HeadNumbers {
  float spread;      // |q|^2 / head_dim_k: times a key spread, the variance of the logit
  float mean_logit;  // product with the segment's mean key
  float to_unit;     // the power of two that takes the largest element below 1
  float from_unit;   // and back, to units of a row's integers
  float sum;
};

// Heads that share a pass.
struct Queries {
  const float* values;  // [count, dim]
  int count;
  int num_tiles;  // of kTileHeads
  int dim;
  const HeadNumbers* heads;
};

WAVEKV_DEVICE Queries QueriesOf(const float* queries, int num_queries, int first, int dim,
                                const HeadNumbers* heads) {
  const int count = Min(kHeads, num_queries - first);
  return {queries + int64_t{first} * dim, count, (count + kTileHeads - 1) / kTileHeads, dim, heads};
}

WAVEKV_DEVICE void MeasureHeads(const Queries& queries, const float* mean_key, HeadNumbers* heads) {
  for (int h = WarpIndex(); h < queries.count; h += BlockWarps()) {
    const float* query = queries.values + h * queries.dim;
    float squared = 0.0f, mean = 0.0f, sum = 0.0f, largest = 0.0f;
    for (int i = LaneIndex(); i < queries.dim; i += kWarp) {
      const float x = query[i];
      squared = MulAdd(x, x, squared);
      mean = MulAdd(x, mean_key[i], mean);
      sum += x;
      largest = Max(largest, Abs(x));
    }
    squared = SumOfWarp(squared);
    mean = SumOfWarp(mean);
    sum = SumOfWarp(sum);
    largest = MaxOfWarp(largest);
    if (LaneIndex() > 0) continue;
    const uint32_t exponent = Min<uint32_t>(FloatBits(largest) >> 23, 228);
    heads[h] = {squared / static_cast<float>(queries.dim), mean,
                FloatFromBits((253 - exponent) << 23), FloatFromBits((exponent + 25) << 23), sum};
  }
}

// The queries as matrices B: of each step and tile, column 2h the upper parts of head h, column
// 2h + 1 the lower parts times 2^11.
template <StatisticsFormat kFormat>
WAVEKV_DEVICE void SliceQueries(const Queries& queries, uint64_t* fragments) {
  const RowWords words = WordsOf(kFormat, queries.dim);
  constexpr int kSteps = WordSteps(kFormat);
  const int count = words.panels * kLaneWords * kSteps * queries.num_tiles * 16;
  for (int i = ThreadIndex(); i < count; i += BlockThreads()) {
    const int t = i % 4, h = i / 4 % 4, matrix = i / 16;
    // Both are powers of two, as are the widths of loads.
    const int tile = matrix & (queries.num_tiles - 1), step = matrix >> (queries.num_tiles - 1);
    const int number = step / kSteps % kLaneWords, panel = step / kSteps / kLaneWords;
    // Numbers of a wide load lie next to each other.
    const int part = number & (words.width - 1);
    const int word = FirstWord(words, panel, number - part, t) + part;
    const int head = tile * kTileHeads + h;
    uint64_t upper = 0, lower = 0;
    if (word < words.count && head < queries.count) {
      const float* from =
          queries.values + head * queries.dim + 4 * word + step % kSteps * (queries.dim / 2);
      const float to_unit = queries.heads[head].to_unit;
      WAVEKV_UNROLL
      for (int j = 0; j < 4; ++j) {
        // A masked word holds every other element.
        const float x = from[j % 2 * 2 + j / 2] * to_unit;
        const uint16_t high = FloatToHalf(x);
        const uint16_t low = FloatToHalf((x - HalfToFloat(high)) * 2048.0f);
        upper |= static_cast<uint64_t>(high) << (16 * j);
        lower |= static_cast<uint64_t>(low) << (16 * j);
      }
    }
    uint64_t* const matrix_b = fragments + matrix * kWarp;
    matrix_b[8 * h + t] = upper;
    matrix_b[8 * h + 4 + t] = lower;
  }
}

WAVEKV_DEVICE void LoadPanel(const std::byte* row, const RowWords& words, int panel,
                             uint32_t (&out)[kLaneWords]) {
  const int t = LaneIndex() % 4;
  WAVEKV_UNROLL
  for (int i = 0; i < kLaneWords; ++i) out[i] = 0;
  if (row == nullptr) return;
  if (words.width == 4) {
    const int at = FirstWord(words, panel, 0, t);
    if (at < words.count) {
      const Bytes16 loaded = *reinterpret_cast<const Bytes16*>(row + 4 * at);
      WAVEKV_UNROLL
      for (int i = 0; i < kLaneWords; ++i) out[i] = loaded.words[i];
    }
  } else if (words.width == 2) {
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneWords; i += 2) {
      const int at = FirstWord(words, panel, i, t);
      if (at >= words.count) continue;
      const uint64_t loaded = *reinterpret_cast<const uint64_t*>(row + 4 * at);
      out[i] = static_cast<uint32_t>(loaded);
      out[i + 1] = static_cast<uint32_t>(loaded >> 32);
    }
  } else {
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneWords; ++i) {
      const int at = FirstWord(words, panel, i, t);
      if (at < words.count) out[i] = *reinterpret_cast<const uint32_t*>(row + 4 * at);
    }
  }
}

// products[r][n]: of this lane's row g + 8r and head 4n + t. rows: this lane's, nullptr where none
// is wanted (the product is then anything).
template <StatisticsFormat kFormat>
WAVEKV_DEVICE void MultiplyIntegers(const std::byte* const (&rows)[kLaneRows],
                                    const float (&scales)[kLaneRows], const Queries& queries,
                                    const uint64_t* fragments, float (&products)[kLaneRows][2]) {
  constexpr bool kInt4 = kFormat == StatisticsFormat::kInt4;
  constexpr uint32_t kMask = kInt4 ? 0x000f000fu : 0x00ff00ffu;
  constexpr float kZero = kInt4 ? 8.0f : 128.0f;
  const RowWords words = WordsOf(kFormat, queries.dim);
  FragmentC sums[2][2] = {};
  for (int p = 0; p < words.panels; ++p) {
    uint32_t panel[kLaneRows][kLaneWords];
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) LoadPanel(rows[r], words, p, panel[r]);
    SyncWarp();  // tensor cores want lanes together
    WAVEKV_UNROLL
    for (int i = 0; i < kLaneWords; ++i) {
      // Past the row's end in all lanes.
      if (FirstWord(words, p, i & ~(words.width - 1), 0) >= words.count) break;
      WAVEKV_UNROLL
      for (int half = 0; half < WordSteps(kFormat); ++half) {
        FragmentA a[2];
        WAVEKV_UNROLL
        for (int r = 0; r < kLaneRows; ++r) {
          const uint32_t word = kInt4 ? panel[r][i] >> (4 * half) : panel[r][i] ^ 0x80808080u;
          a[r / 2].words[r % 2] = word & kMask;
          a[r / 2].words[r % 2 + 2] = (word >> 8) & kMask;
        }
        const int step = (p * kLaneWords + i) * WordSteps(kFormat) + half;
        WAVEKV_UNROLL
        for (int n = 0; n < 2; ++n) {
          if (n >= queries.num_tiles) continue;
          const uint64_t both = fragments[(step * queries.num_tiles + n) * kWarp + LaneIndex()];
          const FragmentB b = {{static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)}};
          MultiplyAdd<DType::kFloat16>(a[0], b, sums[0][n]);
          MultiplyAdd<DType::kFloat16>(a[1], b, sums[1][n]);
        }
      }
    }
  }
  WAVEKV_UNROLL
  for (int n = 0; n < 2; ++n) {
    const int head = n * kTileHeads + LaneIndex() % 4;
    if (head >= queries.count) continue;
    const HeadNumbers& numbers = queries.heads[head];
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const float* sum = sums[r / 2][n].values + r % 2 * 2;
      const float raw = MulAdd(sum[1], 1.0f / 2048.0f, sum[0]);
      products[r][n] = scales[r] * MulAdd(raw, numbers.from_unit, -kZero * numbers.sum);
    }
  }
}

WAVEKV_DEVICE void MultiplyFloats(const std::byte* const (&rows)[kLaneRows], const Queries& queries,
                                  float (&products)[kLaneRows][2]) {
  for (int g = 0; g < kTile / kLaneRows; ++g) {
    const float* tile_rows[kLaneRows];
    float sums[kLaneRows][kHeads] = {};
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const uint64_t address = Shuffle(reinterpret_cast<uint64_t>(rows[r]), 4 * g);
      tile_rows[r] = reinterpret_cast<const float*>(address);
    }
    for (int i = LaneIndex(); i < queries.dim; i += kWarp) {
      float elements[kLaneRows];
      WAVEKV_UNROLL
      for (int r = 0; r < kLaneRows; ++r) {
        elements[r] = tile_rows[r] == nullptr ? 0.0f : tile_rows[r][i];
      }
      WAVEKV_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        if (h >= queries.count) continue;
        const float x = queries.values[h * queries.dim + i];
        WAVEKV_UNROLL
        for (int r = 0; r < kLaneRows; ++r) sums[r][h] = MulAdd(x, elements[r], sums[r][h]);
      }
    }
    WAVEKV_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      if (h >= queries.count) continue;
      WAVEKV_UNROLL
      for (int r = 0; r < kLaneRows; ++r) {
        const float sum = SumOfWarp(sums[r][h]);
        if (LaneIndex() == 4 * g + h % kTileHeads) products[r][h / kTileHeads] = sum;
      }
    }
  }
}

template <StatisticsFormat kFormat>
WAVEKV_DEVICE void Multiply(const std::byte* const (&rows)[kLaneRows],
                            const float (&scales)[kLaneRows], const Queries& queries,
                            const uint64_t* fragments, float (&products)[kLaneRows][2]) {
  if constexpr (kFormat == StatisticsFormat::kFloat32) {
    MultiplyFloats(rows, queries, products);
  } else {
    MultiplyIntegers<kFormat>(rows, scales, queries, fragments, products);
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_MULTIPLY_MEANS_H_
