// Scores a segment's centroids, or its super-clusters', for all heads of a GQA group.
//
// Bound by memory: a cluster is head_dim_k / 2 bytes of 4-bit integers, 12 bytes of statistics and
// 8 written bytes per head (76 + 32 at head_dim 128 and 4 heads); tensor cores keep arithmetic
// below that (multiply_means.h). A block has some clusters of one task. Clusters are stored
// relative to their super-clusters, these to the segment: products with the super-clusters that a
// block's clusters belong to are taken once and added.
#include <algorithm>

#include "cuda/kernel.h"
#include "cuda/multiply_means.h"
#include "cuda/score_clusters.h"
#include "storage/statistics_row.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;
constexpr int kSuperThreads = 64;
constexpr int kClusters = 256;  // of a block, at most
constexpr int kSupers = 64;     // of a block

struct Scores {
  float log_mass;
  float rank_score;
};

WAVEKV_DEVICE Scores ScoreRow(float logit, float log_size, float variance, MassEstimate mass,
                              Ranking ranking) {
  const float bound = logit + log_size;
  const float second_order = bound + Min(0.5f * variance, kLogMassGainMax);
  return {mass == MassEstimate::kSecondOrder ? second_order : bound,
          ranking == Ranking::kCentroid ? logit : second_order + Sqrt(variance)};
}

// The last super-cluster that begins at the cluster or before: that of the cluster.
WAVEKV_DEVICE int64_t SuperOf(const ClusterIndex& index, int64_t cluster) {
  int64_t low = 0, high = index.num_supers;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (index.super_offsets[middle] <= cluster) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

WAVEKV_DEVICE float LogSuperSize(const ClusterIndex& index, int64_t super) {
  const uint32_t first = index.super_offsets[super], last = index.super_offsets[super + 1];
  return Log(static_cast<float>(index.offsets[last] - index.offsets[first]));
}

// Of the clusters of a block, those that begin a run of a super-cluster's.
struct SuperRuns {
  int* slots;        // [clusters]: which run each belongs to
  int* supers;       // [runs]
  float* log_sizes;  // [runs], of the whole super-cluster
  bool* opened;      // [runs]
  float* logits;     // [runs, kTileHeads * num_tiles], with the segment's mean
};

// masks: [kClusters / 32]. Returns how many runs there are.
WAVEKV_DEVICE int FindRuns(const ScoreClustersTask& task, int64_t first, int count, uint32_t* masks,
                           const SuperRuns& runs) {
  const ClusterIndex& index = *task.index;
  for (int i = ThreadIndex(); i < kClusters; i += BlockThreads()) {
    const int64_t super = i < count ? SuperOf(index, first + i) : 0;
    const bool begins = i < count && (i == 0 || index.super_offsets[super] == first + i);
    const uint32_t mask = Ballot(begins);
    if (LaneIndex() == 0) masks[i / kWarp] = mask;
    if (i < count) runs.slots[i] = static_cast<int>(super);
  }
  SyncBlock();
  int num_runs = 0;
  for (int m = 0; m < kClusters / kWarp; ++m) {
    const int i = m * kWarp + LaneIndex();
    if (i % BlockThreads() == ThreadIndex() && i < count) {
      const uint32_t mask = masks[m];
      const int slot = num_runs + PopCount(mask << (kWarp - 1 - LaneIndex())) - 1;
      if ((mask >> LaneIndex() & 1) != 0) {
        const int super = runs.slots[i];
        runs.supers[slot] = super;
        runs.log_sizes[slot] = LogSuperSize(index, super);
        runs.opened[slot] = task.super_zones == nullptr || task.super_zones[super] == Zone::kSketch;
      }
      runs.slots[i] = slot;
    }
    num_runs += PopCount(masks[m]);
  }
  return num_runs;
}

template <StatisticsFormat kFormat>
WAVEKV_DEVICE void ScoreRuns(const ClusterIndex& index, const Queries& queries, int num_runs,
                             const uint64_t* fragments, const SuperRuns& runs) {
  const int64_t row_bytes = index.super_centroids.row_bytes;
  for (int tile = WarpIndex() * kTile; tile < num_runs; tile += BlockWarps() * kTile) {
    const std::byte* rows[kLaneRows];
    float scales[kLaneRows];
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const int slot = tile + 8 * r + LaneIndex() / 4;
      const bool wanted = slot < num_runs && runs.opened[slot];
      const int super = wanted ? runs.supers[slot] : 0;
      rows[r] = wanted ? index.super_centroids.rows + super * row_bytes : nullptr;
      scales[r] = wanted && kFormat != StatisticsFormat::kFloat32
                      ? index.super_centroids.scales[super]
                      : 1.0f;
    }
    float products[kLaneRows][2] = {};
    Multiply<kFormat>(rows, scales, queries, fragments, products);
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const int slot = tile + 8 * r + LaneIndex() / 4;
      WAVEKV_UNROLL
      for (int n = 0; n < 2; ++n) {
        const int head = n * kTileHeads + LaneIndex() % 4;
        if (rows[r] == nullptr || head >= queries.count) continue;
        runs.logits[slot * queries.num_tiles * kTileHeads + head] =
            products[r][n] + queries.heads[head].mean_logit;
      }
    }
  }
}

