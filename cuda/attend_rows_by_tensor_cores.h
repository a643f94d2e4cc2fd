// Attention for 16-bit rows of common head dims, at the speed of memory.
//
// What bounds it: each row is read once from device memory for 32 queries (16 where head_dim is
// 256), head_dim * 4 bytes a token; all else is to stay in that shadow. A block has one task's
// split and these queries. Its warps take tiles of 16 tokens in turn and are on their own until the
// end: each has two slots in shared memory for a tile's keys and two for its values, copies
// asynchronously into those that it has just done with, so that three of the four are under way
// whenever it waits, and keeps its own softmax and sums, which are merged in the order of the
// warps.
//
// Arithmetic: scores [16 tokens, 8 queries] and sums [16 features, 8 queries] by tensor cores, so
// that up to 8 queries cost what one does. Queries and weights are split into 16-bit numbers that
// add up to them: queries, scaled by a power of two, into three of bf16 (24 bits) or two of fp16
// (22 bits); weights into two of bf16 (16 bits) or of fp16 (22 bits, scaled so that small ones
// stay). A tile's sums are added in fp32. So a score is as exact as in fp32, and an output's error
// is at most 2^-17 (bf16) or 2^-21 (fp16) of the values' magnitude, and what fp32 adds.
#ifndef WAVEKV_CUDA_ATTEND_ROWS_BY_TENSOR_CORES_H_
#define WAVEKV_CUDA_ATTEND_ROWS_BY_TENSOR_CORES_H_

#include <algorithm>

#include "cuda/find_rows.h"
#include "cuda/kernel.h"
#include "cuda/mma.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

inline constexpr int kTileTokens = 16;
inline constexpr int kGroupQueries = 8;  // of one product by tensor cores
inline constexpr int kSlots = 2;

// The sizes of a block that has up to kGroups * 8 queries. Shared memory: at most the 99 KiB that
// every architecture has; on an H200 three blocks of head_dim 128 and 8 queries fit.
template <DType kType, int kDim, int kGroups>
struct AttendSizes {
  static_assert(kDim % 16 == 0);
  static constexpr int kWarps = kDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlocks =
      kGroups == 1 && kDim <= 128 ? 3 : 2;  // of a multiprocessor, at least
  static constexpr int kQueries = kGroups * kGroupQueries;
  static constexpr int kQueryParts = kType == DType::kFloat16 ? 2 : 3;
  static constexpr int kSteps = kDim / 16;
  // A query's words of so many parts stay in registers, where there is room beside the sums.
  static constexpr int kPartsInRegisters = kGroups > 1 || kDim >= 128 ? 0 : kQueryParts;
  // A tile's sums are added in fp32; where the sums alone fill the registers, by tensor cores.
  static constexpr bool kSumsOfTiles = kGroups * kDim <= 256;

  // A row in 16-byte chunks. So that eight rows' chunks of one column lie in different banks, rows
  // of a multiple of 8 chunks are permuted and others take an odd number.
  static constexpr int kChunks = kDim / 8;
  static constexpr bool kPermuted = kChunks % 8 == 0;
  static constexpr int kStride = kPermuted ? kChunks : kChunks | 1;
  static constexpr int kSlotChunks = kTileTokens * kStride;
  static constexpr int kMergeStride = kDim + 4;  // floats; against bank conflicts
  // A warp's: its slots and, once they are done with, its sums.
  static constexpr int kWarpChunks = std::max(2 * kSlots * kSlotChunks, kQueries* kMergeStride / 4);

  static int64_t SharedBytes() {
    SharedSize size;
    size.Add<Bytes16>(kWarps * kWarpChunks);
    size.Add<FragmentB>(kQueryParts * kGroups * kSteps * kWarp);
    size.Add<const std::byte*>(kWarps * 2 * kTileTokens);
    size.Add<AttendPart>(1);
    size.Add<int64_t>(kWarps * kSlots * kTileTokens);
    size.Add<int64_t>(kQueries);
    size.Add<float>(kQueries);
    size.Add<float>(2 * kWarps * kQueries);
    return size.bytes();
  }
};

// Where a slot has a row's chunk. Unsigned, here and below, for the compiler to see that most of it
// is the same for all steps.
template <class Sizes>
WAVEKV_DEVICE unsigned ChunkAt(unsigned row, unsigned chunk) {
  return row * Sizes::kStride + (Sizes::kPermuted ? (chunk & ~7u) | ((chunk ^ row) & 7u) : chunk);
}

