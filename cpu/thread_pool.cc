#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "wavekv/executor.h"

namespace wavekv {
namespace {

// About 20 to 40 microseconds: longer than the gap between two stages of a decode step, shorter
// than a scheduler's time slice.
constexpr int kSpins = 1000;

// Tells the core that it waits: a hyper-thread sibling runs faster meanwhile.
void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads)
      // Spinning only pays when the thread waited for has a core of its own.
      : spins_(std::thread::hardware_concurrency() >= static_cast<unsigned>(num_threads) ? kSpins
                                                                                         : 0) {
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
    task_ = &task;
    num_tasks_ = num_tasks;
    next_task_.store(0, std::memory_order_relaxed);
    gate_.store(kOpen, std::memory_order_release);
    AnnounceJob();
    RunTasks(0);
    gate_.fetch_and(~kOpen);
    AwaitEmptyGate();
  }

 private:
  using Task = absl::FunctionRef<void(int64_t task, int worker)>;

  static constexpr uint32_t kOpen = 1u << 31;

  void WorkerMain(int worker) {
    for (uint32_t seen = 0;;) {
      seen = AwaitNewJob(seen);
      if (stopping_.load()) return;
      if (!EnterGate()) continue;
      RunTasks(worker);
      if (gate_.fetch_sub(1) == 1) gate_.notify_all();
    }
  }

  void RunTasks(int worker) {
    for (;;) {
      const int64_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks_) return;
      (*task_)(i, worker);
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

  // A worker that wakes up too late finds the gate closed, so nobody ever waits for a sleeper.
  bool EnterGate() {
    uint32_t gate = gate_.load();
    while ((gate & kOpen) != 0) {
      if (gate_.compare_exchange_weak(gate, gate + 1)) return true;
    }
    return false;
  }

  void AwaitEmptyGate() {
    for (int i = 0; i < spins_ && gate_.load() != 0; ++i) Pause();
    for (uint32_t gate = gate_.load(); gate != 0; gate = gate_.load()) gate_.wait(gate);
  }

  const int spins_;
  std::vector<std::thread> threads_;
  std::mutex turn_;  // held for the whole of a ParallelFor

  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> jobs_announced_{0};

  // The current job. Written before the gate opens, read by whoever passed it.
  const Task* task_ = nullptr;
  int64_t num_tasks_ = 0;
  // kOpen while workers may still join, plus the number of workers inside.
  std::atomic<uint32_t> gate_{0};
  // On a line of its own: every worker hits it for every task.
  alignas(64) std::atomic<int64_t> next_task_{0};
};

}  // namespace

std::unique_ptr<Executor> MakeThreadPool(int num_threads) {
  return std::make_unique<ThreadPool>(std::max(num_threads, 1));
}

}  // namespace wavekv
