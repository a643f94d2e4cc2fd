// Kernels of spherical k-means: rows without their mean, seeds, assignments, sorting, updates.
#ifndef WAVEKV_CUDA_CLUSTER_KMEANS_INL_H_
#define WAVEKV_CUDA_CLUSTER_KMEANS_INL_H_

#include "cuda/cluster_problem-inl.h"
#include "cuda/kernel.h"
#include "cuda/mma.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

// The sum over kChunkRows rows, and their largest element. A block a chunk, a warp's rows in order,
// then the warps in order.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(kThreads)
WAVEKV_KERNEL SumKernel(Level level, int num_chunks) {
  constexpr int kBatch = RowsInFlight<kWords>();
  const Problem problem(level, blockIdx.x / num_chunks);
  const int chunk = static_cast<int>(blockIdx.x % num_chunks);
  if (chunk * kChunkRows >= problem.num_points) return;
  SharedMemory shared;
  const int stride = problem.layout.stride;
  float* const sums = shared.Take<float>(int64_t{kWarps} * stride);
  float* const scratch = shared.Take<float>(33);
  Piece<kWords> sum = {};
  float largest = 0.0f;
  const int first = chunk * kChunkRows + WarpIndex() * (kChunkRows / kWarps);
  const int end = Min(first + kChunkRows / kWarps, problem.num_points);
  for (int row = first; row < end; row += kBatch) {
    Piece<kWords> pieces[kBatch];
    LoadSources<kWords, kBatch>(problem, level.dtype, row, pieces);
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      WAVEKV_UNROLL
      for (int i = 0; i < 2 * kWords; ++i) {
        const float value = row + b < end ? pieces[b].values[i] : 0.0f;
        sum.values[i] = MulAdd(value, kSumScale, sum.values[i]);
        largest = Max(largest, Abs(value));
      }
    }
  }
  WAVEKV_UNROLL
  for (int i = 0; i < 2 * kWords; ++i) {
    const int pair = LaneIndex() + kWarp * (i / 2);
    if (2 * pair < stride) sums[WarpIndex() * stride + 2 * pair + i % 2] = sum.values[i];
  }
  largest = MaxOfBlock(largest, scratch);
  for (int d = ThreadIndex(); d < stride; d += kThreads) {
    float total = 0.0f;
    WAVEKV_UNROLL
    for (int w = 0; w < kWarps; ++w) total += sums[w * stride + d];
    problem.partial_sums()[int64_t{chunk} * stride + d] = total;
  }
  if (ThreadIndex() == 0) problem.partial_max()[chunk] = largest;
}

// From the partial sums, the mean. A block a problem.
WAVEKV_KERNEL MeanKernel(Level level) {
  const Problem problem(level, blockIdx.x);
  if (problem.num_points == 0) return;
  SharedMemory shared;
  float* const scratch = shared.Take<float>(33);
  const int stride = problem.layout.stride;
  const int num_chunks = (problem.num_points + kChunkRows - 1) / kChunkRows;
  float largest = 0.0f;
  for (int chunk = ThreadIndex(); chunk < num_chunks; chunk += kThreads) {
    largest = Max(largest, problem.partial_max()[chunk]);
  }
  const float scale = ScaleToUnit(MaxOfBlock(largest, scratch));
  constexpr int kBatch = 8;
  for (int d = ThreadIndex(); d < stride; d += kThreads) {
    float sum = 0.0f;
    for (int first = 0; first < num_chunks; first += kBatch) {
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int chunk = first + b;
        sum += chunk < num_chunks ? problem.partial_sums()[int64_t{chunk} * stride + d] : 0.0f;
      }
    }
    problem.mean()[d] = sum * scale * (1.0f / kSumScale / static_cast<float>(problem.num_points));
  }
  if (ThreadIndex() == 0) problem.mean()[stride] = scale;
}