template <DType kType>
WAVEKV_DEVICE float LowOf(uint32_t word) {
  const auto bits = static_cast<uint16_t>(word);
  return kType == DType::kFloat16 ? HalfToFloat(bits) : BFloatToFloat(bits);
}
template <DType kType>
WAVEKV_DEVICE float HighOf(uint32_t word) {
  return LowOf<kType>(word >> 16);
}

// A warp's tiles of rows, brought into its slots.
template <class Sizes>
class TileStream {
  static constexpr int kStep = Sizes::kWarps * kTileTokens;

 public:
  // pointers: [2 * 16] and positions: [kSlots * 16], the warp's own.
  WAVEKV_DEVICE TileStream(const AttendPart* part, Bytes16* slots, const std::byte** pointers,
                           int64_t* positions)
      : part_(part),
        finder_(part, Sizes::kChunks * 16, Sizes::kChunks * 16),
        next_(part->tokens.begin + WarpIndex() * kTileTokens),
        slots_(slots),
        pointers_(pointers),
        positions_(positions) {}

  // Not located yet.
  WAVEKV_DEVICE int num_tiles() const {
    return static_cast<int>(Max(int64_t{0}, (part_->tokens.end - next_ + kStep - 1) / kStep));
  }
  WAVEKV_DEVICE Bytes16* keys(int slot) const { return slots_ + slot * Sizes::kSlotChunks; }
  WAVEKV_DEVICE Bytes16* values(int slot) const { return keys(kSlots + slot); }
  // kNeverVisible for those behind the end.
  WAVEKV_DEVICE const int64_t* positions(int slot) const { return positions_ + slot * kTileTokens; }

  // Asks where the rows of the next tile are, for CopyKeys to use. Past the end: the last one's.
  WAVEKV_DEVICE void Locate() {
    const int64_t end = part_->tokens.end;
    is_located_ = next_ < end;
    if (is_located_) {
      const int64_t token = next_ + LaneIndex() % kTileTokens;
      const RowFinder::Row row = finder_.Find(Min(token, end - 1));
      row_ = LaneIndex() < kTileTokens ? row.at.key : row.at.value;
      position_ = token < end ? row.position : kNeverVisible;
    }
    next_ += kStep;
  }

  // Begins to copy the located tile's keys: the lanes are done with those in the slot when all have
  // entered.
  WAVEKV_DEVICE void CopyKeys(int slot) {
    is_copied_ = is_located_;
    if (is_copied_) pointers_[LaneIndex()] = row_;
    SyncWarp();
    if (is_copied_) {
      if (LaneIndex() < kTileTokens) positions_[slot * kTileTokens + LaneIndex()] = position_;
      CopyRows(pointers_, keys(slot));
    }
    CommitCopies();
  }

  // And the same tile's values, after the lanes are done with those in the slot.
  WAVEKV_DEVICE void CopyValues(int slot) {
    if (is_copied_) CopyRows(pointers_ + kTileTokens, values(slot));
    CommitCopies();
  }

 private:
  static WAVEKV_DEVICE void CopyRows(const std::byte* const* rows, Bytes16* target) {
    constexpr unsigned kChunks = Sizes::kChunks;
    static_assert(kTileTokens * kChunks % kWarp == 0);
    const auto lane = static_cast<unsigned>(LaneIndex());
    WAVEKV_UNROLL
    for (unsigned i = 0; i < kTileTokens * kChunks / kWarp; ++i) {
      const unsigned index = i * kWarp + lane;
      const unsigned row = index / kChunks, chunk = index % kChunks;
      CopyAsync16(target + ChunkAt<Sizes>(row, chunk), rows[row] + chunk * 16);
    }
  }

  const AttendPart* part_;
  RowFinder finder_;
  int64_t next_;  // its first token
  Bytes16* slots_;
  const std::byte** pointers_;
  int64_t* positions_;
  const std::byte* row_ = nullptr;  // of lane i < 16: token i's key; else token i - 16's value
  int64_t position_ = 0;
  bool is_located_ = false;
  bool is_copied_ = false;
};

