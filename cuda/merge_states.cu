#include "cuda/kernel.h"
#include "cuda/merge_states.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;

// A warp merges one query's states of one task; lanes have the output's elements.
WAVEKV_KERNEL MergeKernel(const MergeStatesTask* tasks, int64_t num_tasks) {
  const int64_t task_index = int64_t{blockIdx.x} * BlockWarps() + WarpIndex();
  const int query = static_cast<int>(blockIdx.y);
  if (task_index >= num_tasks) return;
  const MergeStatesTask& task = tasks[task_index];
  if (query >= task.num_queries) return;
  const auto num_states = static_cast<int64_t>(task.states.size());
  const AttentionState* states = task.states.data();

  float most = -kInfinity;
  for (int64_t s = LaneIndex(); s < num_states; s += kWarp) {
    most = Max(most, states[s].lse[query]);
  }
  most = MaxOfWarp(most);
  float mass = 0.0f;
  for (int64_t s = LaneIndex(); s < num_states; s += kWarp) {
    const float lse = states[s].lse[query];
    if (lse != -kInfinity) mass += Exp(lse - most);
  }
  mass = SumOfWarp(mass);
  const float scale = mass > 0.0f ? 1.0f / mass : 0.0f;
  for (int d = LaneIndex(); d < task.head_dim_v; d += kWarp) {
    const int64_t at = int64_t{query} * task.head_dim_v + d;
    float sum = 0.0f;
    for (int64_t s = 0; s < num_states; ++s) {
      const float lse = states[s].lse[query];
      if (lse != -kInfinity) sum = MulAdd(Exp(lse - most), states[s].output[at], sum);
    }
    task.output[at] = sum * scale;
  }
  SyncWarp();  // lse may be that of states[0]
  if (LaneIndex() == 0) task.lse[query] = mass > 0.0f ? most + Log(mass) : -kInfinity;
}

}  // namespace

absl::Status MergeStates(GpuTasks<MergeStatesTask> tasks, const TaskBounds& bounds,
                         GpuStream stream) {
  constexpr int kWarps = kThreads / kWarp;
  const GridShape grid = {static_cast<unsigned>((tasks.count + kWarps - 1) / kWarps),
                          static_cast<unsigned>(bounds.num_queries)};
  return Launch("MergeStates", MergeKernel, grid, kThreads, 0, stream, tasks.tasks, tasks.count);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
