// Where parallel work runs: the engine's own threads, or the caller's.
#ifndef WAVEKV_COMPUTE_EXECUTOR_H_
#define WAVEKV_COMPUTE_EXECUTOR_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "wavekv/export.h"

namespace wavekv {

// Threads: ParallelFor may be called from several threads at once; the executor decides whether
// such calls share its workers or wait for each other.
class WAVEKV_EXPORT Executor {
 public:
  virtual ~Executor() = default;

  // Upper bound of concurrently running tasks of one ParallelFor; at least 1, constant.
  virtual int num_workers() const = 0;

  // Calls task(i, worker) once for each i in [0, num_tasks), 0 <= worker < num_workers(), no two
  // concurrent tasks of one call with the same worker, and returns when all have returned.
  // Everything a task wrote is visible to the caller then. The order is free; tasks do not call
  // ParallelFor.
  virtual void ParallelFor(int64_t num_tasks,
                           absl::FunctionRef<void(int64_t task, int worker)> task) = 0;
};

// A pool of num_threads - 1 threads which the calling thread joins; num_threads >= 1. With one
// thread the tasks run in the caller, in order. Concurrent ParallelFor calls take turns.
WAVEKV_EXPORT std::unique_ptr<Executor> MakeThreadPool(int num_threads);

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_EXECUTOR_H_
