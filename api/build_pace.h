// How builds make room for steps that want the same processors.
#ifndef WAVEKV_API_BUILD_PACE_H_
#define WAVEKV_API_BUILD_PACE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "compute/backend.h"
#include "wavekv/executor.h"

namespace wavekv {

// The calls under way that somebody waits for. Threads: safe.
class StepCount {
 public:
  // One of them, from here to the end of the scope.
  class Step {
   public:
    explicit Step(StepCount& count) : count_(count) {
      count_.running_.fetch_add(1);
      count_.begun_.fetch_add(1);
    }
    ~Step() { count_.running_.fetch_sub(1); }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    StepCount& count_;
  };

  bool any() const { return running_.load(std::memory_order_relaxed) > 0; }
  // Ever.
  int64_t begun() const { return begun_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> running_{0};
  std::atomic<int64_t> begun_{0};
};

// The pace of one thread that builds. A scheduler lets it run to its next tick, a few milliseconds,
// once it has begun, however low its priority: as long as a whole step. So it stops by itself after
// each slice of work during which a step was running, and rests so long that it takes no more than
// a fifth of a processor; with nobody waiting it does not rest at all.
//
// Threads: one.
class BuildPace {
 public:
  // nullptr: there is nobody to make room for.
  explicit BuildPace(const StepCount* steps);

  // Between two pieces of work, of whatever length.
  void Rest();

 private:
  using Clock = std::chrono::steady_clock;

  void BeginSlice();

  const StepCount* const steps_;
  // When the slice began: by the clock, in this thread's computing time, and in steps.
  Clock::time_point begin_;
  std::chrono::nanoseconds begin_computing_{0};
  int64_t begin_steps_ = 0;
};

// The processor's backend for a thread that builds, which alone does the work: it rests between
// operations, and between their tasks where they are long. `pace` outlives it.
std::unique_ptr<Backend> MakePacedBackend(BuildPace& pace);

}  // namespace wavekv

#endif  // WAVEKV_API_BUILD_PACE_H_
