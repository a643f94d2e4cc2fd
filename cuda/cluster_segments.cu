// What bounds it, for a problem of n tokens, K clusters and keys of d elements: the assignments,
// 2 n K d operations of tensor cores each. With the usual options there are two over half of the
// tokens and three over all; those of super-clusters are small. The other passes move 2 n d bytes
// each: two over the keys, one that writes the points, one for each update of the centroids. All
// problems of a launch go through each kernel together.
//
// Points, which are tokens or, for super-clusters, the means of clusters, are taken relative to
// their mean and kept as rows of fp16, each with a power of two of its own, since neither the
// nearest direction nor its rounding depends on a row's length. What is summed is summed in fp32,
// members in ascending order, so that results do not depend on how threads are scheduled.
#include <type_traits>

#include "cuda/cluster_kmeans-inl.h"
#include "cuda/cluster_problem-inl.h"
#include "cuda/cluster_segments.h"
#include "cuda/cluster_split-inl.h"
#include "cuda/kernel.h"
#include "storage/status_macros.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

// Brings the clusters into the order of the super-clusters' lists. A block a problem.
WAVEKV_LAUNCH_BOUNDS(kGroupThreadsMax, 1)
WAVEKV_KERNEL RegroupKernel(Level level) {
  const Problem problem(level, blockIdx.x);
  if (problem.num_points == 0) return;
  SharedMemory shared;
  uint32_t* const scratch = shared.Take<uint32_t>(33);
  const GpuClusterTask& task = problem.task;
  const auto num_clusters = static_cast<uint32_t>(problem.num_points);
  const uint32_t num_supers = *problem.NumClustersOf(1);
  const uint32_t* const order = problem.MembersOf(1);
  const uint32_t* const offsets = problem.OffsetsOf(0);
  const uint32_t* const members = problem.MembersOf(0);
  uint32_t begin = 0;
  for (uint32_t first = 0; first < num_clusters; first += BlockThreads()) {
    const uint32_t c = first + ThreadIndex();
    const uint32_t size = c < num_clusters ? offsets[order[c] + 1] - offsets[order[c]] : 0u;
    uint32_t total = 0;
    const uint32_t upto = begin + ExclusiveSumOfBlock(size, scratch, &total);
    begin += total;
    if (c < num_clusters) task.offsets[c] = upto;
  }
  for (uint32_t s = ThreadIndex(); s <= num_supers; s += BlockThreads()) {
    task.super_offsets[s] = problem.OffsetsOf(1)[s];
  }
  if (ThreadIndex() == 0) {
    task.offsets[num_clusters] = begin;
    task.counts[0] = num_clusters;
    task.counts[1] = num_supers;
  }
  SyncBlock();
  for (uint32_t c = WarpIndex(); c < num_clusters; c += BlockWarps()) {
    const uint32_t from = offsets[order[c]], to = task.offsets[c];
    const uint32_t size = task.offsets[c + 1] - to;
    for (uint32_t i = LaneIndex(); i < size; i += kWarp) task.members[to + i] = members[from + i];
  }
}

// A warp a range; those of many tokens are shared by all warps of the task.
constexpr int64_t kLongRange = 512;

WAVEKV_KERNEL ListRowsKernel(const GpuListRowsTask* tasks, int64_t blocks_of_task,
                             int64_t key_row_bytes, int64_t value_row_bytes) {
  const GpuListRowsTask& task = tasks[blockIdx.x / blocks_of_task];
  const int64_t warp = blockIdx.x % blocks_of_task * kWarps + WarpIndex();
  const int64_t num_warps = blocks_of_task * kWarps;
  const auto list = [&](const KvRange& range, int64_t first, int64_t step) {
    const int64_t begin = range.position_begin - task.position_begin;
    for (int64_t i = first + LaneIndex(); i < range.num_tokens; i += step) {
      TokenRow row;
      row.key = range.keys + i * key_row_bytes;
      row.value = range.values + i * value_row_bytes;
      task.rows[begin + (range.positions == nullptr ? i : range.positions[i])] = row;
    }
  };
  for (int64_t r = warp; r < task.num_ranges; r += num_warps) {
    if (task.ranges[r].num_tokens <= kLongRange) list(task.ranges[r], 0, kWarp);
  }
  for (int64_t first = 0; first < task.num_ranges; first += kWarp) {
    const int64_t r = first + LaneIndex();
    uint32_t is_long = Ballot(r < task.num_ranges && task.ranges[r].num_tokens > kLongRange);
    for (; is_long != 0; is_long &= is_long - 1) {
      list(task.ranges[first + LowestBit(is_long)], warp * kWarp, num_warps * kWarp);
    }
  }
}

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Calls launch(std::integral_constant<int, words of a lane>).
template <typename Launcher>
absl::Status WithWords(int stride, const Launcher& launch) {
  if (stride <= 64) return launch(std::integral_constant<int, 1>());
  if (stride <= 128) return launch(std::integral_constant<int, 2>());
  if (stride <= 256) return launch(std::integral_constant<int, 4>());
  return launch(std::integral_constant<int, 9>());
}

