#include "api/lanes.h"

#include <algorithm>
#include <thread>

#include "cpu/cpu_backend.h"

namespace wavekv {
namespace {

// How often a helper looks for work before it lets other threads run.
constexpr int kLooks = 200;

}  // namespace

// Tasks run on the lane's thread and on those of helpers that look in.
class Lanes::Lane final : public Executor {
 public:
  Lane(int number, int num_workers)
      : number_(number), num_workers_(num_workers), backend_(MakeCpuBackend(this)) {}

  int num_workers() const override { return num_workers_; }
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    job_.Open(num_tasks, task);
    job_.Finish(number_);
  }

  bool Join(int worker) { return job_.Join(worker); }
  Backend& backend() { return *backend_; }

 private:
  const int number_;
  const int num_workers_;
  const std::unique_ptr<Backend> backend_;
  SharedJob job_{kLooks};
};

Lanes::Lanes(int num_workers) {
  for (int i = 0; i < num_workers; ++i) lanes_.push_back(std::make_unique<Lane>(i, num_workers));
}

Lanes::~Lanes() = default;

void Lanes::ForEach(Executor& executor, int64_t num_items,
                    absl::FunctionRef<void(int64_t item, int lane)> run) {
  num_begun_.store(0);
  num_done_.store(0);
  const auto num_helpers = static_cast<int64_t>(lanes_.size()) - 1;
  executor.ParallelFor(num_items + num_helpers, [&](int64_t i, int worker) {
    if (i >= num_items) return Help(worker, num_items);
    num_begun_.fetch_add(1);
    run(i, worker);
    num_done_.fetch_add(1);
  });
}

void Lanes::Help(int worker, int64_t num_items) {
  // An item that has not begun may wait for this worker, as an executor is free in its order; or it
  // is just about to.
  for (int looks = 0; num_begun_.load() < num_items; ++looks) {
    if (looks == kLooks) return;
    Pause();
  }
  num_helpers_.fetch_add(1);
  for (int looks = 0; num_done_.load() < num_items; ++looks) {
    const bool helped = std::count_if(lanes_.begin(), lanes_.end(),
                                      [&](const auto& lane) { return lane->Join(worker); }) > 0;
    if (helped) looks = 0;
    // Lanes may have more threads than the machine has cores.
    looks < kLooks ? Pause() : std::this_thread::yield();
  }
  num_helpers_.fetch_sub(1);
}

Backend* Lanes::helped_backend(int lane) {
  return num_helpers_.load(std::memory_order_relaxed) == 0 ? nullptr : &lanes_[lane]->backend();
}

}  // namespace wavekv
