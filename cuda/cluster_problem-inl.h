// What the kernels of cluster_segments.cu know of a problem, and rows as a warp holds them.
#ifndef WAVEKV_CUDA_CLUSTER_PROBLEM_INL_H_
#define WAVEKV_CUDA_CLUSTER_PROBLEM_INL_H_

#include "cuda/cluster_segments.h"
#include "cuda/kernel.h"
#include "cuda/mma.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kGroupThreadsMax = 1024;  // of a block that has a whole problem

constexpr int kChunkRows = 128;  // whose sum is a partial sum of the mean
constexpr int kRowsOfWarp = 8;   // of one block's work on rows, each of its warps takes so many
constexpr int kSeedIterations = 2;
constexpr int kSamplesPerCentroid = 8;
constexpr int kSuperIterations = 8;
constexpr int kBisectPasses = 4;
constexpr int kSmallestShare = 8;  // a half holds at least one in so many
// Larger clusters are cut by a whole block, smaller ones by a warp.
constexpr uint32_t kBlockRun = 256;
// More clusters are counted, or more points sorted, in global memory.
constexpr int64_t kSharedCountersMax = 8192;
constexpr int64_t kSharedPointsMax = 8192;
// Blocks that have a whole problem are small for as many points or fewer.
constexpr int64_t kSmallProblem = 2048;
constexpr int kSmallProblemThreads = 128;
// More members of a cluster are sorted by a bitmap of all points.
constexpr uint32_t kBitmapMembers = 256;
// Sums of keys are of keys times this, so that those of 2^16 keys do not overflow.
constexpr float kSumScale = 1.0f / 131072.0f;

// Where a problem's arrays begin in its scratch, in bytes.
struct Layout {
  int64_t rows;             // fp16 [points_max, stride], beyond dim 0
  int64_t scales;           // float [points_max]: rows are to be multiplied by them
  int64_t centroids;        // fp16 [clusters_max, stride], of unit length
  int64_t partial_sums;     // float [chunks_max, stride]
  int64_t partial_max;      // float [chunks_max]
  int64_t mean;             // float [stride + 1]: scaled; the last one is the scale
  int64_t assignment;       // uint32 [points_max]: clusters; then which half of a cluster
  int64_t unsorted;         // uint32 [points_max]
  int64_t grouped;          // uint32 [points_max]: members by cluster
  int64_t group_offsets;    // uint32 [clusters_max + 1]
  int64_t counters;         // uint32 [clusters_max], where shared memory has no room for them
  int64_t runs[2];          // uint32 [points_max + 1]
  int64_t splits;           // uint32 [points_max + 1]
  int64_t scores;           // float [points_max]
  int64_t means;            // float [supers_points_max, dim]: of clusters
  int64_t offsets[2];       // uint32 [points_max + 1], of clusters and of super-clusters
  int64_t members[2];       // uint32 [points_max]
  int64_t num_clusters[2];  // uint32 [1]
  int64_t bytes;
  int64_t points_max;
  int64_t clusters_max;
  int dim;
  int stride;  // elements
};

// Elements from one row to the next: a multiple of 16, one of those AssignKernel is compiled for.
int RowStride(int dim) {
  for (const int stride : {64, 80, 96, 128, 192, 256}) {
    if (dim <= stride) return stride;
  }
  return (dim + 15) / 16 * 16;
}

int64_t NumClusters(int64_t num_points, int points_per_cluster) {
  const int64_t rounded = (num_points + points_per_cluster / 2) / points_per_cluster;
  return rounded < 1 ? 1 : rounded;
}

// The most clusters that splitting leaves: a cut makes no cluster below the smallest share of one
// that is too large.
int64_t NumSplitClusters(int64_t num_points, int points_per_cluster, int cluster_points_max) {
  const int64_t share = (int64_t{cluster_points_max} + 1) / kSmallestShare;
  const int64_t most =
      NumClusters(num_points, points_per_cluster) + num_points / (share < 1 ? 1 : share);
  return most < num_points ? most : num_points;
}