// Rows without the mean, as fp16 and a scale.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(kThreads)
WAVEKV_KERNEL CentreKernel(Level level, int blocks_of_problem) {
  constexpr int kBatch = RowsInFlight<kWords>();
  const Problem problem(level, blockIdx.x / blocks_of_problem);
  const int block = static_cast<int>(blockIdx.x % blocks_of_problem);
  const int first = (block * kWarps + WarpIndex()) * kRowsOfWarp;
  const int end = Min(first + kRowsOfWarp, problem.num_points);
  if (first >= end) return;
  const int num_pairs = problem.layout.stride / 2;
  const float* const mean = problem.mean();
  const float scale = mean[problem.layout.stride];
  for (int row = first; row < end; row += kBatch) {
    Piece<kWords> pieces[kBatch];
    LoadSources<kWords, kBatch>(problem, level.dtype, row, pieces);
    float largest[kBatch] = {};
    WAVEKV_UNROLL
    for (int i = 0; i < 2 * kWords; ++i) {
      const int pair = LaneIndex() + kWarp * (i / 2);
      const float centre = pair < num_pairs ? mean[2 * pair + i % 2] : 0.0f;
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        pieces[b].values[i] = pieces[b].values[i] * scale - centre;
        largest[b] = Max(largest[b], Abs(pieces[b].values[i]));
      }
    }
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) largest[b] = MaxOfWarp(largest[b]);
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      if (row + b >= end) continue;
      const float to_unit = ScaleToUnit(largest[b]);
      uint32_t* const to = problem.rows() + int64_t{row + b} * num_pairs;
      WAVEKV_UNROLL
      for (int w = 0; w < kWords; ++w) {
        const int pair = LaneIndex() + kWarp * w;
        if (pair < num_pairs) {
          to[pair] = PackPair<DType::kFloat16>(pieces[b].values[2 * w] * to_unit,
                                               pieces[b].values[2 * w + 1] * to_unit);
        }
      }
      if (LaneIndex() == 0) problem.scales()[row + b] = 1.0f / to_unit;
    }
  }
}

// Writes the piece, scaled to unit length, as centroid `c`; a zero stays zero.
template <int kWords>
WAVEKV_DEVICE float StoreCentroid(const Problem& problem, int c, Piece<kWords> piece) {
  float largest = 0.0f;
  WAVEKV_UNROLL
  for (int i = 0; i < 2 * kWords; ++i) largest = Max(largest, Abs(piece.values[i]));
  const float to_unit = ScaleToUnit(MaxOfWarp(largest));
  float squared = 0.0f;
  WAVEKV_UNROLL
  for (int i = 0; i < 2 * kWords; ++i) {
    piece.values[i] *= to_unit;
    squared = MulAdd(piece.values[i], piece.values[i], squared);
  }
  squared = SumOfWarp(squared);
  const float scale = squared > 0.0f ? 1.0f / Sqrt(squared) : 0.0f;
  const int num_pairs = problem.layout.stride / 2;
  uint32_t* const to = problem.centroids() + int64_t{c} * num_pairs;
  WAVEKV_UNROLL
  for (int w = 0; w < kWords; ++w) {
    const int pair = LaneIndex() + kWarp * w;
    if (pair < num_pairs) {
      to[pair] =
          PackPair<DType::kFloat16>(piece.values[2 * w] * scale, piece.values[2 * w + 1] * scale);
    }
  }
  return squared;
}

// The first centroids: rows spread evenly; a zero row becomes a unit vector of its own axis. A warp
// a centroid.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(kThreads)
WAVEKV_KERNEL SeedKernel(Level level, int blocks_of_problem) {
  const Problem problem(level, blockIdx.x / blocks_of_problem);
  const int c = static_cast<int>(blockIdx.x % blocks_of_problem) * kWarps + WarpIndex();
  if (problem.num_points == 0 || c >= problem.num_clusters) return;
  const int row = SampledRow(c, problem.num_points, problem.num_clusters, Mix(problem.seed));
  const int num_pairs = problem.layout.stride / 2;
  Piece<kWords> piece =
      LoadHalves<kWords>(problem.rows() + int64_t{row} * num_pairs, num_pairs, 1.0f);
  bool zero = true;
  WAVEKV_UNROLL
  for (int i = 0; i < 2 * kWords; ++i) zero = zero && piece.values[i] == 0.0f;
  if (Ballot(!zero) == 0) {
    const int axis = c % problem.layout.dim;
    WAVEKV_UNROLL
    for (int i = 0; i < 2 * kWords; ++i) {
      piece.values[i] = 2 * (LaneIndex() + kWarp * (i / 2)) + i % 2 == axis ? 1.0f : 0.0f;
    }
  }
  StoreCentroid<kWords>(problem, c, piece);
}

// The sum of rows that members [begin, end) name, in their order.
template <int kWords>
WAVEKV_DEVICE Piece<kWords> SumMembers(const Problem& problem, const uint32_t* members,
                                       uint32_t begin, uint32_t end) {
  constexpr int kBatch = RowsInFlight<kWords>();
  const int num_pairs = problem.layout.stride / 2;
  Piece<kWords> sum = {};
  for (uint32_t i = begin; i < end; i += kBatch) {
    Piece<kWords> pieces[kBatch];
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      const uint32_t member = members[Min(i + b, end - 1)];
      const float scale = i + b < end ? problem.scales()[member] : 0.0f;
      pieces[b] =
          LoadHalves<kWords>(problem.rows() + int64_t{member} * num_pairs, num_pairs, scale);
    }
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      WAVEKV_UNROLL
      for (int j = 0; j < 2 * kWords; ++j) sum.values[j] += pieces[b].values[j];
    }
  }
  return sum;
}