// What a level is launched with.
class Launches {
 public:
  // At most so many points, and clusters of them.
  Launches(const Level& level, int64_t num_problems, int64_t points_max, int64_t clusters_max,
           GpuStream stream)
      : level_(level),
        num_problems_(num_problems),
        points_max_(points_max),
        clusters_max_(clusters_max),
        stream_(stream) {}

  absl::Status Cluster(int iterations) const {
    WAVEKV_RETURN_IF_ERROR(Prepare());
    for (int i = 0; i < kSeedIterations; ++i) {
      WAVEKV_RETURN_IF_ERROR(Assign(true));
      WAVEKV_RETURN_IF_ERROR(Group(true));
      WAVEKV_RETURN_IF_ERROR(Update());
    }
    WAVEKV_RETURN_IF_ERROR(Assign(false));
    WAVEKV_RETURN_IF_ERROR(Group(false));
    for (int i = 0; i < iterations; ++i) {
      WAVEKV_RETURN_IF_ERROR(Update());
      WAVEKV_RETURN_IF_ERROR(Assign(false));
      WAVEKV_RETURN_IF_ERROR(Group(false));
    }
    return Split();
  }

  // Of the clusters that level 0 found; for points of level 1.
  absl::Status ClusterMeans(int64_t split_clusters_max) const {
    return WithWords(stride(), [&](auto words) {
      const int blocks = CeilDiv(split_clusters_max, kWarps);
      return Launch("ClusterMeans", ClusterMeansKernel<words>, Grid(blocks), kThreads, 0, stream_,
                    level_, blocks);
    });
  }
  absl::Status Regroup() const {
    return Launch("Regroup", RegroupKernel, Grid(1), ProblemThreads(kGroupThreadsMax),
                  SharedSize().Add<uint32_t>(33).bytes(), stream_, level_);
  }

 private:
  int stride() const { return level_.layout.stride; }
  GridShape Grid(int blocks_of_problem) const {
    return {static_cast<unsigned>(num_problems_ * blocks_of_problem)};
  }

  // Of a block that has a whole problem.
  int ProblemThreads(int most) const {
    return points_max_ <= kSmallProblem ? kSmallProblemThreads : most;
  }

  absl::Status Prepare() const {
    return WithWords(stride(), [&](auto words) {
      const int num_chunks = CeilDiv(points_max_, kChunkRows);
      const int64_t shared =
          SharedSize().Add<float>(int64_t{kWarps} * stride()).Add<float>(33).bytes();
      WAVEKV_RETURN_IF_ERROR(Launch("Sum", SumKernel<words>, Grid(num_chunks), kThreads, shared,
                                    stream_, level_, num_chunks));
      WAVEKV_RETURN_IF_ERROR(Launch("Mean", MeanKernel, Grid(1), kThreads,
                                    SharedSize().Add<float>(33).bytes(), stream_, level_));
      const int row_blocks = CeilDiv(points_max_, kWarps * kRowsOfWarp);
      WAVEKV_RETURN_IF_ERROR(Launch("Centre", CentreKernel<words>, Grid(row_blocks), kThreads, 0,
                                    stream_, level_, row_blocks));
      const int blocks = CeilDiv(clusters_max_, kWarps);
      return Launch("Seed", SeedKernel<words>, Grid(blocks), kThreads, 0, stream_, level_, blocks);
    });
  }

  template <int kSteps, int kTiles>
  absl::Status LaunchAssign(bool sampled) const {
    using Shape = AssignShape<kSteps, kTiles>;
    const int64_t samples_max = clusters_max_ * kSamplesPerCentroid;
    const int64_t rows_max = sampled && samples_max < points_max_ ? samples_max : points_max_;
    const int blocks = CeilDiv(rows_max, Shape::kRows);
    const int64_t shared =
        SharedSize()
            .Add<uint32_t>(int64_t{2} * Shape::kTileCentroids * Shape::Stride(stride()))
            .bytes();
    return Launch("Assign", AssignKernel<kSteps, kTiles>, Grid(blocks), kThreads, shared, stream_,
                  level_, blocks, sampled);
  }
  absl::Status Assign(bool sampled) const {
    switch (stride()) {
      case 64:
        return LaunchAssign<4, 2>(sampled);
      case 80:
        return LaunchAssign<5, 2>(sampled);
      case 96:
        return LaunchAssign<6, 2>(sampled);
      case 128:
        return LaunchAssign<8, 2>(sampled);
      case 192:
        return LaunchAssign<12, 1>(sampled);
      case 256:
        return LaunchAssign<16, 1>(sampled);
      default:
        return LaunchAssign<0, 1>(sampled);
    }
  }

