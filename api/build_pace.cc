#include "api/build_pace.h"

#include <time.h>

#include <algorithm>
#include <thread>

#include "cpu/cpu_backend.h"

namespace wavekv {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

// Short beside a step, long beside what it takes to fall asleep and to wake.
constexpr nanoseconds kSlice = microseconds(100);
constexpr int kRestsPerSlice = 4;
// After a piece of work that could not be cut.
constexpr nanoseconds kRestMax = microseconds(10000);

// What this thread has computed for: it may have waited for a processor most of the time.
nanoseconds ThreadTime() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
}

class PacedExecutor final : public Executor {
 public:
  explicit PacedExecutor(BuildPace& pace) : pace_(pace) {}

  int num_workers() const override { return 1; }
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    for (int64_t i = 0; i < num_tasks; ++i) {
      task(i, 0);
      pace_.Rest();
    }
  }

 private:
  BuildPace& pace_;
};

class PacedBackend final : public Backend {
 public:
  explicit PacedBackend(BuildPace& pace)
      : pace_(pace), executor_(pace), backend_(MakeCpuBackend(&executor_)) {}

  absl::Status ConvertRows(absl::Span<const ConvertRowsTask> tasks) override {
    return Run(&Backend::ConvertRows, tasks);
  }
  absl::Status RotateRows(absl::Span<const RotateRowsTask> tasks) override {
    return Run(&Backend::RotateRows, tasks);
  }
  absl::Status ScoreSupers(absl::Span<const ScoreSupersTask> tasks) override {
    return Run(&Backend::ScoreSupers, tasks);
  }
  absl::Status ScoreClusters(absl::Span<const ScoreClustersTask> tasks) override {
    return Run(&Backend::ScoreClusters, tasks);
  }
  absl::Status SelectClusters(absl::Span<const SelectClustersTask> tasks) override {
    return Run(&Backend::SelectClusters, tasks);
  }
  absl::Status ScoreTokens(absl::Span<const ScoreTokensTask> tasks) override {
    return Run(&Backend::ScoreTokens, tasks);
  }
  absl::Status ChooseTokens(absl::Span<const ChooseTokensTask> tasks) override {
    return Run(&Backend::ChooseTokens, tasks);
  }
  absl::Status AttendRows(absl::Span<const AttendRowsTask> tasks) override {
    return Run(&Backend::AttendRows, tasks);
  }
  absl::Status EstimateClusters(absl::Span<const EstimateClustersTask> tasks) override {
    return Run(&Backend::EstimateClusters, tasks);
  }
  absl::Status MergeStates(absl::Span<const MergeStatesTask> tasks) override {
    return Run(&Backend::MergeStates, tasks);
  }
  absl::Status SumRows(absl::Span<const SumRowsTask> tasks) override {
    return Run(&Backend::SumRows, tasks);
  }
  absl::Status CentreRows(absl::Span<const CentreRowsTask> tasks) override {
    return Run(&Backend::CentreRows, tasks);
  }
  absl::Status AssignClusters(absl::Span<const AssignClustersTask> tasks) override {
    return Run(&Backend::AssignClusters, tasks);
  }
  absl::Status ListGreatest(absl::Span<const ListGreatestTask> tasks) override {
    return Run(&Backend::ListGreatest, tasks);
  }
  absl::Status UpdateCentroids(absl::Span<const UpdateCentroidsTask> tasks) override {
    return Run(&Backend::UpdateCentroids, tasks);
  }
  absl::Status WriteIndex(absl::Span<const WriteIndexTask> tasks) override {
    return Run(&Backend::WriteIndex, tasks);
  }
  void Yield() override { pace_.Rest(); }

 private:
  template <typename Task>
  absl::Status Run(absl::Status (Backend::*operation)(absl::Span<const Task>),
                   absl::Span<const Task> tasks) {
    pace_.Rest();
    return (backend_.get()->*operation)(tasks);
  }

  BuildPace& pace_;
  PacedExecutor executor_;
  const std::unique_ptr<Backend> backend_;
};

}  // namespace

BuildPace::BuildPace(const StepCount* steps) : steps_(steps) {
  if (steps_ != nullptr) BeginSlice();
}

void BuildPace::BeginSlice() {
  begin_ = Clock::now();
  begin_computing_ = ThreadTime();
  begin_steps_ = steps_->begun();
}

void BuildPace::Rest() {
  if (steps_ == nullptr || Clock::now() - begin_ < kSlice) return;
  if (steps_->any() || steps_->begun() != begin_steps_) {
    const nanoseconds worked = ThreadTime() - begin_computing_;
    if (worked < kSlice) return;
    std::this_thread::sleep_for(std::min(kRestsPerSlice * worked, kRestMax));
  }
  BeginSlice();
}

std::unique_ptr<Backend> MakePacedBackend(BuildPace& pace) {
  return std::make_unique<PacedBackend>(pace);
}

}  // namespace wavekv