// Scores the warp's clusters from number `tile` of the block's `count` on, the first of which is
// the index's cluster `first`.
template <StatisticsFormat kFormat>
WAVEKV_DEVICE void ScoreTile(const ScoreClustersTask& task, const Queries& queries, int first_head,
                             int64_t first, int tile, int count, const uint64_t* fragments,
                             const SuperRuns& runs) {
  const ClusterIndex& index = *task.index;
  const int64_t row_bytes = index.centroids.row_bytes;
  const std::byte* rows[kLaneRows];
  float scales[kLaneRows], log_sizes[kLaneRows], key_spreads[kLaneRows];
  int slots[kLaneRows];
  bool any = false;
  WAVEKV_UNROLL
  for (int r = 0; r < kLaneRows; ++r) {
    const int i = tile + 8 * r + LaneIndex() / 4;
    slots[r] = i < count ? runs.slots[i] : -1;
    const bool opened = i < count && runs.opened[slots[r]];
    any |= opened;
    rows[r] = opened ? index.centroids.rows + (first + i) * row_bytes : nullptr;
    scales[r] =
        opened && kFormat != StatisticsFormat::kFloat32 ? index.centroids.scales[first + i] : 1.0f;
    log_sizes[r] = i < count ? index.log_sizes[first + i] : 0.0f;
    key_spreads[r] = opened ? index.key_spreads[first + i] : 0.0f;
  }
  float products[kLaneRows][2] = {};
  if (Ballot(any) != 0) Multiply<kFormat>(rows, scales, queries, fragments, products);
  WAVEKV_UNROLL
  for (int n = 0; n < 2; ++n) {
    const int head = n * kTileHeads + LaneIndex() % 4;
    if (head >= queries.count) continue;
    const int64_t query = first_head + head;
    float* const log_masses = task.log_masses + query * task.stride + first + tile;
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const int i = 8 * r + LaneIndex() / 4, slot = slots[r];
      if (slot < 0) continue;
      Scores scores;
      if (rows[r] != nullptr) {
        const float logit =
            products[r][n] + runs.logits[slot * queries.num_tiles * kTileHeads + head];
        scores = ScoreRow(logit, log_sizes[r], queries.heads[head].spread * key_spreads[r],
                          task.mass, task.ranking);
      } else {
        const float log_mass = task.super_log_masses[query * task.super_stride + runs.supers[slot]];
        scores = {log_mass + (log_sizes[r] - runs.log_sizes[slot]), -kInfinity};
      }
      log_masses[i] = scores.log_mass;
      if (task.rank_scores == nullptr) continue;
      task.rank_scores[query * task.stride + first + tile + i] = scores.rank_score;
    }
  }
}

