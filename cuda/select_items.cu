// What is best by rank, without a sort: one radix selection for clusters and for tokens.
//
// A task's items are divided into chunks of 8 items a thread, a block each; nothing of a task is
// left to one block but the items around its cuts. Four kernels:
//   Mass   the mass of every head, chunk by chunk; clears the counters
//   Share  p, the sums of the chunks' masses in fixed order; a histogram of p's upper 11 bits, with
//          the items', the tokens' and the risks' sums of each bin
//   Cut    gathers the candidates, the items in the bins that the cuts fall into; the task's block
//          that is done last finds the cuts among these, 10 or 11 bits at a time
//   Zone   compares each item with the cuts and writes what the caller sees
// Tasks that one block can hold, of up to 4096 items, take a single kernel that does the same.
//
// Items are ranked by the key (p's bits, index inverted): keys differ, and as p is not negative
// they are ordered as the contract orders items. A cut is the key of the last item before it. All
// sums that decide are integers, so neither the order of atomics nor that of the candidates
// matters.
//
// Risks are counted in units of 2^-40 of the limit, rounded up, those above twice the limit as
// twice the limit: what is left unread adds up to at most the limit, and at most N units are lost
// of it (N items: a share of N 2^-40). Sums fit 64 bits for up to 2^21 items.
//
// Bounded by memory: per item, two reads of the scores (8 bytes a head, the second mostly from the
// L2 cache), one write and two reads of p (12 bytes), the size (4 bytes), the zone (1 byte); a risk
// adds 4 bytes a head and 20.
#include "cuda/kernel.h"
#include "cuda/select_items.h"
#include "cuda/selection_cuts.h"
#include "cuda/selection_shares.h"
#include "storage/status_macros.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace selection {
namespace {

WAVEKV_DEVICE void WriteResults(const SelectTokensTask& task, const Chunk& chunk,
                                const Scratch& scratch, const Workspace&) {
  const uint64_t cut = scratch.cuts()[0];
  const int64_t count = task.num_tokens;
  uint8_t* const chosen = task.chosen;
  uint32_t bits[kItemsPerThread];
  LoadRanks(task.probabilities, count, chunk, bits);
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const int64_t i = ItemOf(chunk, k);
    if (i < count) chosen[i] = KeyOf(bits[k], i) >= cut ? 1 : 0;
  }
}

WAVEKV_DEVICE void WriteResults(const SelectClustersTask& task, const Chunk& chunk,
                                const Scratch& scratch, const Workspace& workspace) {
  const uint64_t cut = scratch.cuts()[0], estimation_cut = scratch.cuts()[1];
  const int64_t count = task.num_clusters;
  const Zone first_zone = task.first_zone, last_zone = task.last_zone;
  Zone* const zones = task.zones;
  uint32_t bits[kItemsPerThread];
  LoadRanks(task.probabilities, count, chunk, bits);
  uint32_t selected = 0;
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const int64_t i = ItemOf(chunk, k);
    const uint64_t key = KeyOf(bits[k], i);
    const bool retrieved = i < count && key >= cut;
    const bool estimated = key >= estimation_cut && bits[k] > 0;
    if (i < count) zones[i] = retrieved ? first_zone : estimated ? Zone::kEstimation : last_zone;
    const uint32_t of_warp = Ballot(retrieved);
    if (retrieved) selected |= 1u << k;
    if (LaneIndex() == 0) {
      workspace.prefixes[k * BlockWarps() + WarpIndex()] = static_cast<uint32_t>(PopCount(of_warp));
    }
  }
  SyncBlock();
  if (WarpIndex() == 0) {
    uint32_t before = scratch.selected()[chunk.index];
    for (int first = 0; first < kItemsPerThread * BlockWarps(); first += kWarp) {
      const uint32_t of_warp = workspace.prefixes[first + LaneIndex()];
      const uint32_t upto = InclusiveSumOfWarp(of_warp);
      workspace.prefixes[first + LaneIndex()] = before + upto - of_warp;
      before += Shuffle(upto, kWarp - 1);
    }
  }
  SyncBlock();
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const bool retrieved = (selected >> k & 1u) != 0;
    const uint32_t lower = Ballot(retrieved) & ((1u << LaneIndex()) - 1);
    if (!retrieved) continue;
    const uint32_t before = workspace.prefixes[k * BlockWarps() + WarpIndex()];
    task.retrieved[before + static_cast<uint32_t>(PopCount(lower))] =
        static_cast<uint32_t>(ItemOf(chunk, k));
  }
}