// Centroids become the directions of their members' means; one without members stays. A warp a
// centroid.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(kThreads)
WAVEKV_KERNEL UpdateKernel(Level level, int blocks_of_problem) {
  const Problem problem(level, blockIdx.x / blocks_of_problem);
  const int c = static_cast<int>(blockIdx.x % blocks_of_problem) * kWarps + WarpIndex();
  if (problem.num_points == 0 || c >= problem.num_clusters) return;
  const uint32_t begin = problem.group_offsets()[c], end = problem.group_offsets()[c + 1];
  if (begin == end) return;
  StoreCentroid<kWords>(problem, c, SumMembers<kWords>(problem, problem.grouped(), begin, end));
}

// The means of the clusters that level 0 found: the points of level 1. A warp a cluster.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(kThreads)
WAVEKV_KERNEL ClusterMeansKernel(Level level, int blocks_of_problem) {
  const Problem problem(level, blockIdx.x / blocks_of_problem);
  const uint32_t c = blockIdx.x % blocks_of_problem * kWarps + WarpIndex();
  if (problem.num_points == 0 || c >= *problem.NumClustersOf(0)) return;
  const uint32_t begin = problem.OffsetsOf(0)[c], end = problem.OffsetsOf(0)[c + 1];
  const Piece<kWords> sum = SumMembers<kWords>(problem, problem.MembersOf(0), begin, end);
  const int dim = problem.layout.dim;
  WAVEKV_UNROLL
  for (int i = 0; i < 2 * kWords; ++i) {
    const int d = 2 * (LaneIndex() + kWarp * (i / 2)) + i % 2;
    if (d < dim) {
      problem.means()[int64_t{c} * dim + d] = sum.values[i] / static_cast<float>(end - begin);
    }
  }
}

// The greatest inner product so far, of one point.
struct Best {
  float score = -kInfinity;
  uint32_t centroid = 0;
};

// The nearest centroid of each point, or of each sample. A warp has 16 kTiles points, as fragments
// in registers; the block's warps share tiles of centroids, the next of which is under way.
// kSteps: stride / 16, or 0 for any: points are then read again for each 16 centroids.
template <int kSteps, int kTiles>
struct AssignShape {
  static constexpr int kRows = kWarps * 16 * kTiles;  // of a block
  static constexpr int kTileCentroids = kSteps == 0 ? 16 : 64;
  // Of shared memory, in words: the padding keeps LoadMatrices free of conflicts.
  static constexpr int Stride(int stride) { return stride / 2 + 4; }
};

