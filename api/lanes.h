// Work in lanes: each worker takes one item from its first stage to its last, and then the next.
#ifndef WAVEKV_API_LANES_H_
#define WAVEKV_API_LANES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "compute/backend.h"
#include "cpu/shared_job.h"
#include "wavekv/executor.h"

namespace wavekv {

// A worker without an item of its own helps the others with their stages, so that all finish
// together. Threads: one ForEach at a time.
class Lanes {
 public:
  explicit Lanes(int num_workers);
  ~Lanes();

  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;

  // run(item, lane) once for each of [0, num_items), on the executor's workers: a lane has one item
  // at a time. REQUIRES: the executor has the num_workers of these lanes.
  void ForEach(Executor& executor, int64_t num_items,
               absl::FunctionRef<void(int64_t item, int lane)> run);

  // For a lane's item: what shares tasks with helpers; nullptr while there are none, and the lane
  // does best to go on alone.
  Backend* helped_backend(int lane);

 private:
  class Lane;

  void Help(int worker, int64_t num_items);

  std::vector<std::unique_ptr<Lane>> lanes_;
  std::atomic<int64_t> num_begun_{0};
  std::atomic<int64_t> num_done_{0};
  std::atomic<int> num_helpers_{0};
};

}  // namespace wavekv

#endif  // WAVEKV_API_LANES_H_
