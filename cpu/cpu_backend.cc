#include "cpu/cpu_backend.h"

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "cpu/assign_clusters.h"
#include "cpu/attend_rows.h"
#include "cpu/centre_rows.h"
#include "cpu/choose_tokens.h"
#include "cpu/convert_rows.h"
#include "cpu/estimate_clusters.h"
#include "cpu/list_greatest.h"
#include "cpu/merge_states.h"
#include "cpu/prefetch_index.h"
#include "cpu/rotate_rows.h"
#include "cpu/score_clusters.h"
#include "cpu/score_tokens.h"
#include "cpu/select_clusters.h"
#include "cpu/update_centroids.h"
#include "cpu/write_index.h"

namespace wavekv {
namespace {

// Multiplications that take about as long as waking a thread.
constexpr int64_t kWorthSharing = int64_t{1} << 17;

// Approximate multiplications of a task, or what takes as long.
int64_t Work(const ConvertRowsTask& task) {
  return task.num_rows * task.num_heads * task.row_elements;
}
int64_t Work(const ScoreClustersTask& task) {
  return task.num_queries * task.index->num_clusters * task.index->shape.head_dim_k;
}
int64_t Work(const ScoreSupersTask& task) {
  return task.num_queries * task.index->num_supers * task.index->shape.head_dim_k;
}
int64_t Work(const SelectClustersTask& task) {
  return (task.num_queries + 4) * task.num_clusters * 8;
}
int64_t Work(const RotateRowsTask& task) { return task.num_rows * task.dim * 8; }
int64_t Work(const ScoreTokensTask& task) {
  int64_t num_tokens = 0;
  for (int64_t i = 0; i < task.num_clusters; ++i) {
    num_tokens += task.index->cluster_size(task.clusters[i]);
  }
  return num_tokens * task.num_queries * 64;
}
int64_t Work(const ChooseTokensTask& task) { return task.num_tokens * 32; }
int64_t Work(const AttendRowsTask& task) {
  int64_t num_tokens = 0;
  for (const KvRange& range : task.ranges) num_tokens += range.num_tokens;
  return num_tokens * task.num_queries * (task.shape.head_dim_k + task.shape.head_dim_v);
}
int64_t Work(const EstimateClustersTask& task) {
  return task.num_queries * task.index->num_clusters * task.index->shape.head_dim_v;
}
int64_t Work(const MergeStatesTask& task) {
  return static_cast<int64_t>(task.states.size()) * task.num_queries * task.head_dim_v;
}
int64_t Work(const SumRowsTask& task) { return task.num_rows * task.dim * 2; }
int64_t Work(const CentreRowsTask& task) { return task.num_rows * task.dim * 8; }
int64_t Work(const AssignClustersTask& task) {
  return task.num_points * task.num_centroids * task.dim;
}
int64_t Work(const ListGreatestTask& task) { return task.num_rows * task.num_values * 8; }
int64_t Work(const UpdateCentroidsTask& task) {
  return task.num_clusters == 0 ? 0 : int64_t{task.offsets[task.num_clusters]} * task.dim;
}
int64_t Work(const WriteIndexTask& task) {
  return task.out.num_tokens * (task.out.shape.head_dim_k + task.out.shape.head_dim_v) * 32;
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(Executor* executor) : executor_(executor) {}

  absl::Status ConvertRows(absl::Span<const ConvertRowsTask> tasks) override {
    return RunTasks(tasks, cpu::ConvertRows);
  }
  absl::Status ScoreClusters(absl::Span<const ScoreClustersTask> tasks) override {
    return RunTasks(tasks, cpu::ScoreClusters, cpu::PrefetchFor);
  }
  absl::Status ScoreSupers(absl::Span<const ScoreSupersTask> tasks) override {
    return RunTasks(tasks, cpu::ScoreSupers);
  }
  absl::Status SelectClusters(absl::Span<const SelectClustersTask> tasks) override {
    return RunTasks(tasks, cpu::SelectClusters);
  }
  absl::Status RotateRows(absl::Span<const RotateRowsTask> tasks) override {
    return RunTasks(tasks, cpu::RotateRows);
  }
  absl::Status ScoreTokens(absl::Span<const ScoreTokensTask> tasks) override {
    return RunTasks(tasks, cpu::ScoreTokens, cpu::PrefetchFor);
  }
  absl::Status ChooseTokens(absl::Span<const ChooseTokensTask> tasks) override {
    return RunTasks(tasks, cpu::ChooseTokens);
  }
  absl::Status AttendRows(absl::Span<const AttendRowsTask> tasks) override {
    // One worker knows which task comes next.
    if (executor_->num_workers() == 1) {
      executor_->ParallelFor(1, [&](int64_t, int) { cpu::AttendInTurn(tasks); });
      return absl::OkStatus();
    }
    return RunParts(tasks, cpu::AttendRows);
  }
  absl::Status EstimateClusters(absl::Span<const EstimateClustersTask> tasks) override {
    return RunTasks(tasks, cpu::EstimateClusters, cpu::PrefetchFor);
  }
  absl::Status MergeStates(absl::Span<const MergeStatesTask> tasks) override {
    return RunTasks(tasks, cpu::MergeStates);
  }
  absl::Status SumRows(absl::Span<const SumRowsTask> tasks) override {
    return RunTasks(tasks, cpu::SumRows);
  }
  absl::Status CentreRows(absl::Span<const CentreRowsTask> tasks) override {
    return RunTasks(tasks, cpu::CentreRows);
  }
  absl::Status AssignClusters(absl::Span<const AssignClustersTask> tasks) override {
    return RunParts(tasks, cpu::AssignClusters);
  }
  absl::Status ListGreatest(absl::Span<const ListGreatestTask> tasks) override {
    return RunTasks(tasks, cpu::ListGreatest);
  }
  absl::Status UpdateCentroids(absl::Span<const UpdateCentroidsTask> tasks) override {
    return RunTasks(tasks, cpu::UpdateCentroids);
  }
  absl::Status WriteIndex(absl::Span<const WriteIndexTask> tasks) override {
    return RunTasks(tasks, cpu::WriteIndex);
  }

 private:
  // run(task) for each task.
  template <typename Task>
  absl::Status RunTasks(absl::Span<const Task> tasks, void (*run)(const Task&)) {
    Share(static_cast<int64_t>(tasks.size()), TotalWork(tasks),
          [&](int64_t i, int) { run(tasks[i]); });
    return absl::OkStatus();
  }

  // And prefetch(task) while the one before it runs.
  template <typename Task>
  absl::Status RunTasks(absl::Span<const Task> tasks, void (*run)(const Task&),
                        void (*prefetch)(const Task&)) {
    const auto count = static_cast<int64_t>(tasks.size());
    Share(count, TotalWork(tasks), [&](int64_t i, int) {
      if (i + 1 < count) prefetch(tasks[i + 1]);
      run(tasks[i]);
    });
    return absl::OkStatus();
  }

  // run(task, part) for each part of each task.
  template <typename Task>
  absl::Status RunParts(absl::Span<const Task> tasks, void (*run)(const Task&, int64_t part)) {
    int64_t num_parts = 0;
    for (const Task& task : tasks) num_parts += cpu::NumParts(task);
    if (num_parts == static_cast<int64_t>(tasks.size())) {
      Share(num_parts, TotalWork(tasks), [&](int64_t i, int) { run(tasks[i], 0); });
    } else {
      Share(num_parts, TotalWork(tasks), [&](int64_t part, int) {
        const Task* task = tasks.data();
        for (; part >= cpu::NumParts(*task); ++task) part -= cpu::NumParts(*task);
        run(*task, part);
      });
    }
    return absl::OkStatus();
  }

  template <typename Task>
  static int64_t TotalWork(absl::Span<const Task> tasks) {
    int64_t work = 0;
    for (const Task& task : tasks) work += Work(task);
    return work;
  }

  void Share(int64_t count, int64_t work, absl::FunctionRef<void(int64_t i, int worker)> run) {
    if (count > 1 && work >= kWorthSharing) {
      executor_->ParallelFor(count, run);
    } else {
      for (int64_t i = 0; i < count; ++i) run(i, 0);
    }
  }

  Executor* const executor_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(Executor* executor) {
  return std::make_unique<CpuBackend>(executor);
}

}  // namespace wavekv