template <int kSteps, int kTiles>
WAVEKV_LAUNCH_BOUNDS(kThreads, 2)
WAVEKV_KERNEL AssignKernel(Level level, int blocks_of_problem, bool sampled) {
  using Shape = AssignShape<kSteps, kTiles>;
  constexpr DType kType = DType::kFloat16;
  const Problem problem(level, blockIdx.x / blocks_of_problem);
  const int num_rows = sampled ? problem.num_samples : problem.num_points;
  const int first = static_cast<int>(blockIdx.x % blocks_of_problem) * Shape::kRows;
  if (first >= num_rows) return;
  const int num_steps = kSteps == 0 ? problem.layout.stride / 16 : kSteps;
  const int num_words = num_steps * 8;
  const int shared_stride = Shape::Stride(num_steps * 16);
  SharedMemory shared;
  uint32_t* const tiles = shared.Take<uint32_t>(int64_t{2} * Shape::kTileCentroids * shared_stride);

  const int num_centroids = problem.num_clusters;
  // The last centroid stands in for those missing to a whole tile; as the lower index wins, they
  // do not.
  const auto load_tile = [&](int tile) {
    uint32_t* const to = tiles + tile % 2 * Shape::kTileCentroids * shared_stride;
    const int pieces = num_words / 4;
    for (int i = ThreadIndex(); i < Shape::kTileCentroids * pieces; i += kThreads) {
      const int centroid = i / pieces, piece = i % pieces;
      const int from = Min(tile * Shape::kTileCentroids + centroid, num_centroids - 1);
      CopyAsync16(to + centroid * shared_stride + piece * 4,
                  problem.centroids() + int64_t{from} * num_words + piece * 4);
    }
  };
  load_tile(0);
  CommitCopies();

  const int g = LaneIndex() / 4, t = LaneIndex() % 4;
  const int first_of_warp = first + WarpIndex() * 16 * kTiles;
  const uint32_t* rows[kTiles][2];
  WAVEKV_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    WAVEKV_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int i = Min(first_of_warp + 16 * m + 8 * half + g, num_rows - 1);
      const int row =
          sampled ? SampledRow(i, problem.num_points, problem.num_samples, problem.seed) : i;
      rows[m][half] = problem.rows() + int64_t{row} * num_words + t;
    }
  }
  const auto load_points = [&](int m, int step) {
    FragmentA a;
    a.words[0] = rows[m][0][step * 8];
    a.words[1] = rows[m][1][step * 8];
    a.words[2] = rows[m][0][step * 8 + 4];
    a.words[3] = rows[m][1][step * 8 + 4];
    return a;
  };
  FragmentA points[kTiles][kSteps == 0 ? 1 : kSteps];
  if constexpr (kSteps > 0) {
    WAVEKV_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      WAVEKV_UNROLL
      for (int step = 0; step < kSteps; ++step) points[m][step] = load_points(m, step);
    }
  }

  Best best[kTiles][2];
  // Lane i gives a row of matrix i / 8: of centroids 0 to 7, both halves of the step, then of
  // centroids 8 to 15.
  const int lane_word =
      (LaneIndex() / 16 * 8 + LaneIndex() % 8) * shared_stride + LaneIndex() / 8 % 2 * 4;
  const int num_tiles = (num_centroids + Shape::kTileCentroids - 1) / Shape::kTileCentroids;
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (tile + 1 < num_tiles) load_tile(tile + 1);
    CommitCopies();
    WaitForCopies<1>();
    SyncBlock();
    const uint32_t* const from =
        tiles + tile % 2 * Shape::kTileCentroids * shared_stride + lane_word;
    const int tile_first = tile * Shape::kTileCentroids;
    const int tile_size = Min(Shape::kTileCentroids, num_centroids - tile_first);
    for (int c = 0; c < tile_size; c += 16) {
      FragmentC scores[kTiles][2] = {};
      const auto multiply = [&](const FragmentA& a, const uint32_t(&words)[4], int m) {
        MultiplyAdd<kType>(a, {{words[0], words[1]}}, scores[m][0]);
        MultiplyAdd<kType>(a, {{words[2], words[3]}}, scores[m][1]);
      };
      const uint32_t* const centroids = from + c * shared_stride;
      if constexpr (kSteps > 0) {
        uint32_t words[2][4];
        LoadMatrices<false>(centroids, words[0]);
        WAVEKV_UNROLL
        for (int step = 0; step < kSteps; ++step) {
          if (step + 1 < kSteps) {
            LoadMatrices<false>(centroids + (step + 1) * 8, words[(step + 1) % 2]);
          }
          WAVEKV_UNROLL
          for (int m = 0; m < kTiles; ++m) multiply(points[m][step], words[step % 2], m);
        }
      } else {
        for (int step = 0; step < num_steps; ++step) {
          uint32_t words[4];
          LoadMatrices<false>(centroids + step * 8, words);
          WAVEKV_UNROLL
          for (int m = 0; m < kTiles; ++m) multiply(load_points(m, step), words, m);
        }
      }
      WAVEKV_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        WAVEKV_UNROLL
        for (int i = 0; i < 8; ++i) {
          const float score = scores[m][i / 4].values[i % 4];
          Best& of_row = best[m][i % 4 / 2];
          if (score > of_row.score) {
            of_row.score = score;
            of_row.centroid = static_cast<uint32_t>(tile_first + c + i / 4 * 8 + 2 * t + i % 2);
          }
        }
      }
    }
    SyncBlock();
  }

  WAVEKV_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    WAVEKV_UNROLL
    for (int half = 0; half < 2; ++half) {
      Best mine = best[m][half];
      WAVEKV_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        const float score = ShuffleXor(mine.score, mask);
        const uint32_t centroid = ShuffleXor(mine.centroid, mask);
        if (score > mine.score || (score == mine.score && centroid < mine.centroid)) {
          mine = {score, centroid};
        }
      }
      const int i = first_of_warp + 16 * m + 8 * half + g;
      if (t == 0 && i < num_rows) problem.assignment()[i] = mine.centroid;
    }
  }
}