// Kernels: a block is chunk blockIdx.y of task blockIdx.x.

// Whether the block has items.
template <typename Items>
WAVEKV_DEVICE bool HasItems(const Items& items, const Chunk& chunk) {
  return items.task.num_queries > 0 && chunk.begin < items.count();
}

template <typename Items>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads)
    MassKernel(const typename Items::Task* tasks, std::byte* memory, ScratchLayout layout,
               int num_queries) {
  const Items items(tasks[blockIdx.x]);
  const Chunk chunk = ChunkOf(blockIdx.y, items.count());
  if (!HasItems(items, chunk)) return;
  const Scratch scratch(memory, layout, blockIdx.x);
  const int64_t first = chunk.index * BlockThreads() + ThreadIndex();
  for (int64_t b = first; b < kBins; b += chunk.num_chunks * BlockThreads()) {
    scratch.counts()[b] = 0;
    if (Items::kClusters) scratch.tokens()[b] = 0;
    if (items.task.risk != nullptr) scratch.units()[b] = 0;
  }
  if (ThreadIndex() == 0) scratch.selected()[chunk.index] = 0;
  if (first < 2) scratch.num_done()[first] = 0;
  SumMasses(items, chunk, layout.num_chunks, scratch.partials(), TakeWorkspace(num_queries));
}

template <typename Items>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads)
    ShareKernel(const typename Items::Task* tasks, std::byte* memory, ScratchLayout layout,
                int num_queries) {
  const Items items(tasks[blockIdx.x]);
  const Chunk chunk = ChunkOf(blockIdx.y, items.count());
  if (!HasItems(items, chunk)) return;
  const Scratch scratch(memory, layout, blockIdx.x);
  const Workspace workspace = TakeWorkspace(num_queries);
  CombineMasses(items, chunk, layout.num_chunks, scratch.partials(), workspace);
  ComputeShares(items, chunk, scratch.risks(), workspace);
  AddToTask(items, workspace, scratch);
}

template <typename Items>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads, 3)
    CutKernel(const typename Items::Task* tasks, std::byte* memory, ScratchLayout layout,
              int num_queries) {
  const Items items(tasks[blockIdx.x]);
  const Chunk chunk = ChunkOf(blockIdx.y, items.count());
  if (!HasItems(items, chunk)) {
    const bool empty = items.task.num_queries > 0 && items.count() == 0;
    if (empty && chunk.index == 0 && ThreadIndex() == 0) *items.num_selected() = 0;
    return;
  }
  const Scratch scratch(memory, layout, blockIdx.x);
  const Workspace workspace = TakeWorkspace(num_queries);
  const Bins<uint32_t, int64_t> bins = {scratch.counts(), scratch.tokens(), scratch.units()};
  KeepPlan(items, bins, workspace);
  GatherCandidates(items, chunk, scratch, workspace);
  SyncBlock();
  if (ThreadIndex() == 0) {
    FenceDevice();
    workspace.found[0] = AtomicAdd(scratch.num_done(), 1u);
    FenceDevice();
  }
  SyncBlock();
  if (workspace.found[0] + 1 != chunk.num_chunks) return;
  SyncBlock();
  FindCuts(items, chunk, bins, scratch, workspace);
}

template <typename Items>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads)
    ZoneKernel(const typename Items::Task* tasks, std::byte* memory, ScratchLayout layout,
               int num_queries) {
  const Items items(tasks[blockIdx.x]);
  const Chunk chunk = ChunkOf(blockIdx.y, items.count());
  if (!HasItems(items, chunk)) return;
  WriteResults(items.task, chunk, Scratch(memory, layout, blockIdx.x), TakeWorkspace(num_queries));
}

