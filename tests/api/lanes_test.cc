#include "api/lanes.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "compute/backend.h"
#include "gtest/gtest.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

// Tasks of all workers in one thread, the last one first.
class BackwardsExecutor final : public Executor {
 public:
  int num_workers() const override { return 3; }
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    for (int64_t i = num_tasks - 1; i >= 0; --i) task(i, static_cast<int>(i % num_workers()));
  }
};

void ExpectEveryItemOnce(Executor& executor, int64_t num_items) {
  Lanes lanes(executor.num_workers());
  for (int round = 0; round < 50; ++round) {
    std::vector<std::atomic<int>> runs(num_items), inside(executor.num_workers());
    lanes.ForEach(executor, num_items, [&](int64_t item, int lane) {
      EXPECT_EQ(inside[lane].fetch_add(1), 0);
      ++runs[item];
      std::this_thread::yield();
      --inside[lane];
    });
    for (int64_t i = 0; i < num_items; ++i) ASSERT_EQ(runs[i], 1) << i;
  }
}

TEST(LanesTest, EveryItemIsRunOnceAndALaneHasOneAtATime) {
  for (const int num_threads : {1, 2, 3, 8}) {
    const std::unique_ptr<Executor> pool = MakeThreadPool(num_threads);
    for (const int64_t num_items : {1, 2, 7, 40}) ExpectEveryItemOnce(*pool, num_items);
  }
}

TEST(LanesTest, AnExecutorMayRunTasksInAnyOrderAndOneByOne) {
  BackwardsExecutor executor;
  for (const int64_t num_items : {1, 5}) ExpectEveryItemOnce(executor, num_items);
}

// What a helper did for the stages of the last item is there when they return.
TEST(LanesTest, WorkersWithoutAnItemHelpThoseThatHaveOne) {
  constexpr int kTasks = 64;
  constexpr int64_t kElements = 8192;
  const std::unique_ptr<Executor> pool = MakeThreadPool(3);
  Lanes lanes(3);
  std::vector<float> from(kTasks * kElements), to(kTasks * kElements);
  std::iota(from.begin(), from.end(), 0.0f);
  std::vector<ConvertRowsTask> tasks(kTasks);
  for (int i = 0; i < kTasks; ++i) {
    tasks[i].source = from.data() + i * kElements;
    tasks[i].target = to.data() + i * kElements;
    tasks[i].num_rows = 1;
    tasks[i].row_elements = kElements;
    tasks[i].source_stride = tasks[i].target_stride = kElements;
  }
  // Whether one comes is up to the system.
  int num_helped = 0;
  for (int round = 0; round < 20; ++round) {
    lanes.ForEach(*pool, 1, [&](int64_t, int lane) {
      const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
      Backend* backend = nullptr;
      while (backend == nullptr && std::chrono::steady_clock::now() < until) {
        backend = lanes.helped_backend(lane);
      }
      if (backend == nullptr) return;
      ++num_helped;
      for (int stage = 0; stage < 5; ++stage) {
        std::fill(to.begin(), to.end(), -1.0f);
        ASSERT_TRUE(backend->ConvertRows(tasks).ok());
        ASSERT_EQ(from, to);
      }
    });
    EXPECT_EQ(lanes.helped_backend(0), nullptr);
  }
  EXPECT_GT(num_helped, 0);
}

}  // namespace
}  // namespace wavekv