// Splits a query into parts that a warp's B fragments take, and gives what its scores are to be
// multiplied by. query == nullptr: zeros.
template <DType kType, class Sizes>
WAVEKV_DEVICE float StoreQuery(const float* query, int index, FragmentB* fragments) {
  constexpr int kDim = Sizes::kSteps * 16, kPairs = kDim / 2;
  constexpr int kPairsOfLane = (kPairs + kWarp - 1) / kWarp;
  float numbers[kPairsOfLane][2];
  float magnitude = 0.0f;
  WAVEKV_UNROLL
  for (int i = 0; i < kPairsOfLane; ++i) {
    const int pair = i * kWarp + LaneIndex();
    WAVEKV_UNROLL
    for (int j = 0; j < 2; ++j) {
      numbers[i][j] = query != nullptr && pair < kPairs ? query[2 * pair + j] : 0.0f;
      magnitude = Max(magnitude, Abs(numbers[i][j]));
    }
  }
  // The largest magnitude becomes 1 to 2 or, for fp16, 64 to 128, whose parts are then exact enough
  // in its range.
  constexpr int kBias = 127, kTarget = kType == DType::kFloat16 ? 6 : 0;
  const int exponent =
      Max(static_cast<int>(FloatBits(MaxOfWarp(magnitude)) >> 23), 20) - kBias - kTarget;
  const float down = FloatFromBits(static_cast<uint32_t>(kBias - exponent) << 23);
  const float up = FloatFromBits(static_cast<uint32_t>(kBias + exponent) << 23);

  auto* const words = reinterpret_cast<uint32_t*>(fragments);
  WAVEKV_UNROLL
  for (int i = 0; i < kPairsOfLane; ++i) {
    const int pair = i * kWarp + LaneIndex();
    float low = numbers[i][0] * down, high = numbers[i][1] * down;
    WAVEKV_UNROLL
    for (int part = 0; part < Sizes::kQueryParts; ++part) {
      const uint32_t word = PackPair<kType>(low, high);
      low -= LowOf<kType>(word);
      high -= HighOf<kType>(word);
      // Pair p of a step is word p / 4 of the lane p % 4 of the query's four.
      const int lane = index % kGroupQueries * 4 + pair % 4;
      const int fragment =
          (part * (Sizes::kQueries / kGroupQueries) + index / kGroupQueries) * Sizes::kSteps +
          pair / 8;
      if (pair < kPairs) words[(fragment * kWarp + lane) * 2 + pair / 4 % 2] = word;
    }
  }
  return query != nullptr ? up : 0.0f;
}

