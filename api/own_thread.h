// The calling thread, as an executor.
#ifndef WAVEKV_API_OWN_THREAD_H_
#define WAVEKV_API_OWN_THREAD_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "wavekv/executor.h"

namespace wavekv {

// Tasks run in order in the thread that calls. Unlike in a pool of one thread, calls of several
// threads do not wait for each other, and a task of another executor may call it.
class OwnThread final : public Executor {
 public:
  int num_workers() const override { return 1; }
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
  }
};

}  // namespace wavekv

#endif  // WAVEKV_API_OWN_THREAD_H_
