// One block answers up to 8 queries of one task; more queries are more blocks, neighbours in the
// grid, so that L2 gives them what the first one read.
//
// Bound by memory. Of a cluster: 5 bytes of zone and offset, 4 bytes of log-mass for each query,
// and for those whose value mean counts, the mean (head_dim 128 in int4: 64 bytes) and its scale.
// Of a token in the sketch zone: 1 byte, and for each query 4 bytes (8 with error terms) that stand
// in L1 or L2 when they are read again. Of a chosen token: its value, 8 bytes of address.
//
// What is kept of each cluster and query, masses and then weights, stands in shared memory while it
// is small, else in scratch. Weights: threads have clusters; groups of 8 lanes have a cluster's
// tokens, or a super-cluster's clusters. Rows: see estimate_rows.h; sums in fp32, in an order that
// depends on shapes alone.
#include "cuda/estimate_clusters.h"
#include "cuda/estimate_rows.h"
#include "cuda/estimate_weights.h"
#include "cuda/kernel.h"
#include "cuda/rotation_signs.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace estimate {
namespace {

// What may be kept in shared memory, so that several blocks share a multiprocessor.
constexpr int64_t kSharedWorkBytes = 56 << 10;

struct Launched {
  const EstimateClustersTask* tasks;
  int num_tiles;       // of queries
  int64_t capacity;    // clusters of an index, at most
  std::byte* scratch;  // nullptr: what is kept stands in shared memory
  int64_t work_bytes;  // of a block
  RotationSigns signs;
};

// Lists what is marked, and multiplies its weights by its scale. Returns how many.
template <int kQueries>
WAVEKV_DEVICE int ListMarked(const uint8_t* marked, int count, const float* scales, uint32_t* list,
                             OfQueries<kQueries>* weights, int* scan) {
  int num_listed = 0;
  for (int base = 0; base < count; base += kThreads) {
    const int i = base + ThreadIndex();
    const bool mine = i < count && marked[i] != 0;
    int total;
    const int before = ExclusiveSumOfBlock(int{mine}, scan, &total);
    if (mine) {
      list[num_listed + before] = static_cast<uint32_t>(i);
      if (scales != nullptr) {
        const float scale = scales[i];
        OfQueries<kQueries> scaled = weights[i];
        WAVEKV_UNROLL
        for (float& weight : scaled.of) weight *= scale;
        weights[i] = scaled;
      }
    }
    num_listed += total;
  }
  SyncBlock();
  return num_listed;
}

// shared.sums = the means, weighted, rotated back.
template <int kQueries>
WAVEKV_DEVICE void SumMeans(const View& view, const Work<kQueries>& work, int num_clusters,
                            int num_supers, const RotationSigns& signs,
                            const Shared<kQueries>& shared) {
  const ClusterIndex& index = *view.index;
  const int dim = index.shape.head_dim_v;
  const RowShare share(dim);
  RowSums<kQueries> sums;
  AddMeans(index.statistics, index.value_means.rows, dim, work.clusters, num_clusters, work.masses,
           share, sums);
  AddMeans(SuperFormat(index.statistics), index.super_value_means.rows, dim, work.supers,
           num_supers, work.super_weights, share, sums);
  const float* of_means = shared.totals + kQueries;
  const float* mean = index.mean_value;
  CombineSums(sums, share, dim, 4, dim / 2, view.num_queries, shared.shares,
              [&](int q, int d, float sum) {
                shared.sums[q * dim + d] = MulAdd(of_means[q], mean[d], sum);
              });
  static_assert(kQueries <= kWarps);
  if (WarpIndex() < view.num_queries) RotateRowBack(signs, dim, shared.sums + WarpIndex() * dim);
  SyncBlock();
}

// Weights and addresses of the values of chosen tokens [first, first + kBatch).
template <int kQueries>
WAVEKV_DEVICE void LoadBatch(const View& view, const Work<kQueries>& work, int num_sketch_clusters,
                             uint32_t first, const Shared<kQueries>& shared) {
  // The last cluster that has no more than `first` before it.
  int low = 0, high = num_sketch_clusters;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (work.chosen_before[middle] <= first ? low : high) = middle;
  }
  const int lane = LaneIndex() % kGroup, group = LaneIndex() / kGroup;
  for (int base = low + WarpIndex() * kGroupsOfWarp;
       base < num_sketch_clusters && work.chosen_before[base] < first + kBatch; base += kGroups) {
    const int c = base + group;
    bool active = c < num_sketch_clusters;
    uint32_t before = active ? work.chosen_before[c] : 0;
    active = active && work.chosen_before[c + 1] != before;
    const uint32_t cluster = active ? work.sketch_clusters[c] : 0;
    const uint32_t begin = active ? work.first_tokens[c] : 0;
    const uint32_t size = active ? work.first_tokens[c + 1] - begin : 0;
    const uint32_t longest = MaxOfWarp(size);
    for (uint32_t t = lane; t - lane < longest; t += kGroup) {
      const bool is_chosen = t < size && view.chosen[begin + t] != 0;
      const uint32_t of_group = Ballot(is_chosen) >> (group * kGroup) & ((1u << kGroup) - 1);
      const uint32_t k = before + PopCount(of_group & ((1u << lane) - 1));
      before += PopCount(of_group);
      // Also false for those before `first`.
      if (!is_chosen || k - first >= kBatch) continue;
      const OfQueries<kQueries> rests = work.rests[cluster], per_token = work.per_token[cluster];
      OfQueries<kQueries> weights = {};
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        if (q >= view.num_queries) break;
        const float logit = view.token_logits[q * view.token_stride + begin + t];
        const float mass = MassOf(logit, shared.offsets[q]);
        weights.of[q] = -per_token.of[q] * Deduction(rests.of[q], mass);
      }
      shared.batch_weights[k - first] = weights;
      shared.batch_rows[k - first] = view.task->chosen_values[k];
    }
  }
  SyncBlock();
}