template <StatisticsFormat kFormat>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads, 4)
    ScoreClustersKernel(const ScoreClustersTask* tasks, int dim, int heads_of_pass, int clusters) {
  constexpr StatisticsFormat kSuperFormat = SuperFormat(kFormat);
  const ScoreClustersTask& task = tasks[blockIdx.x];
  if (task.num_queries == 0) return;
  const ClusterIndex& index = *task.index;
  const int64_t first = int64_t{blockIdx.y} * clusters;
  if (first >= index.num_clusters) return;
  const int count = static_cast<int>(Min<int64_t>(clusters, index.num_clusters - first));

  const int num_tiles = heads_of_pass / kTileHeads;
  SharedMemory shared;
  uint64_t* const fragments = shared.Take<uint64_t>(FragmentsOf(kFormat, dim, num_tiles));
  uint64_t* super_fragments = fragments;
  if constexpr (kFormat == StatisticsFormat::kInt4) {
    super_fragments = shared.Take<uint64_t>(FragmentsOf(kSuperFormat, dim, num_tiles));
  }
  HeadNumbers* const heads = shared.Take<HeadNumbers>(kHeads);
  uint32_t* const masks = shared.Take<uint32_t>(kClusters / kWarp);
  SuperRuns runs;
  runs.slots = shared.Take<int>(clusters);
  runs.supers = shared.Take<int>(clusters);
  runs.log_sizes = shared.Take<float>(clusters);
  runs.opened = shared.Take<bool>(clusters);
  runs.logits = shared.Take<float>(int64_t{clusters} * heads_of_pass);

  const int num_runs = FindRuns(task, first, count, masks, runs);
  for (int first_head = 0; first_head < task.num_queries; first_head += kHeads) {
    const Queries queries = QueriesOf(task.queries, task.num_queries, first_head, dim, heads);
    SyncBlock();  // the last pass is over
    MeasureHeads(queries, index.mean_key, heads);
    SyncBlock();
    if constexpr (kFormat != StatisticsFormat::kFloat32) {
      SliceQueries<kFormat>(queries, fragments);
      if constexpr (kFormat != kSuperFormat) SliceQueries<kSuperFormat>(queries, super_fragments);
      SyncBlock();
    }
    ScoreRuns<kSuperFormat>(index, queries, num_runs, super_fragments, runs);
    SyncBlock();
    for (int tile = WarpIndex() * kTile; tile < count; tile += BlockWarps() * kTile) {
      ScoreTile<kFormat>(task, queries, first_head, first, tile, count, fragments, runs);
    }
  }
}

template <StatisticsFormat kFormat>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kSuperThreads)
    ScoreSupersKernel(const ScoreSupersTask* tasks, int dim, int heads_of_pass) {
  const ScoreSupersTask& task = tasks[blockIdx.x];
  if (task.num_queries == 0) return;
  const ClusterIndex& index = *task.index;
  const int64_t first = int64_t{blockIdx.y} * kSupers;
  if (first >= index.num_supers) return;
  const int count = static_cast<int>(Min<int64_t>(kSupers, index.num_supers - first));

  SharedMemory shared;
  uint64_t* const fragments =
      shared.Take<uint64_t>(FragmentsOf(kFormat, dim, heads_of_pass / kTileHeads));
  HeadNumbers* const heads = shared.Take<HeadNumbers>(kHeads);

  for (int first_head = 0; first_head < task.num_queries; first_head += kHeads) {
    const Queries queries = QueriesOf(task.queries, task.num_queries, first_head, dim, heads);
    SyncBlock();  // the last pass is over
    MeasureHeads(queries, index.mean_key, heads);
    SyncBlock();
    if constexpr (kFormat != StatisticsFormat::kFloat32) {
      SliceQueries<kFormat>(queries, fragments);
      SyncBlock();
    }
    const int tile = WarpIndex() * kTile;
    if (tile >= count) continue;
    const std::byte* rows[kLaneRows];
    float scales[kLaneRows];
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      const int i = tile + 8 * r + LaneIndex() / 4;
      const int64_t super = first + i;
      rows[r] = i < count ? index.super_centroids.rows + super * index.super_centroids.row_bytes
                          : nullptr;
      scales[r] = i < count && kFormat != StatisticsFormat::kFloat32
                      ? index.super_centroids.scales[super]
                      : 1.0f;
    }
    float products[kLaneRows][2] = {};
    Multiply<kFormat>(rows, scales, queries, fragments, products);
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneRows; ++r) {
      if (rows[r] == nullptr) continue;
      const int64_t super = first + tile + 8 * r + LaneIndex() / 4;
      const float log_size = LogSuperSize(index, super);
      WAVEKV_UNROLL
      for (int n = 0; n < 2; ++n) {
        const int head = n * kTileHeads + LaneIndex() % 4;
        if (head >= queries.count) continue;
        const HeadNumbers& numbers = heads[head];
        const Scores scores =
            ScoreRow(products[r][n] + numbers.mean_logit, log_size,
                     numbers.spread * index.super_key_spreads[super], task.mass, task.ranking);
        const int64_t at = int64_t{first_head + head} * task.stride + super;
        task.log_masses[at] = scores.log_mass;
        task.rank_scores[at] = scores.rank_score;
      }
    }
  }
}