template <DType kType, int kDim, int kGroups>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(AttendSizes<kType, kDim, kGroups>::kThreads,
                                   AttendSizes<kType, kDim, kGroups>::kBlocks)
    AttendByTensorCoresKernel(const GpuAttendTask* tasks, unsigned query_blocks, int num_splits) {
  using Sizes = AttendSizes<kType, kDim, kGroups>;
  constexpr int kSteps = Sizes::kSteps, kParts = Sizes::kQueryParts, kQueries = Sizes::kQueries;
  // Weights are multiplied by it, so that small ones stay normal numbers in fp16.
  constexpr float kWeightScale = kType == DType::kFloat16 ? 4096.0f : 1.0f;
  const GpuAttendTask& task = tasks[blockIdx.x / query_blocks];
  const int first_query = static_cast<int>(blockIdx.x % query_blocks) * kQueries;
  if (first_query >= task.num_queries) return;
  const int num_queries = Min(kQueries, task.num_queries - first_query);
  const int split = static_cast<int>(blockIdx.y);
  const int64_t first_state = int64_t{split} * task.num_queries + first_query;

  SharedMemory shared;
  Bytes16* const slots = shared.Take<Bytes16>(Sizes::kWarps * Sizes::kWarpChunks);
  FragmentB* const query_fragments =
      shared.Take<FragmentB>(kParts * kGroups * kSteps * kWarp);  // [part, group, step, lane]
  const std::byte** const pointers = shared.Take<const std::byte*>(Sizes::kWarps * kWarp);
  const AttendPart* const attended = SharePart(task, num_splits, split, shared);
  int64_t* const positions = shared.Take<int64_t>(Sizes::kWarps * kSlots * kTileTokens);
  int64_t* const visible_end = shared.Take<int64_t>(kQueries);
  float* const score_scales = shared.Take<float>(kQueries);
  float* const most_of_warps = shared.Take<float>(2 * Sizes::kWarps * kQueries);
  float* const mass_of_warps = most_of_warps + Sizes::kWarps * kQueries;

  const int warp = WarpIndex();
  TileStream<Sizes> stream(attended, slots + warp * Sizes::kWarpChunks, pointers + warp * kWarp,
                           positions + warp * kSlots * kTileTokens);
  const int num_tiles = stream.num_tiles();
  stream.Locate();
  WAVEKV_UNROLL
  for (int slot = 0; slot < kSlots; ++slot) {
    stream.CopyKeys(slot);
    stream.Locate();
    stream.CopyValues(slot);
    SyncWarp();  // all have read the pointers
  }

  for (int q = warp; q < kQueries; q += Sizes::kWarps) {
    const bool is_there = q < num_queries;
    const float* query = is_there ? task.queries + int64_t{first_query + q} * kDim : nullptr;
    const float scale = StoreQuery<kType, Sizes>(query, q, query_fragments);
    if (LaneIndex() == 0) {
      score_scales[q] = scale;
      visible_end[q] = is_there && task.visible_end != nullptr ? task.visible_end[first_query + q]
                                                               : kNeverVisible;
    }
  }
  SyncBlock();

  // Below, lane 4g + t has the queries 2t and 2t + 1 of each group: of the tokens g and g + 8 in
  // scores, of the features g and g + 8 of each step in sums.
  const auto lane = static_cast<unsigned>(LaneIndex());
  const unsigned g = lane / 4, t = lane % 4;
  int64_t all_see_below = kNeverVisible;
  for (int q = 0; q < kQueries; ++q) all_see_below = Min(all_see_below, visible_end[q]);
  FragmentB query_registers[Sizes::kPartsInRegisters + 1][kSteps];
  WAVEKV_UNROLL
  for (int part = 0; part < Sizes::kPartsInRegisters; ++part) {
    WAVEKV_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      query_registers[part][step] = query_fragments[(part * kSteps + step) * kWarp + LaneIndex()];
    }
  }

  float most[kGroups][2], mass[kGroups][2];  // mass: of this lane's tokens
  FragmentC sums[kGroups][kSteps];
  WAVEKV_UNROLL
  for (int group = 0; group < kGroups; ++group) {
    WAVEKV_UNROLL
    for (int j = 0; j < 2; ++j) {
      most[group][j] = -kInfinity;
      mass[group][j] = 0.0f;
    }
    WAVEKV_UNROLL
    for (int step = 0; step < kSteps; ++step) sums[group][step] = {};
  }

  int slot = 0;
  for (int tile = 0; tile < num_tiles; ++tile, slot = 1 - slot) {
    WaitForCopies<2 * kSlots - 1>();
    SyncWarp();

    FragmentC scores[kGroups], finer[kGroups];  // of the queries' first parts, and of the others
    WAVEKV_UNROLL
    for (int group = 0; group < kGroups; ++group) scores[group] = finer[group] = {};
    const Bytes16* const keys = stream.keys(slot);
    WAVEKV_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      FragmentA a;
      LoadMatrices<false>(keys + ChunkAt<Sizes>(lane % 16, 2 * step + lane / 16), a.words);
      WAVEKV_UNROLL
      for (int group = 0; group < kGroups; ++group) {
        WAVEKV_UNROLL
        for (int part = 0; part < kParts; ++part) {
          const FragmentB b =
              part < Sizes::kPartsInRegisters
                  ? query_registers[part][step]
                  : query_fragments[((part * kGroups + group) * kSteps + step) * kWarp +
                                    LaneIndex()];
          MultiplyAdd<kType>(a, b, part == 0 ? scores[group] : finer[group]);
        }
      }
    }
    WAVEKV_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      WAVEKV_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[group].values[i] = ClampScore((scores[group].values[i] + finer[group].values[i]) *
                                             score_scales[group * kGroupQueries + 2 * t + i % 2]);
      }
    }
    const int64_t* const tile_positions = stream.positions(slot);
    if (Ballot(tile_positions[LaneIndex() % kTileTokens] >= all_see_below) != 0) {
      WAVEKV_UNROLL
      for (int group = 0; group < kGroups; ++group) {
        WAVEKV_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (tile_positions[g + i / 2 * 8] >= visible_end[group * kGroupQueries + 2 * t + i % 2]) {
            scores[group].values[i] = -kInfinity;
          }
        }
      }
    }
    stream.CopyKeys(slot);
    stream.Locate();

    FragmentB weights[kGroups], rests[kGroups];
    float shrink[kGroups][2];
    WAVEKV_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      float(&w)[4] = scores[group].values;
      WAVEKV_UNROLL
      for (int j = 0; j < 2; ++j) {
        float now = Max(w[j], w[j + 2]);
        WAVEKV_UNROLL
        for (int mask = 4; mask < kWarp; mask *= 2) now = Max(now, ShuffleXor(now, mask));
        now = Max(now, most[group][j]);
        const float offset = now == -kInfinity ? 0.0f : now;
        shrink[group][j] = Exp(most[group][j] - offset);
        most[group][j] = now;
        w[j] = Exp(w[j] - offset) * kWeightScale;
        w[j + 2] = Exp(w[j + 2] - offset) * kWeightScale;
        mass[group][j] = MulAdd(mass[group][j], shrink[group][j], w[j] + w[j + 2]);
      }
      WAVEKV_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t word = PackPair<kType>(w[2 * i], w[2 * i + 1]);
        const uint32_t rest =
            PackPair<kType>(w[2 * i] - LowOf<kType>(word), w[2 * i + 1] - HighOf<kType>(word));
        weights[group].words[i] = TransposeMatrix(word);
        rests[group].words[i] = TransposeMatrix(rest);
      }
    }

    WaitForCopies<2 * kSlots - 1>();
    SyncWarp();
    const Bytes16* const values = stream.values(slot);
    WAVEKV_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      FragmentA a;
      LoadMatrices<true>(values + ChunkAt<Sizes>(lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2),
                         a.words);
      WAVEKV_UNROLL
      for (int group = 0; group < kGroups; ++group) {
        float(&sum)[4] = sums[group][step].values;
        FragmentC of_tile = {};
        FragmentC& target = Sizes::kSumsOfTiles ? of_tile : sums[group][step];
        WAVEKV_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] *= shrink[group][i % 2];
        MultiplyAdd<kType>(a, rests[group], target);
        MultiplyAdd<kType>(a, weights[group], target);
        if constexpr (Sizes::kSumsOfTiles) {
          WAVEKV_UNROLL
          for (int i = 0; i < 4; ++i) sum[i] += of_tile.values[i];
        }
      }
    }
    SyncWarp();
    stream.CopyValues(slot);
  }
  WaitForCopies<0>();

  SyncBlock();                                            // the rows are done with
  float* const merged = reinterpret_cast<float*>(slots);  // of each warp [query, kMergeStride]
  WAVEKV_UNROLL
  for (int group = 0; group < kGroups; ++group) {
    WAVEKV_UNROLL
    for (int j = 0; j < 2; ++j) {
      float sum = mass[group][j];
      WAVEKV_UNROLL
      for (int mask = 4; mask < kWarp; mask *= 2) sum += ShuffleXor(sum, mask);
      const int q = warp * kQueries + group * kGroupQueries + 2 * t + j;
      if (g == 0) {
        most_of_warps[q] = most[group][j];
        mass_of_warps[q] = sum;
      }
      WAVEKV_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        float* const at = merged + warp * Sizes::kWarpChunks * 4 +
                          (group * kGroupQueries + 2 * t + j) * Sizes::kMergeStride + step * 16 + g;
        at[0] = sums[group][step].values[j];
        at[8] = sums[group][step].values[j + 2];
      }
    }
  }
  SyncBlock();
  for (int q = ThreadIndex(); q < num_queries; q += Sizes::kThreads) {
    float greatest = -kInfinity, total = 0.0f;
    for (int w = 0; w < Sizes::kWarps; ++w) {
      greatest = Max(greatest, most_of_warps[w * kQueries + q]);
    }
    const float offset = greatest == -kInfinity ? 0.0f : greatest;
    for (int w = 0; w < Sizes::kWarps; ++w) {
      const float factor = Exp(most_of_warps[w * kQueries + q] - offset);
      total = MulAdd(mass_of_warps[w * kQueries + q], factor, total);
      mass_of_warps[w * kQueries + q] = factor;  // of no further use as masses
    }
    for (int w = 0; w < Sizes::kWarps; ++w) {
      mass_of_warps[w * kQueries + q] *= total > 0.0f ? 1.0f / total : 0.0f;
    }
    task.lse[first_state + q] =
        total > 0.0f ? greatest + Log(total * (1.0f / kWeightScale)) : -kInfinity;
  }
  SyncBlock();
  for (int i = ThreadIndex(); i < num_queries * kDim; i += Sizes::kThreads) {
    const int q = i / kDim, feature = i % kDim;
    float sum = 0.0f;
    WAVEKV_UNROLL
    for (int w = 0; w < Sizes::kWarps; ++w) {
      sum = MulAdd(merged[w * Sizes::kWarpChunks * 4 + q * Sizes::kMergeStride + feature],
                   mass_of_warps[w * kQueries + q], sum);
    }
    task.output[first_state * kDim + i] = sum;
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_ATTEND_ROWS_BY_TENSOR_CORES_H_