// shared.sums += the values of chosen tokens, weighted.
template <int kQueries>
WAVEKV_DEVICE void SumChosen(const View& view, const Work<kQueries>& work, int num_sketch_clusters,
                             int num_chosen, const Shared<kQueries>& shared) {
  const int dim = view.index->shape.head_dim_v;
  const RowShare share(dim);
  for (int first = 0; first < num_chosen; first += kBatch) {
    LoadBatch(view, work, num_sketch_clusters, static_cast<uint32_t>(first), shared);
    const int count = Min(num_chosen - first, kBatch);
    RowSums<kQueries> sums;
    AddValues(view.index->shape.dtype, shared.batch_rows, count, shared.batch_weights, share, sums);
    CombineSums(sums, share, dim, RowShare::kElements, 4, view.num_queries, shared.shares,
                [&](int q, int d, float sum) { shared.sums[q * dim + d] += sum; });
  }
}

// ln(e^a + e^b)
WAVEKV_DEVICE float LogAdd(float a, float b) {
  const float most = Max(a, b);
  return most == -kInfinity ? most : most + Log(1.0f + Exp(Min(a, b) - most));
}

template <int kQueries>
WAVEKV_DEVICE void WriteAnswers(const View& view, const Shared<kQueries>& shared) {
  const EstimateClustersTask& task = *view.task;
  const int dim = view.index->shape.head_dim_v;
  float* const output = task.output + int64_t{view.first_query} * dim;
  for (int i = ThreadIndex(); i < view.num_queries * dim; i += kThreads) {
    const float mass = shared.totals[i / dim];
    output[i] = shared.sums[i] * (mass > 0.0f ? 1.0f / mass : 0.0f);
  }
  const int q = ThreadIndex();
  if (q >= view.num_queries) return;
  const float offset = shared.offsets[q], mass = shared.totals[q];
  task.lse[view.first_query + q] = mass > 0.0f ? offset + Log(mass) : -kInfinity;
  if (!view.errors) return;
  const float missing = shared.totals[2 * kQueries + q];
  const float ignored = shared.ignored_mass[q];
  task.missing_lse[view.first_query + q] =
      LogAdd(missing > 0.0f ? offset + Log(missing) : -kInfinity,
             ignored > 0.0f ? shared.ignored_most[q] + Log(ignored) : -kInfinity);
  task.value_variance[view.first_query + q] =
      mass > 0.0f ? shared.totals[3 * kQueries + q] / mass / mass : 0.0f;
}