Layout MakeLayout(const TaskBounds& bounds, const GpuClusteringOptions& options) {
  Layout layout = {};
  const int64_t points = bounds.num_items < 1 ? 1 : bounds.num_items;
  const int64_t super_points =
      NumSplitClusters(points, options.tokens_per_cluster, options.cluster_tokens_max);
  const int64_t of_tokens = NumClusters(points, options.tokens_per_cluster);
  const int64_t of_clusters = NumClusters(super_points, options.clusters_per_super);
  layout.points_max = points;
  layout.clusters_max = of_tokens < of_clusters ? of_clusters : of_tokens;
  layout.dim = bounds.shape.head_dim_k;
  layout.stride = RowStride(layout.dim);
  const int64_t chunks = (points + kChunkRows - 1) / kChunkRows;
  const auto take = [&](int64_t count, int64_t element_bytes) {
    const int64_t begin = layout.bytes;
    layout.bytes += (count * element_bytes + 255) / 256 * 256;
    return begin;
  };
  layout.rows = take(points * layout.stride, 2);
  layout.scales = take(points, 4);
  layout.centroids = take(layout.clusters_max * layout.stride, 2);
  layout.partial_sums = take(chunks * layout.stride, 4);
  layout.partial_max = take(chunks, 4);
  layout.mean = take(layout.stride + 1, 4);
  layout.assignment = take(points, 4);
  layout.unsorted = take(points, 4);
  layout.grouped = take(points, 4);
  layout.group_offsets = take(layout.clusters_max + 1, 4);
  layout.counters = take(layout.clusters_max > kSharedCountersMax ? layout.clusters_max : 0, 4);
  layout.runs[0] = take(points + 1, 4);
  layout.runs[1] = take(points + 1, 4);
  layout.splits = take(points + 1, 4);
  layout.scores = take(points, 4);
  layout.means = take(super_points * layout.dim, 4);
  for (int level = 0; level < 2; ++level) {
    layout.offsets[level] = take(points + 1, 4);
    layout.members[level] = take(points, 4);
    layout.num_clusters[level] = take(1, 4);
  }
  return layout;
}

// What all kernels of one level know: 0 clusters tokens, 1 clusters clusters.
struct Level {
  const GpuClusterTask* tasks;
  std::byte* scratch;
  Layout layout;
  DType dtype;  // of keys
  int number;
  int points_per_cluster;
  uint32_t cluster_points_max;
  uint64_t seed;
};

// The finaliser of SplitMix64: neighbouring inputs give unrelated outputs.
WAVEKV_DEVICE uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// One of each of num_samples equal stretches. Products are below 2^32: a segment has at most 2^16
// points.
WAVEKV_DEVICE int SampledRow(int i, int num_points, int num_samples, uint64_t seed) {
  if (num_samples == num_points) return i;
  const auto points = static_cast<uint32_t>(num_points);
  const auto samples = static_cast<uint32_t>(num_samples);
  const auto sample = static_cast<uint32_t>(i);
  const uint32_t begin = sample * points / samples;
  const uint32_t end = (sample + 1) * points / samples;
  const auto random = static_cast<uint32_t>(Mix(seed ^ Mix(sample)) >> 32);
  return static_cast<int>(begin + random % (end - begin));
}

// One problem's part of a level.
class Problem {
 public:
  WAVEKV_DEVICE Problem(const Level& level, int64_t index)
      : layout(level.layout), task(level.tasks[index]), seed(level.seed), number_(level.number) {
    scratch_ = level.scratch + index * level.layout.bytes;
    num_points = static_cast<int>(task.num_tokens);
    if (level.number == 1 && num_points > 0) num_points = static_cast<int>(*NumClustersOf(0));
    const int rounded = (num_points + level.points_per_cluster / 2) / level.points_per_cluster;
    num_clusters = Max(rounded, 1);
    num_samples =
        static_cast<int>(Min(int64_t{num_points}, int64_t{num_clusters} * kSamplesPerCentroid));
  }

  WAVEKV_DEVICE uint32_t* rows() const { return At<uint32_t>(layout.rows); }
  WAVEKV_DEVICE float* scales() const { return At<float>(layout.scales); }
  WAVEKV_DEVICE uint32_t* centroids() const { return At<uint32_t>(layout.centroids); }
  WAVEKV_DEVICE float* partial_sums() const { return At<float>(layout.partial_sums); }
  WAVEKV_DEVICE float* partial_max() const { return At<float>(layout.partial_max); }
  WAVEKV_DEVICE float* mean() const { return At<float>(layout.mean); }
  WAVEKV_DEVICE uint32_t* assignment() const { return At<uint32_t>(layout.assignment); }
  WAVEKV_DEVICE uint32_t* unsorted() const { return At<uint32_t>(layout.unsorted); }
  WAVEKV_DEVICE uint32_t* grouped() const { return At<uint32_t>(layout.grouped); }
  WAVEKV_DEVICE uint32_t* group_offsets() const { return At<uint32_t>(layout.group_offsets); }
  WAVEKV_DEVICE uint32_t* counters() const { return At<uint32_t>(layout.counters); }
  WAVEKV_DEVICE uint32_t* runs(int which) const {
    return At<uint32_t>(which == 0 ? layout.runs[0] : layout.runs[1]);
  }
  WAVEKV_DEVICE uint32_t* splits() const { return At<uint32_t>(layout.splits); }
  WAVEKV_DEVICE float* scores() const { return At<float>(layout.scores); }
  WAVEKV_DEVICE float* means() const { return At<float>(layout.means); }
  // Of level `number`.
  WAVEKV_DEVICE uint32_t* OffsetsOf(int number) const {
    return At<uint32_t>(number == 0 ? layout.offsets[0] : layout.offsets[1]);
  }
  WAVEKV_DEVICE uint32_t* MembersOf(int number) const {
    return At<uint32_t>(number == 0 ? layout.members[0] : layout.members[1]);
  }
  WAVEKV_DEVICE uint32_t* NumClustersOf(int number) const {
    return At<uint32_t>(number == 0 ? layout.num_clusters[0] : layout.num_clusters[1]);
  }

