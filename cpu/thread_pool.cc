#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/shared_job.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

// About 20 to 40 microseconds: longer than the gap between two stages of a decode step, shorter
// than a scheduler's time slice.
constexpr int kSpins = 1000;

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads)
      // Spinning only pays when the thread waited for has a core of its own.
      : spins_(std::thread::hardware_concurrency() >= static_cast<unsigned>(num_threads) ? kSpins
                                                                                         : 0),
        job_(spins_) {
    threads_.reserve(num_threads - 1);
    for (int worker = 1; worker < num_threads; ++worker) {
      threads_.emplace_back([this, worker] { WorkerMain(worker); });
    }
  }

  ~ThreadPool() override {
    stopping_.store(true);
    AnnounceJob();
    for (std::thread& thread : threads_) thread.join();
  }

  int num_workers() const override { return static_cast<int>(threads_.size()) + 1; }

  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    const std::lock_guard<std::mutex> turn(turn_);
    if (threads_.empty() || num_tasks <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
      return;
    }
    job_.Open(num_tasks, task);
    AnnounceJob();
    job_.Finish(0);
  }

 private:
  void WorkerMain(int worker) {
    for (uint32_t seen = 0;;) {
      seen = AwaitNewJob(seen);
      if (stopping_.load()) return;
      job_.Join(worker);
    }
  }

  void AnnounceJob() {
    jobs_announced_.fetch_add(1);
    jobs_announced_.notify_all();
  }

  // Returns the number of jobs announced once it is no longer `seen`.
  uint32_t AwaitNewJob(uint32_t seen) {
    for (int i = 0; i < spins_ && jobs_announced_.load() == seen; ++i) Pause();
    jobs_announced_.wait(seen);
    return jobs_announced_.load();
  }

  const int spins_;
  std::vector<std::thread> threads_;
  std::mutex turn_;  // held for the whole of a ParallelFor

  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> jobs_announced_{0};
  SharedJob job_;
};

}  // namespace

std::unique_ptr<Executor> MakeThreadPool(int num_threads) {
  return std::make_unique<ThreadPool>(std::max(num_threads, 1));
}

}  // namespace wavekv
