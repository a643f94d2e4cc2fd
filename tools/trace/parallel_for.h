// Runs independent tasks on a few threads.
#ifndef WAVEKV_TOOLS_TRACE_PARALLEL_FOR_H_
#define WAVEKV_TOOLS_TRACE_PARALLEL_FOR_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace wavekv {

// Calls run(task, worker) once for each task in [0, num_tasks) and returns when all are done;
// worker < num_threads names the thread that calls. Never calls from the caller's thread.
template <typename Run>
void ParallelFor(int64_t num_tasks, int num_threads, const Run& run) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int worker = 0; worker < std::min<int64_t>(num_threads, num_tasks); ++worker) {
    threads.emplace_back([&, worker] {
      for (int64_t task = next++; task < num_tasks; task = next++) run(task, worker);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_PARALLEL_FOR_H_