  // The point's row before it is centred: fp32 or, of tokens, the keys' own type.
  WAVEKV_DEVICE const std::byte* SourceRow(int point) const {
    if (number_ == 0) return task.rows[point].key;
    return reinterpret_cast<const std::byte*>(means() + int64_t{point} * layout.dim);
  }

  const Layout& layout;
  const GpuClusterTask& task;
  const uint64_t seed;
  int num_points;
  int num_clusters;  // that are aimed at
  int num_samples;

 private:
  template <typename T>
  WAVEKV_DEVICE T* At(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }

  const int number_;
  std::byte* scratch_;
};

// The power of two in [2^-126, 2^126] that takes x to [1, 2) or near it.
WAVEKV_DEVICE float ScaleToUnit(float x) {
  const int exponent = static_cast<int>(FloatBits(x) >> 23 & 0xffu);
  return FloatFromBits(static_cast<uint32_t>(254 - Max(Min(exponent, 253), 1)) << 23);
}

// A warp holds a row as pairs of elements: lane l has pair l + 32 w as numbers 2 w and 2 w + 1.
template <int kWords>
struct Piece {
  float values[2 * kWords];
};

template <int kWords>
WAVEKV_DEVICE Piece<kWords> LoadHalves(const uint32_t* row, int num_pairs, float scale) {
  Piece<kWords> piece;
  WAVEKV_UNROLL
  for (int w = 0; w < kWords; ++w) {
    const int pair = LaneIndex() + kWarp * w;
    const uint32_t word = pair < num_pairs ? row[pair] : 0u;
    piece.values[2 * w] = scale * HalfToFloat(static_cast<uint16_t>(word));
    piece.values[2 * w + 1] = scale * HalfToFloat(static_cast<uint16_t>(word >> 16));
  }
  return piece;
}

// Rows first to first + kBatch - 1 as they come, the last one in place of those that are missing.
template <int kWords, int kBatch>
WAVEKV_DEVICE void LoadSources(const Problem& problem, DType dtype, int first,
                               Piece<kWords> (&pieces)[kBatch]) {
  const std::byte* rows[kBatch];
  WAVEKV_UNROLL
  for (int b = 0; b < kBatch; ++b) {
    rows[b] = problem.SourceRow(Min(first + b, problem.num_points - 1));
  }
  const int num_pairs = problem.layout.dim / 2;
  if (dtype == DType::kFloat32) {
    WAVEKV_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      WAVEKV_UNROLL
      for (int i = 0; i < 2 * kWords; ++i) {
        const int pair = LaneIndex() + kWarp * (i / 2);
        pieces[b].values[i] =
            pair < num_pairs ? reinterpret_cast<const float*>(rows[b])[2 * pair + i % 2] : 0.0f;
      }
    }
    return;
  }
  uint32_t words[kBatch][kWords];
  WAVEKV_UNROLL
  for (int b = 0; b < kBatch; ++b) {
    WAVEKV_UNROLL
    for (int w = 0; w < kWords; ++w) {
      const int pair = LaneIndex() + kWarp * w;
      words[b][w] = pair < num_pairs ? reinterpret_cast<const uint32_t*>(rows[b])[pair] : 0u;
    }
  }
  WAVEKV_UNROLL
  for (int b = 0; b < kBatch; ++b) {
    WAVEKV_UNROLL
    for (int i = 0; i < 2 * kWords; ++i) {
      const auto bits = static_cast<uint16_t>(words[b][i / 2] >> (16 * (i % 2)));
      pieces[b].values[i] = dtype == DType::kFloat16 ? HalfToFloat(bits) : BFloatToFloat(bits);
    }
  }
}

template <int kWords>
constexpr int RowsInFlight() {
  return kWords <= 2 ? 8 : kWords <= 4 ? 4 : 2;
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_CLUSTER_PROBLEM_INL_H_