int HeadsOfPass(const TaskBounds& bounds) {
  return (std::min(kHeads, bounds.num_queries) + kTileHeads - 1) / kTileHeads * kTileHeads;
}

template <StatisticsFormat kFormat>
absl::Status LaunchClusters(GpuTasks<ScoreClustersTask> tasks, const TaskBounds& bounds,
                            GpuStream stream) {
  // Smaller blocks where there are not enough to fill a GPU.
  constexpr int64_t kBlocks = 600;
  const auto blocks = [&](int clusters) { return (bounds.num_items + clusters - 1) / clusters; };
  const int clusters = tasks.count * blocks(kClusters) < kBlocks ? kClusters / 2 : kClusters;
  const int dim = bounds.shape.head_dim_k, heads = HeadsOfPass(bounds);
  SharedSize size;
  size.Add<uint64_t>(FragmentsOf(kFormat, dim, heads / kTileHeads));
  if constexpr (kFormat == StatisticsFormat::kInt4) {
    size.Add<uint64_t>(FragmentsOf(SuperFormat(kFormat), dim, heads / kTileHeads));
  }
  size.Add<HeadNumbers>(kHeads).Add<uint32_t>(kClusters / kWarp);
  size.Add<int>(clusters).Add<int>(clusters).Add<float>(clusters).Add<bool>(clusters);
  size.Add<float>(int64_t{clusters} * heads);
  const GridShape grid = {static_cast<unsigned>(tasks.count),
                          static_cast<unsigned>(blocks(clusters))};
  return Launch("ScoreClusters", ScoreClustersKernel<kFormat>, grid, kThreads, size.bytes(), stream,
                tasks.tasks, dim, heads, clusters);
}

template <StatisticsFormat kFormat>
absl::Status LaunchSupers(GpuTasks<ScoreSupersTask> tasks, const TaskBounds& bounds,
                          GpuStream stream) {
  const int dim = bounds.shape.head_dim_k, heads = HeadsOfPass(bounds);
  SharedSize size;
  size.Add<uint64_t>(FragmentsOf(kFormat, dim, heads / kTileHeads));
  size.Add<HeadNumbers>(kHeads);
  const GridShape grid = {static_cast<unsigned>(tasks.count),
                          static_cast<unsigned>((bounds.num_items + kSupers - 1) / kSupers)};
  return Launch("ScoreSupers", ScoreSupersKernel<kFormat>, grid, kSuperThreads, size.bytes(),
                stream, tasks.tasks, dim, heads);
}

}  // namespace

absl::Status ScoreClusters(GpuTasks<ScoreClustersTask> tasks, const TaskBounds& bounds,
                           GpuStream stream) {
  if (bounds.num_queries == 0) return absl::OkStatus();
  switch (bounds.statistics) {
    case StatisticsFormat::kFloat32:
      return LaunchClusters<StatisticsFormat::kFloat32>(tasks, bounds, stream);
    case StatisticsFormat::kInt8:
      return LaunchClusters<StatisticsFormat::kInt8>(tasks, bounds, stream);
    case StatisticsFormat::kInt4:
      break;
  }
  return LaunchClusters<StatisticsFormat::kInt4>(tasks, bounds, stream);
}

absl::Status ScoreSupers(GpuTasks<ScoreSupersTask> tasks, const TaskBounds& bounds,
                         GpuStream stream) {
  if (bounds.num_queries == 0) return absl::OkStatus();
  if (SuperFormat(bounds.statistics) == StatisticsFormat::kFloat32) {
    return LaunchSupers<StatisticsFormat::kFloat32>(tasks, bounds, stream);
  }
  return LaunchSupers<StatisticsFormat::kInt8>(tasks, bounds, stream);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
