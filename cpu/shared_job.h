// One ParallelFor at a time, which threads join while it lasts.
#ifndef WAVEKV_CPU_SHARED_JOB_H_
#define WAVEKV_CPU_SHARED_JOB_H_

#include <atomic>
#include <cstdint>

#include "absl/functional/function_ref.h"

namespace wavekv {

// Tells the core that it waits: a hyper-thread sibling runs faster meanwhile.
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads: Open() and Finish() by one at a time, in turn; Join() by any.
class SharedJob {
 public:
  using Task = absl::FunctionRef<void(int64_t task, int worker)>;

  // `spins`: how often Finish() looks for those that are still at work before it sleeps.
  explicit SharedJob(int spins) : spins_(spins) {}

  // From now on it can be joined. `task` stays until Finish() returns.
  void Open(int64_t num_tasks, const Task& task) {
    task_ = &task;
    num_tasks_ = num_tasks;
    next_task_.store(0, std::memory_order_relaxed);
    gate_.store(kOpen, std::memory_order_release);
  }
  // Runs what is left, and returns when all tasks have returned.
  void Finish(int worker) {
    RunTasks(worker);
    gate_.fetch_and(~kOpen);
    for (int i = 0; i < spins_ && gate_.load() != 0; ++i) Pause();
    for (uint32_t gate = gate_.load(); gate != 0; gate = gate_.load()) gate_.wait(gate);
  }

  // Runs tasks of what is open as that worker. False when nothing is: who comes too late finds the
  // gate closed, so nobody ever waits for a sleeper.
  bool Join(int worker) {
    uint32_t gate = gate_.load();
    do {
      if ((gate & kOpen) == 0) return false;
    } while (!gate_.compare_exchange_weak(gate, gate + 1));
    RunTasks(worker);
    if (gate_.fetch_sub(1) == 1) gate_.notify_all();
    return true;
  }

 private:
  static constexpr uint32_t kOpen = 1u << 31;

  void RunTasks(int worker) {
    for (;;) {
      const int64_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks_) return;
      (*task_)(i, worker);
    }
  }

  const int spins_;
  // Written before the gate opens, read by whoever passed it.
  const Task* task_ = nullptr;
  int64_t num_tasks_ = 0;
  // kOpen while it may be joined, plus the number of those who did.
  std::atomic<uint32_t> gate_{0};
  // On a line of its own: every worker hits it for every task.
  alignas(64) std::atomic<int64_t> next_task_{0};
};

}  // namespace wavekv

#endif  // WAVEKV_CPU_SHARED_JOB_H_