template <int kQueries>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads, 2) EstimateKernel(const Launched launched) {
  const EstimateClustersTask& task = launched.tasks[blockIdx.x / launched.num_tiles];
  const int first_query = static_cast<int>(blockIdx.x % launched.num_tiles) * kQueries;
  if (first_query >= task.num_queries) return;
  SharedMemory memory;
  const Shared<kQueries> shared(memory, task.index->shape.head_dim_v);
  std::byte* const kept = launched.scratch == nullptr
                              ? memory.Take<std::byte>(launched.work_bytes)
                              : launched.scratch + blockIdx.x * launched.work_bytes;
  if (ThreadIndex() == 0) {
    *shared.view = ViewOf(task, first_query, Min(task.num_queries - first_query, kQueries));
    *shared.work = Work<kQueries>(kept, launched.capacity);
  }
  SyncBlock();
  const View& view = *shared.view;
  const Work<kQueries>& work = *shared.work;

  const int num_sketch_clusters = ListSketchClusters(view, work, shared.scan);
  FindOffsets(view, static_cast<int>(work.first_tokens[num_sketch_clusters]), shared);
  TakeExponentials(view, work, shared);
  int num_chosen = 0;
  {
    Totals<kQueries> totals;
    if (num_sketch_clusters > 0) {
      WeighSketchClusters(view, num_sketch_clusters, work, shared, totals);
      num_chosen = CountChosen(num_sketch_clusters, work, shared.count_scan);
    } else {
      SyncBlock();
    }
    WeighSupers(view, work, shared, totals);
    float all[kTotals * kQueries];
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      all[q] = totals.masses[q];
      all[kQueries + q] = totals.of_means[q];
      all[2 * kQueries + q] = totals.missing[q];
      all[3 * kQueries + q] = totals.variances[q];
    }
    CombineOverBlock(all, shared.partial, shared.totals, [](float a, float b) { return a + b; });
  }
  const ClusterIndex& index = *view.index;
  const int num_clusters =
      ListMarked(work.marked_clusters, view.num_clusters, index.value_means.scales, work.clusters,
                 work.masses, shared.count_scan);
  const int num_supers = ListMarked(work.marked_supers, static_cast<int>(index.num_supers),
                                    index.super_value_means.scales, work.supers, work.super_weights,
                                    shared.count_scan);
  SumMeans(view, work, num_clusters, num_supers, launched.signs, shared);
  if (num_chosen > 0) SumChosen(view, work, num_sketch_clusters, num_chosen, shared);
  WriteAnswers(view, shared);
  if (first_query == 0 && ThreadIndex() == 0) {
    if (task.num_value_means != nullptr) *task.num_value_means = num_clusters;
    if (task.num_super_value_means != nullptr) *task.num_super_value_means = num_supers;
  }
}

// Queries of a block.
int TileOf(const TaskBounds& bounds) {
  return bounds.num_queries <= 1 ? 1 : bounds.num_queries <= 4 ? 4 : 8;
}

int64_t WorkBytes(const TaskBounds& bounds) {
  const int tile = TileOf(bounds);
  const int64_t bytes = tile == 1   ? Work<1>::Bytes(bounds.num_items)
                        : tile == 4 ? Work<4>::Bytes(bounds.num_items)
                                    : Work<8>::Bytes(bounds.num_items);
  return (bytes + 255) / 256 * 256;
}

int64_t NumTiles(const TaskBounds& bounds) {
  const int tile = TileOf(bounds);
  return (bounds.num_queries + tile - 1) / tile;
}

template <int kQueries>
absl::Status LaunchTiles(const Launched& launched, int64_t count, const TaskBounds& bounds,
                         GpuStream stream) {
  SharedSize shared = Shared<kQueries>::Size(bounds.shape.head_dim_v);
  if (launched.scratch == nullptr) shared.Add<std::byte>(launched.work_bytes);
  const GridShape grid = {static_cast<unsigned>(count * launched.num_tiles)};
  return Launch("EstimateClusters", EstimateKernel<kQueries>, grid, kThreads, shared.bytes(),
                stream, launched);
}

}  // namespace
}  // namespace estimate

int64_t EstimateScratchBytes(const TaskBounds& bounds) {
  const int64_t bytes = estimate::WorkBytes(bounds);
  return bytes <= estimate::kSharedWorkBytes ? 0 : estimate::NumTiles(bounds) * bytes;
}

absl::Status EstimateClusters(GpuTasks<EstimateClustersTask> tasks, const TaskBounds& bounds,
                              std::byte* scratch, GpuStream stream) {
  if (bounds.num_queries == 0) return absl::OkStatus();
  const int64_t bytes = estimate::WorkBytes(bounds);
  const estimate::Launched launched = {tasks.tasks,
                                       static_cast<int>(estimate::NumTiles(bounds)),
                                       bounds.num_items,
                                       bytes <= estimate::kSharedWorkBytes ? nullptr : scratch,
                                       bytes,
                                       kRotationSigns};
  switch (estimate::TileOf(bounds)) {
    case 1:
      return estimate::LaunchTiles<1>(launched, tasks.count, bounds, stream);
    case 4:
      return estimate::LaunchTiles<4>(launched, tasks.count, bounds, stream);
    default:
      return estimate::LaunchTiles<8>(launched, tasks.count, bounds, stream);
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
