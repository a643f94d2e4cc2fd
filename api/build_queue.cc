#include "api/build_queue.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "api/gpu_builder.h"
#include "compute/backend.h"
#include "index/segment_builder.h"
#include "storage/cluster_index.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Steps come first when both want a processor.
constexpr int kBuildNiceness = 10;

// What callers wait with when they name no deadline; condition variables take no infinite one.
constexpr std::chrono::hours kForever{24 * 365};

}  // namespace

BuildQueue::BuildQueue(const ModelSpec& model, const IndexOptions& index,
                       std::vector<std::unique_ptr<GpuBuilder>> gpu, StepObserver& observer,
                       const StepCount* steps)
    : model_(model), index_(index), observer_(observer), steps_(steps), gpu_(std::move(gpu)) {
  for (const auto& builder : gpu_) {
    threads_.emplace_back([this, builder = builder.get()] { RunThread(builder); });
  }
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
                     const SealTarget& target) {
  if (segments.empty()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const std::shared_ptr<Segment>& segment : segments)
      jobs_.push_back({.segments = {segment}, .target = target});
  }
  work_.notify_all();
}

void BuildQueue::AddMerges(const std::vector<SegmentRun>& runs, const SealTarget& target,
                           const std::weak_ptr<TenantStore>& tenant, int layer) {
  if (runs.empty()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const SegmentRun& run : runs) {
      jobs_.push_back({.segments = {run.begin(), run.end()},
                       .target = target,
                       .tenant = tenant,
                       .layer = layer});
    }
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

void BuildQueue::RunThread(GpuBuilder* gpu) {
  setpriority(PRIO_PROCESS, 0, kBuildNiceness);  // of this thread alone, on Linux
  BuildPace pace(steps_);
  const std::unique_ptr<Backend> backend = MakePacedBackend(pace);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    auto next = jobs_.end();
    work_.wait(lock, [&] {
      next = NextJob();
      return stop_ || (!paused_ && next != jobs_.end());
    });
    if (stop_) return;
    Job job = std::move(*next);
    jobs_.erase(next);
    ++running_;
    lock.unlock();
    const bool again = RunJob(job, {*backend, gpu});
    lock.lock();
    --running_;
    if (again && !stop_) jobs_.push_back(std::move(job));
    built_.notify_all();
    work_.notify_all();  // a merge may have waited for it
  }
}

std::deque<BuildQueue::Job>::iterator BuildQueue::NextJob() {
  return std::find_if(jobs_.begin(), jobs_.end(), [](const Job& job) {
    if (!job.is_merge()) return true;
    return std::none_of(job.segments.begin(), job.segments.end(), [](const auto& part) {
      const std::shared_ptr<Segment> segment = part.lock();
      return segment != nullptr && segment->state() == Segment::State::kPending;
    });
  });
}