// Members by cluster, ascending. A block a problem: counts, scatters in any order, then sorts each
// cluster.
WAVEKV_LAUNCH_BOUNDS(kGroupThreadsMax, 1)
WAVEKV_KERNEL GroupKernel(Level level, bool sampled) {
  const Problem problem(level, blockIdx.x);
  if (problem.num_points == 0) return;
  const int num_rows = sampled ? problem.num_samples : problem.num_points;
  const int num_clusters = problem.num_clusters;
  const int num_words = (num_rows + 31) / 32;
  const int num_threads = BlockThreads();
  const Layout& layout = problem.layout;
  SharedMemory shared;
  uint32_t* const scratch = shared.Take<uint32_t>(33);
  uint32_t* const bitmap = shared.Take<uint32_t>((layout.points_max + 31) / 32);
  // Large clusters; the first number counts them.
  uint32_t* const large = shared.Take<uint32_t>(layout.points_max / kBitmapMembers + 1);
  uint32_t* const counters = layout.clusters_max > kSharedCountersMax
                                 ? problem.counters()
                                 : shared.Take<uint32_t>(layout.clusters_max);
  uint32_t* const unsorted = layout.points_max > kSharedPointsMax
                                 ? problem.unsorted()
                                 : shared.Take<uint32_t>(layout.points_max);
  const uint32_t* const assignment = problem.assignment();
  for (int c = ThreadIndex(); c < num_clusters; c += num_threads) counters[c] = 0;
  if (ThreadIndex() == 0) large[0] = 0;
  SyncBlock();
  for (int i = ThreadIndex(); i < num_rows; i += num_threads) {
    AtomicAdd(counters + assignment[i], 1u);
  }
  SyncBlock();
  uint32_t before = 0;
  for (int first = 0; first < num_clusters; first += num_threads) {
    const int c = first + ThreadIndex();
    const uint32_t size = c < num_clusters ? counters[c] : 0u;
    uint32_t total = 0;
    const uint32_t begin = before + ExclusiveSumOfBlock(size, scratch, &total);
    before += total;
    if (c < num_clusters) {
      problem.group_offsets()[c] = begin;
      counters[c] = begin;
      if (size > kBitmapMembers) large[1 + AtomicAdd(large, 1u)] = static_cast<uint32_t>(c);
    }
  }
  if (ThreadIndex() == 0) problem.group_offsets()[num_clusters] = before;
  SyncBlock();
  for (int i = ThreadIndex(); i < num_rows; i += num_threads) {
    unsorted[AtomicAdd(counters + assignment[i], 1u)] = static_cast<uint32_t>(i);
  }
  SyncBlock();

  // By now a counter is where the cluster ends.
  const auto begin_of = [&](uint32_t c) { return c == 0 ? 0u : counters[c - 1]; };
  uint32_t* const grouped = problem.grouped();
  const auto row_of = [&](uint32_t i) {
    return static_cast<uint32_t>(sampled ? SampledRow(static_cast<int>(i), problem.num_points,
                                                      problem.num_samples, problem.seed)
                                         : static_cast<int>(i));
  };
  for (int c = WarpIndex(); c < num_clusters; c += BlockWarps()) {
    const uint32_t begin = begin_of(static_cast<uint32_t>(c)), end = counters[c];
    if (end - begin > kBitmapMembers) continue;
    for (uint32_t i = begin + LaneIndex(); i < end; i += kWarp) {
      const uint32_t mine = unsorted[i];
      uint32_t rank = 0;
      for (uint32_t j = begin; j < end; ++j) rank += unsorted[j] < mine ? 1u : 0u;
      grouped[begin + rank] = row_of(mine);
    }
  }
  for (uint32_t at = 0; at < large[0]; ++at) {
    const uint32_t begin = begin_of(large[1 + at]), end = counters[large[1 + at]];
    for (int w = ThreadIndex(); w < num_words; w += num_threads) bitmap[w] = 0;
    SyncBlock();
    for (uint32_t i = begin + ThreadIndex(); i < end; i += num_threads) {
      AtomicOr(bitmap + unsorted[i] / 32, 1u << unsorted[i] % 32);
    }
    SyncBlock();
    uint32_t to = begin;
    for (int first = 0; first < num_words; first += num_threads) {
      const int w = first + ThreadIndex();
      uint32_t bits = w < num_words ? bitmap[w] : 0u;
      uint32_t total = 0;
      uint32_t next =
          to + ExclusiveSumOfBlock(static_cast<uint32_t>(PopCount(bits)), scratch, &total);
      to += total;
      for (; bits != 0; bits &= bits - 1) {
        grouped[next++] = row_of(static_cast<uint32_t>(w) * 32 + LowestBit(bits));
      }
    }
  }
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_CLUSTER_KMEANS_INL_H_
