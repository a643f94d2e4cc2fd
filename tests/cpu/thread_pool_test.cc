#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskExactlyOnce) {
  for (int num_threads : {1, 2, 3, 8}) {
    const std::unique_ptr<Executor> pool = MakeThreadPool(num_threads);
    EXPECT_EQ(pool->num_workers(), num_threads);
    for (int64_t num_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(num_tasks);
      pool->ParallelFor(num_tasks, [&](int64_t task, int) { ++runs[task]; });
      EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](const auto& n) { return n == 1; }));
    }
  }
}

TEST(ThreadPoolTest, OneThreadRunsTasksInTheCallerInOrder) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(1);
  std::vector<int64_t> order;
  pool->ParallelFor(5, [&](int64_t task, int worker) {
    EXPECT_EQ(worker, 0);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(ThreadPoolTest, WritesOfTasksAreVisibleAfterwards) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(4);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int> written(16, -1);
    pool->ParallelFor(16, [&](int64_t task, int) { written[task] = round; });
    ASSERT_EQ(written, std::vector<int>(16, round));
  }
}

TEST(ThreadPoolTest, NoTwoRunningTasksShareAWorkerIndex) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::atomic<int>> inside(4);
    pool->ParallelFor(64, [&](int64_t, int worker) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, 4);
      EXPECT_EQ(inside[worker].fetch_add(1), 0);
      std::this_thread::yield();
      inside[worker].fetch_sub(1);
    });
  }
}

TEST(ThreadPoolTest, ConcurrentCallersTakeTurns) {
  constexpr int kCallers = 6;
  const std::unique_ptr<Executor> pool = MakeThreadPool(3);
  std::vector<std::atomic<int>> running(kCallers);
  std::atomic<int64_t> tasks_run{0};
  const auto task_of = [&](int caller) {
    ++running[caller];
    for (int other = 0; other < kCallers; ++other) {
      if (other == caller) continue;
      EXPECT_EQ(running[other], 0);
    }
    ++tasks_run;
    --running[caller];
  };
  const auto num_tasks = [](int caller, int round) { return 1 + (round + caller) % 9; };

  int64_t expected = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    for (int round = 0; round < 200; ++round) expected += num_tasks(caller, round);
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 200; ++round) {
        pool->ParallelFor(num_tasks(caller, round), [&](int64_t, int) { task_of(caller); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(tasks_run, expected);
}

TEST(ThreadPoolTest, WorksAfterItsThreadsFellAsleep) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> runs{0};
    pool->ParallelFor(10, [&](int64_t, int) { ++runs; });
    EXPECT_EQ(runs, 10);
  }
}

TEST(ThreadPoolTest, MayBeDestroyedAtOnce) {
  for (int round = 0; round < 100; ++round) MakeThreadPool(4);
}

}  // namespace
}  // namespace wavekv