bool BuildQueue::RunJob(Job& job, const Worker& worker) {
  if (job.is_merge()) {
    RunMerge(job, worker);
    return false;
  }
  const std::shared_ptr<Segment> segment = job.segments[0].lock();
  if (segment == nullptr) return false;
  absl::Status status;
  {
    const PhaseSpan span(&observer_, Phase::kBuild, /*layer=*/-1, segment->num_tokens());
    status = Build(*segment, job.target, worker);
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

void BuildQueue::RunMerge(const Job& job, const Worker& worker) {
  const std::shared_ptr<Segment> last = job.segments.back().lock();
  if (last == nullptr) return;  // nobody holds the run any more
  SegmentRun run;
  bool is_sealed = true;
  for (const std::weak_ptr<Segment>& part : job.segments) {
    run.push_back(part.lock());
    is_sealed &= run.back() != nullptr && run.back()->state() == Segment::State::kSealed;
  }
  if (!is_sealed) {
    last->EndMerge(nullptr);
    return;
  }
  absl::StatusOr<std::shared_ptr<Segment>> merged;
  {
    const PhaseSpan span(&observer_, Phase::kBuild, /*layer=*/-1,
                         last->end() - run.front()->begin());
    merged = Merge(run, job.target, worker);
  }
  if (!merged.ok()) {
    merge_failures_total_.fetch_add(1);
    WAVEKV_LOG(kInfo, "{} segments from position {} stay unmerged: {}", run.size(),
               run.front()->begin(), std::string(merged.status().message()));
    last->EndMerge(nullptr);
    return;
  }
  merges_total_.fetch_add(1);
  last->EndMerge(*merged);
  const std::shared_ptr<TenantStore> tenant = job.tenant.lock();
  if (tenant == nullptr) return;
  for (const auto& sequence : tenant->sequences()) sequence->layer(job.layer).TakeUpMerges();
  WAVEKV_LOG(kDebug, "merged {} segments from position {}", run.size(), run.front()->begin());
}

absl::Status BuildQueue::Build(Segment& segment, const SealTarget& target, const Worker& worker) {
  const Segment::Pin pin = segment.Read();
  auto sealed = std::make_unique<SealedSegment>();
  std::vector<GpuBuildSource> sources(model_.num_kv_heads);
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    std::vector<KvRange>& rows = sources[head].ranges;
    for (const auto& chunk : pin.chunks) rows.push_back(chunk->Range(head, chunk->capacity()));
    if (worker.gpu != nullptr) continue;
    WAVEKV_ASSIGN_OR_RETURN(SealedHead built,
                            BuildHead(rows, segment.begin(), target, worker.backend));
    sealed->heads.push_back(std::move(built));
  }
  if (worker.gpu != nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(
        sealed->heads,
        worker.gpu->Build(sources, segment.begin(), segment.num_tokens(), *target.account));
  }
  sealed_total_.fetch_add(1);
  segment.Seal(Share(std::move(sealed)));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Segment>> BuildQueue::Merge(const SegmentRun& run,
                                                           const SealTarget& target,
                                                           const Worker& worker) {
  const int64_t begin = run.front()->begin();
  const int64_t num_tokens = run.back()->end() - begin;
  const int64_t key_bytes = model_.key_row_bytes();
  const int64_t value_bytes = model_.value_row_bytes();
  std::vector<Segment::Pin> pins;
  for (const auto& part : run) pins.push_back(part->Read());

  auto sealed = std::make_unique<SealedSegment>();
  if (worker.gpu != nullptr) {
    std::vector<GpuBuildSource> sources(model_.num_kv_heads);
    for (int head = 0; head < model_.num_kv_heads; ++head) {
      for (const Segment::Pin& pin : pins) {
        sources[head].parts.push_back(&pin.sealed->heads[head].index);
      }
    }
    WAVEKV_ASSIGN_OR_RETURN(sealed->heads,
                            worker.gpu->Build(sources, begin, num_tokens, *target.account));
  }
  // In position order, so that the result is what sealing the rows at once would have given.
  std::vector<std::byte> keys(worker.gpu == nullptr ? num_tokens * key_bytes : 0);
  std::vector<std::byte> values(worker.gpu == nullptr ? num_tokens * value_bytes : 0);
  for (int head = 0; head < model_.num_kv_heads && worker.gpu == nullptr; ++head) {
    for (const Segment::Pin& pin : pins) {
      const SealedHead& part = pin.sealed->heads[head];
      const int64_t first_row = part.index.position_begin - begin;
      const auto copy = [&](int64_t token, const std::byte* key, const std::byte* value) {
        const int64_t row = first_row + token;
        std::memcpy(keys.data() + row * key_bytes, key, key_bytes);
        std::memcpy(values.data() + row * value_bytes, value, value_bytes);
      };
      WAVEKV_RETURN_IF_ERROR(ForEachRow(part, copy));
    }
    const std::vector<KvRange> rows = {{keys.data(), values.data(), num_tokens, begin, nullptr}};
    WAVEKV_ASSIGN_OR_RETURN(SealedHead built, BuildHead(rows, begin, target, worker.backend));
    sealed->heads.push_back(std::move(built));
  }
  auto merged = std::make_shared<Segment>(begin, begin + num_tokens, RowChunks());
  merged->Seal(Share(std::move(sealed)));
  return merged;
}

absl::StatusOr<SealedHead> BuildQueue::BuildHead(const std::vector<KvRange>& rows, int64_t begin,
                                                 const SealTarget& target, Backend& backend) {
  const KvShape shape{model_.head_dim_k, model_.head_dim_v, model_.kv_dtype};
  ClusteringOptions clustering_options;
  clustering_options.tokens_per_cluster = index_.tokens_per_cluster;
  clustering_options.cluster_tokens_max = index_.cluster_tokens_max;
  clustering_options.kmeans_iterations = index_.kmeans_iterations;
  clustering_options.seed = index_.seed;
  WAVEKV_ASSIGN_OR_RETURN(
      const Clustering clustering,
      ClusterRows(rows, shape, clustering_options, index_.clusters_per_super, backend));
  const ClusterIndexShape index_shape = IndexShape(
      clustering, shape, index_.statistics, ResolveCodeBits(index_.code_bits, model_.head_dim_k));
  const bool in_arena = target.row_tier == nullptr;
  SealedHead head;
  WAVEKV_ASSIGN_OR_RETURN(
      head.extent, target.account->Allocate(in_arena ? ClusterIndexBytes(index_shape)
                                                     : ClusterIndexOverheadBytes(index_shape)));
  MutableClusterIndex index = FormatClusterIndex(head.extent.data(), index_shape, begin);
  std::vector<std::byte> tier_rows;
  if (!in_arena) {
    tier_rows.resize(index_shape.num_tokens * (index.key_row_bytes() + index.value_row_bytes()));
    index.rows = tier_rows.data();
  }
  WAVEKV_RETURN_IF_ERROR(WriteClusterIndex(rows, clustering, backend, index));
  head.index = ReadOnly(index);
  if (!in_arena) {
    WAVEKV_ASSIGN_OR_RETURN(head.rows, target.row_tier->Store(head.index));
    head.index.rows = nullptr;
  }
  return head;
}

std::shared_ptr<const SealedSegment> BuildQueue::Share(std::unique_ptr<SealedSegment> sealed) {
  live_->fetch_add(1);
  return std::shared_ptr<const SealedSegment>(sealed.release(),
                                              [live = live_](const SealedSegment* gone) {
                                                delete gone;
                                                live->fetch_sub(1);
                                              });
}

}  // namespace wavekv