// A block does a task, which is a single chunk.
template <typename Items>
WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreadsMax, 1)
    SelectKernel(const typename Items::Task* tasks, std::byte* memory, ScratchLayout layout,
                 int num_queries) {
  const Items items(tasks[blockIdx.x]);
  if (items.task.num_queries == 0) return;
  const Chunk chunk = ChunkOf(0, items.count());
  if (items.count() == 0) {
    if (ThreadIndex() == 0) *items.num_selected() = 0;
    return;
  }
  const Scratch scratch(memory, layout, blockIdx.x);
  const Workspace workspace = TakeWorkspace(num_queries);
  if (ThreadIndex() == 0) {
    scratch.selected()[0] = 0;
    *scratch.num_candidates() = 0;
  }
  SumMasses(items, chunk, 1, scratch.partials(), workspace);
  SyncBlock();
  CombineMasses(items, chunk, 1, scratch.partials(), workspace);
  ComputeShares(items, chunk, scratch.risks(), workspace);
  const Bins<uint32_t, uint32_t> bins = {workspace.counts, workspace.tokens, workspace.units};
  KeepPlan(items, bins, workspace);
  GatherCandidates(items, chunk, scratch, workspace);
  SyncBlock();
  FindCuts(items, chunk, bins, scratch, workspace);
  WriteResults(items.task, chunk, scratch, workspace);
}

int64_t NumChunks(const TaskBounds& bounds) {
  constexpr int64_t kItems = kThreads * kItemsPerThread;
  return bounds.num_items <= kThreadsMax * kItemsPerThread
             ? 1
             : (bounds.num_items + kItems - 1) / kItems;
}

template <typename Items>
absl::Status Select(GpuTasks<typename Items::Task> tasks, const TaskBounds& bounds,
                    std::byte* scratch, GpuStream stream) {
  const ScratchLayout layout = LayoutOf(bounds, NumChunks(bounds));
  const GridShape grid = {static_cast<unsigned>(tasks.count),
                          static_cast<unsigned>(layout.num_chunks)};
  if (layout.num_chunks == 1) {
    int threads = kThreads;
    while (threads * kItemsPerThread < bounds.num_items) threads *= 2;
    return Launch("SelectItems", SelectKernel<Items>, grid, threads,
                  WorkspaceBytes(bounds.num_queries, threads), stream, tasks.tasks, scratch, layout,
                  bounds.num_queries);
  }
  const int64_t shared_bytes = WorkspaceBytes(bounds.num_queries, kThreads);
  const auto launch = [&](const char* name, auto* kernel) {
    return Launch(name, kernel, grid, kThreads, shared_bytes, stream, tasks.tasks, scratch, layout,
                  bounds.num_queries);
  };
  WAVEKV_RETURN_IF_ERROR(launch("SelectMass", MassKernel<Items>));
  WAVEKV_RETURN_IF_ERROR(launch("SelectShare", ShareKernel<Items>));
  WAVEKV_RETURN_IF_ERROR(launch("SelectCut", CutKernel<Items>));
  return launch("SelectZone", ZoneKernel<Items>);
}

}  // namespace
}  // namespace selection

int64_t SelectScratchBytes(const TaskBounds& bounds) {
  return selection::LayoutOf(bounds, selection::NumChunks(bounds)).num_bytes;
}

absl::Status SelectClusters(GpuTasks<SelectClustersTask> tasks, const TaskBounds& bounds,
                            std::byte* scratch, GpuStream stream) {
  return selection::Select<selection::ClusterItems>(tasks, bounds, scratch, stream);
}

absl::Status SelectTokens(GpuTasks<SelectTokensTask> tasks, const TaskBounds& bounds,
                          std::byte* scratch, GpuStream stream) {
  return selection::Select<selection::TokenItems>(tasks, bounds, scratch, stream);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
