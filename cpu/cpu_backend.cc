#include "cpu/cpu_backend.h"

#include <cstdint>

#include "cpu/assign_clusters.h"
#include "cpu/attend_rows.h"
#include "cpu/convert_rows.h"
#include "cpu/estimate_clusters.h"
#include "cpu/merge_states.h"
#include "cpu/score_clusters.h"
#include "cpu/select_clusters.h"
#include "cpu/update_centroids.h"

namespace wavekv {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(Executor* executor) : executor_(executor) {}

  absl::Status ConvertRows(absl::Span<const ConvertRowsTask> tasks) override {
    return RunAll(tasks, cpu::ConvertRows);
  }
  absl::Status ScoreClusters(absl::Span<const ScoreClustersTask> tasks) override {
    return RunAll(tasks, cpu::ScoreClusters);
  }
  absl::Status SelectClusters(absl::Span<const SelectClustersTask> tasks) override {
    return RunAll(tasks, cpu::SelectClusters);
  }
  absl::Status AttendRows(absl::Span<const AttendRowsTask> tasks) override {
    return RunParts(tasks, cpu::AttendRows);
  }
  absl::Status EstimateClusters(absl::Span<const EstimateClustersTask> tasks) override {
    return RunAll(tasks, cpu::EstimateClusters);
  }
  absl::Status MergeStates(absl::Span<const MergeStatesTask> tasks) override {
    return RunAll(tasks, cpu::MergeStates);
  }
  absl::Status AssignClusters(absl::Span<const AssignClustersTask> tasks) override {
    return RunParts(tasks, cpu::AssignClusters);
  }
  absl::Status UpdateCentroids(absl::Span<const UpdateCentroidsTask> tasks) override {
    return RunAll(tasks, cpu::UpdateCentroids);
  }

 private:
  template <typename Task>
  absl::Status RunAll(absl::Span<const Task> tasks, void (*run)(const Task&)) {
    if (tasks.size() == 1) {
      run(tasks[0]);
    } else {
      executor_->ParallelFor(static_cast<int64_t>(tasks.size()),
                             [&](int64_t i, int) { run(tasks[i]); });
    }
    return absl::OkStatus();
  }

  // The same for operations that divide a task into parts.
  template <typename Task>
  absl::Status RunParts(absl::Span<const Task> tasks, void (*run)(const Task&, int64_t part)) {
    int64_t num_parts = 0;
    for (const Task& task : tasks) num_parts += cpu::NumParts(task);
    if (num_parts == 1) {
      for (const Task& task : tasks) {
        if (cpu::NumParts(task) == 1) run(task, 0);
      }
      return absl::OkStatus();
    }
    executor_->ParallelFor(num_parts, [&](int64_t part, int) {
      const Task* task = tasks.data();
      for (; part >= cpu::NumParts(*task); ++task) part -= cpu::NumParts(*task);
      run(*task, part);
    });
    return absl::OkStatus();
  }

  Executor* const executor_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(Executor* executor) {
  return std::make_unique<CpuBackend>(executor);
}

}  // namespace wavekv
