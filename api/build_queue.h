// Seals segments behind the back of the steps.
#ifndef WAVEKV_API_BUILD_QUEUE_H_
#define WAVEKV_API_BUILD_QUEUE_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "api/build_pace.h"
#include "api/step_observer.h"
#include "storage/layer_cache.h"
#include "storage/segment.h"
#include "storage/tenant_store.h"
#include "wavekv/model_spec.h"
#include "wavekv/options.h"

namespace wavekv {

class Backend;
class GpuBuilder;

// Threads that take cut segments in the order of cutting and replace their rows by clusters. A
// segment that nobody holds any more is skipped. One whose sealed form does not fit the memory is
// tried again as long as other builds succeed, since each frees the rows it replaces; then it is
// marked, and its tokens stay exact.
//
// Runs of segments are merged behind them: once all of a run are sealed, its rows are clustered
// anew, in the order of their positions, and every sequence of the tenant takes up the result. A
// run whose merged form does not fit the memory stays as it is; so does one of which a segment
// could not be sealed.
//
// Threads: safe. The destructor waits for the builds that have begun.
class BuildQueue {
 public:
  // A thread for each of `gpu`, which clusters segments there or, where it is nullptr, itself: at
  // the pace that `steps` leave it. Observer and steps outlive the queue.
  BuildQueue(const ModelSpec& model, const IndexOptions& index,
             std::vector<std::unique_ptr<GpuBuilder>> gpu, StepObserver& observer,
             const StepCount* steps);
  ~BuildQueue();

  BuildQueue(const BuildQueue&) = delete;
  BuildQueue& operator=(const BuildQueue&) = delete;

  void Add(const std::vector<std::shared_ptr<Segment>>& segments, const SealTarget& target);

  // Runs of that layer, of sequences of `tenant`.
  void AddMerges(const std::vector<SegmentRun>& runs, const SealTarget& target,
                 const std::weak_ptr<TenantStore>& tenant, int layer);

  // Evaluates done() now and after every build; false when the deadline came first.
  bool WaitUntil(absl::FunctionRef<bool()> done, absl::Time deadline);

  // For tests. No build begins while paused; those that have begun end as ever.
  void SetPaused(bool paused);

  int64_t segments_pending() const;
  int64_t segments_sealed() const { return live_->load(); }
  int64_t segments_sealed_total() const { return sealed_total_.load(); }
  int64_t seal_failures_total() const { return failures_total_.load(); }
  int64_t segment_merges_total() const { return merges_total_.load(); }
  int64_t merge_failures_total() const { return merge_failures_total_.load(); }

 private:
  struct Job {
    std::vector<std::weak_ptr<Segment>> segments;  // one to be sealed, or a run to be merged
    SealTarget target;
    int64_t sealed_before = -1;  // segments sealed ever, when it last failed
    // Of a merge, whose sequences take up the result.
    std::weak_ptr<TenantStore> tenant;
    int layer = 0;

    bool is_merge() const { return segments.size() > 1; }
  };

  // What a thread works with; `gpu` is nullptr where the rows are the processor's to read.
  struct Worker {
    Backend& backend;
    GpuBuilder* gpu;
  };

  void RunThread(GpuBuilder* gpu);
  // The first job that waits for no other. REQUIRES: mutex_ is held.
  std::deque<Job>::iterator NextJob();
  // True when the job is to be queued again.
  bool RunJob(Job& job, const Worker& worker);
  void RunMerge(const Job& job, const Worker& worker);
  absl::Status Build(Segment& segment, const SealTarget& target, const Worker& worker);
  absl::StatusOr<std::shared_ptr<Segment>> Merge(const SegmentRun& run, const SealTarget& target,
                                                 const Worker& worker);
  // Clusters the rows of one kv head of a segment that begins there.
  absl::StatusOr<SealedHead> BuildHead(const std::vector<KvRange>& rows, int64_t begin,
                                       const SealTarget& target, Backend& backend);
  // Counts it among the live ones until it is gone.
  std::shared_ptr<const SealedSegment> Share(std::unique_ptr<SealedSegment> sealed);

  const ModelSpec model_;
  const IndexOptions index_;
  StepObserver& observer_;
  const StepCount* const steps_;

  // Sealed segments that exist, wherever they are held; outlives the queue through them.
  const std::shared_ptr<std::atomic<int64_t>> live_ = std::make_shared<std::atomic<int64_t>>(0);
  std::atomic<int64_t> sealed_total_{0};
  std::atomic<int64_t> failures_total_{0};
  std::atomic<int64_t> merges_total_{0};
  std::atomic<int64_t> merge_failures_total_{0};
  std::atomic<bool> failing_{false};  // the last build did

  mutable std::mutex mutex_;
  std::condition_variable work_;   // a job came or ended, or stop
  std::condition_variable built_;  // a job ended
  // Guarded by mutex_.
  std::deque<Job> jobs_;
  int64_t running_ = 0;
  bool stop_ = false;
  bool paused_ = false;

  std::vector<std::unique_ptr<GpuBuilder>> gpu_;
  std::vector<std::thread> threads_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_BUILD_QUEUE_H_
