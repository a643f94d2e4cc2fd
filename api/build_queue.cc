#include "api/build_queue.h"

#include <sys/resource.h>

#include <chrono>
#include <utility>

#include "compute/backend.h"
#include "cpu/cpu_backend.h"
#include "index/segment_builder.h"
#include "storage/cluster_index.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

// Steps come first when both want a processor.
constexpr int kBuildNiceness = 10;

// What callers wait with when they name no deadline; condition variables take no infinite one.
constexpr std::chrono::hours kForever{24 * 365};

}  // namespace

BuildQueue::BuildQueue(const ModelSpec& model, const IndexOptions& index, int num_threads,
                       StepObserver& observer)
    : model_(model), index_(index), observer_(observer) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { RunThread(); });
}

BuildQueue::~BuildQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    jobs_.clear();
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void BuildQueue::Add(const std::vector<std::shared_ptr<Segment>>& segments,
                     const std::shared_ptr<MemoryAccount>& account) {
  if (segments.empty()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const std::shared_ptr<Segment>& segment : segments)
      jobs_.push_back({segment, account, /*sealed_before=*/-1});
  }
  work_.notify_all();
}

bool BuildQueue::WaitUntil(absl::FunctionRef<bool()> done, absl::Time deadline) {
  const auto until = deadline == absl::InfiniteFuture()
                         ? std::chrono::system_clock::now() + kForever
                         : absl::ToChronoTime(deadline);
  std::unique_lock<std::mutex> lock(mutex_);
  return built_.wait_until(lock, until, [&] { return done(); });
}

void BuildQueue::SetPaused(bool paused) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    paused_ = paused;
  }
  work_.notify_all();
}

int64_t BuildQueue::segments_pending() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(jobs_.size()) + running_;
}

void BuildQueue::RunThread() {
  setpriority(PRIO_PROCESS, 0, kBuildNiceness);  // of this thread alone, on Linux
  const std::unique_ptr<Executor> inline_executor = MakeThreadPool(1);
  const std::unique_ptr<Backend> backend = MakeCpuBackend(inline_executor.get());
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stop_ || (!paused_ && !jobs_.empty()); });
    if (stop_) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    ++running_;
    lock.unlock();
    const bool again = RunJob(job, *backend);
    lock.lock();
    --running_;
    if (again && !stop_) jobs_.push_back(std::move(job));
    built_.notify_all();
  }
}

bool BuildQueue::RunJob(Job& job, Backend& backend) {
  const std::shared_ptr<Segment> segment = job.segment.lock();
  if (segment == nullptr) return false;
  absl::Status status;
  {
    const PhaseSpan span(observer_, Phase::kBuild, /*layer=*/-1, segment->num_tokens());
    status = Build(*segment, *job.account, backend);
  }
  if (status.ok()) {
    failing_.store(false);
    WAVEKV_LOG(kDebug, "sealed a segment of {} tokens from position {}", segment->num_tokens(),
               segment->begin());
    return false;
  }
  const int64_t sealed_now = sealed_total_.load();
  if (sealed_now != job.sealed_before) {
    job.sealed_before = sealed_now;
    return true;
  }
  failures_total_.fetch_add(1);
  // Once, until a build succeeds again: an arena that is full fails them all.
  if (!failing_.exchange(true)) {
    WAVEKV_LOG(kWarning, "segments cannot be sealed and stay exact: {}",
               std::string(status.message()));
  }
  segment->MarkUnsealable();
  return false;
}

absl::Status BuildQueue::Build(Segment& segment, MemoryAccount& account, Backend& backend) {
  const KvShape shape{model_.head_dim_k, model_.head_dim_v, model_.kv_dtype};
  ClusteringOptions clustering_options;
  clustering_options.tokens_per_cluster = index_.tokens_per_cluster;
  clustering_options.cluster_tokens_max = index_.cluster_tokens_max;
  clustering_options.kmeans_iterations = index_.kmeans_iterations;
  clustering_options.seed = index_.seed;

  const Segment::Pin pin = segment.Read();
  auto sealed = std::make_unique<SealedSegment>();
  std::vector<KvRange> rows;
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    rows.clear();
    for (const auto& chunk : pin.chunks) rows.push_back(chunk->Range(head, chunk->capacity()));
    WAVEKV_ASSIGN_OR_RETURN(
        const Clustering clustering,
        ClusterRows(rows, shape, clustering_options, index_.clusters_per_super, backend));
    const ClusterIndexShape index_shape =
        IndexShape(clustering, shape, index_.statistics, index_.code_bits);
    WAVEKV_ASSIGN_OR_RETURN(Extent extent, account.Allocate(ClusterIndexBytes(index_shape)));
    const MutableClusterIndex index =
        FormatClusterIndex(extent.data(), index_shape, segment.begin());
    WriteClusterIndex(rows, clustering, index);
    sealed->heads.push_back({std::move(extent), ReadOnly(index)});
  }
  live_->fetch_add(1);
  sealed_total_.fetch_add(1);
  segment.Seal(std::shared_ptr<const SealedSegment>(sealed.release(),
                                                    [live = live_](const SealedSegment* gone) {
                                                      delete gone;
                                                      live->fetch_sub(1);
                                                    }));
  return absl::OkStatus();
}

}  // namespace wavekv