  absl::Status Group(bool sampled) const {
    const Layout& layout = level_.layout;
    const bool counters = layout.clusters_max <= kSharedCountersMax;
    const bool points = layout.points_max <= kSharedPointsMax;
    const int64_t shared = SharedSize()
                               .Add<uint32_t>(33)
                               .Add<uint32_t>((layout.points_max + 31) / 32)
                               .Add<uint32_t>(layout.points_max / kBitmapMembers + 1)
                               .Add<uint32_t>(counters ? layout.clusters_max : 0)
                               .Add<uint32_t>(points ? layout.points_max : 0)
                               .bytes();
    return Launch("Group", GroupKernel, Grid(1), ProblemThreads(kGroupThreadsMax), shared, stream_,
                  level_, sampled);
  }
  absl::Status Update() const {
    return WithWords(stride(), [&](auto words) {
      const int blocks = CeilDiv(clusters_max_, kWarps);
      return Launch("Update", UpdateKernel<words>, Grid(blocks), kThreads, 0, stream_, level_,
                    blocks);
    });
  }
  absl::Status Split() const {
    return WithWords(stride(), [&](auto words) {
      const int num_threads = ProblemThreads(SplitThreads<words>());
      const int64_t words_max = 2 * ((level_.layout.points_max + 31) / 32);
      const int64_t sums = int64_t{num_threads / kWarp} * stride();
      const int64_t shared = SharedSize()
                                 .Add<uint64_t>(33)
                                 .Add<uint32_t>(1)
                                 .Add<uint32_t>(words_max < sums ? sums : words_max)
                                 .bytes();
      return Launch("Split", SplitKernel<words>, Grid(1), num_threads, shared, stream_, level_);
    });
  }

  const Level& level_;
  const int64_t num_problems_;
  const int64_t points_max_;
  const int64_t clusters_max_;
  const GpuStream stream_;
};

}  // namespace

absl::Status ListRows(GpuTasks<GpuListRowsTask> tasks, const TaskBounds& bounds, GpuStream stream) {
  constexpr int64_t kTokensOfBlock = 1024;
  const int64_t blocks = bounds.num_items / kTokensOfBlock + 1;
  const int64_t element_bytes = DTypeBytes(bounds.shape.dtype);
  return Launch("ListRows", ListRowsKernel, {static_cast<unsigned>(tasks.count * blocks)}, kThreads,
                0, stream, tasks.tasks, blocks, bounds.shape.head_dim_k * element_bytes,
                bounds.shape.head_dim_v * element_bytes);
}

int64_t ClusterScratchBytes(const TaskBounds& bounds, const GpuClusteringOptions& options) {
  return MakeLayout(bounds, options).bytes;
}

absl::Status ClusterSegments(GpuTasks<GpuClusterTask> tasks, const TaskBounds& bounds,
                             const GpuClusteringOptions& options, std::byte* scratch,
                             GpuStream stream) {
  if (tasks.count == 0 || bounds.num_items == 0) return absl::OkStatus();
  Level level = {};
  level.tasks = tasks.tasks;
  level.scratch = scratch;
  level.layout = MakeLayout(bounds, options);
  level.dtype = bounds.shape.dtype;
  level.number = 0;
  level.points_per_cluster = options.tokens_per_cluster;
  level.cluster_points_max = static_cast<uint32_t>(options.cluster_tokens_max);
  level.seed = options.seed;
  const int64_t split_clusters_max =
      NumSplitClusters(bounds.num_items, options.tokens_per_cluster, options.cluster_tokens_max);
  const Launches of_tokens(level, tasks.count, bounds.num_items,
                           NumClusters(bounds.num_items, options.tokens_per_cluster), stream);
  WAVEKV_RETURN_IF_ERROR(of_tokens.Cluster(options.kmeans_iterations));
  WAVEKV_RETURN_IF_ERROR(of_tokens.ClusterMeans(split_clusters_max));

  Level supers = level;
  supers.dtype = DType::kFloat32;
  supers.number = 1;
  supers.points_per_cluster = options.clusters_per_super;
  supers.cluster_points_max = static_cast<uint32_t>(2 * options.clusters_per_super);
  const Launches of_clusters(supers, tasks.count, split_clusters_max,
                             NumClusters(split_clusters_max, options.clusters_per_super), stream);
  // Few points: as many passes as help cost next to nothing.
  WAVEKV_RETURN_IF_ERROR(of_clusters.Cluster(kSuperIterations));
  return of_clusters.Regroup();
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
