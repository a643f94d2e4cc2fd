#include "wavekv/engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "api/append_source.h"
#include "api/check_arguments.h"
#include "api/engine_impl.h"
#include "api/gpu_builder.h"
#include "cpu/cpu_backend.h"
#include "fmt/format.h"
#include "storage/log_message.h"
#include "storage/status_macros.h"
#include "wavekv/merge_states.h"
#include "wavekv/version.h"

namespace wavekv {
namespace {

constexpr size_t kTenantIdBytesMax = 128;

// Below so many sealed tokens zones take as long as exact attention, on a CPU with AVX-512 and on
// one thread: longer with one query head a kv head, less long with four (docs/report.md).
constexpr int64_t kExactBelowTokens = 2048;

absl::Status TenantNotFound() {
  return absl::NotFoundError("tenant: no such tenant (never opened here, or closed)");
}

StoreQuota ToStoreQuota(const TenantQuota& quota) {
  return {quota.host_bytes,
          quota.max_sequences,
          quota.on_limit == TenantQuota::OnLimit::kEvictOwn,
          {quota.backing_bytes, quota.cache_bytes, quota.reserved_cache_bytes, quota.cache_weight}};
}

// Calls that read tiers at a time.
constexpr int kFetches = 4;

absl::StatusOr<std::shared_ptr<RowTiers>> OpenTiers(const EngineOptions& options,
                                                    const ModelSpec& model) {
  RowTiersOptions tiers;
  tiers.directory = options.tiers.directory;
  tiers.backing.capacity_bytes = options.tiers.backing_bytes;
  tiers.kv = {model.head_dim_k, model.head_dim_v, model.kv_dtype};
  tiers.block_tokens = options.tiers.block_tokens;
  tiers.cache_bytes = options.tiers.cache_bytes;
  WAVEKV_ASSIGN_OR_RETURN(tiers.replacement, ParseReplacementKind(options.tiers.replacement));
  tiers.num_fetches = kFetches;
  tiers.prefault_threads = options.tiers.prefault_threads;
  // A piece of a zone may want a token of every block; one of exact attention reads neighbours. A
  // piece ends with the cluster that fills it, and each of its segments with a block that may not
  // be full.
  const int64_t cluster_tokens = options.index.cluster_tokens_max;
  const BlockShape shape = BlockShape::Of(tiers.kv, tiers.block_tokens);
  const int64_t exact_tokens = kExactPieceTokens + cluster_tokens;
  const int64_t num_segments = exact_tokens / options.index.update_tokens + 2;
  tiers.fetch_blocks_min = std::max(kZonePieceTokens + cluster_tokens,
                                    shape.num_blocks(exact_tokens) + 1 + num_segments);
  return RowTiers::Create(tiers);
}

absl::StatusOr<std::shared_ptr<GpuContext>> OpenGpuContext(const EngineOptions& options,
                                                           const ModelSpec& model) {
  if (!options.tiers.directory.empty()) {
    return absl::UnimplementedError(
        "tiers.directory must be empty with device: CUDA engines keep all rows on the device");
  }
  std::shared_ptr<Gpu> gpu = GpuForTests();
  if (gpu == nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(gpu, OpenGpu(options.gpu.device));
  }
  int64_t workspace_bytes = options.gpu.workspace_bytes;
  if (workspace_bytes == 0) {
    workspace_bytes = options.build_threads * Arena::RoundUp(GpuBuilder::WorkspaceBytes(
                                                  gpu->operations(), model, options.index)) +
                      std::clamp(options.arena_bytes / 4, int64_t{64} << 20, int64_t{2} << 30);
  }
  return GpuContext::Create(std::move(gpu), options.gpu.staging_bytes, workspace_bytes);
}

int NumWorkerThreads(const EngineOptions& options) {
  if (options.worker_threads > 0) return options.worker_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Reads tiers for one call. What it has requested outlives it, however it ends, until it is in the
// cache.
class StepFetch {
 public:
  // `views`: what the call has pinned.
  StepFetch(FetchLease lease, const std::vector<SequenceView>& views)
      : lease_(std::move(lease)), views_(views) {}
  ~StepFetch() {
    if (lease_.get() == nullptr || !lease_->has_leftovers()) return;
    for (const SequenceView& view : views_) {
      for (const Segment::Pin& pin : view.pins) {
        if (pin.sealed != nullptr) lease_->Keep(pin.sealed);
      }
    }
  }
  StepFetch(const StepFetch&) = delete;
  StepFetch& operator=(const StepFetch&) = delete;

  BlockFetch* get() const { return lease_.get(); }

 private:
  const FetchLease lease_;
  const std::vector<SequenceView>& views_;
};

}  // namespace

std::shared_ptr<Gpu>& GpuForTests() {
  static auto* const gpu = new std::shared_ptr<Gpu>;
  return *gpu;
}

uint64_t Sequence::id() const { return stored_ == nullptr ? 0 : stored_->id(); }

bool Sequence::valid() const { return stored_ != nullptr && !stored_->removed(); }

int64_t Sequence::length() const { return valid() ? stored_->length() : 0; }

int64_t Plan::num_rows() const { return state_ == nullptr ? 0 : state_->cu_seqlens.back(); }

absl::StatusOr<Sequence> Tenant::CreateSequence() const {
  if (store_ == nullptr) return TenantNotFound();
  WAVEKV_ASSIGN_OR_RETURN(std::shared_ptr<StoredSequence> stored, store_->CreateSequence());
  return Sequence(std::move(stored));
}

absl::StatusOr<Sequence> Tenant::Fork(const Sequence& parent,
                                      std::optional<int64_t> prefix_tokens) const {
  if (store_ == nullptr) return TenantNotFound();
  WAVEKV_ASSIGN_OR_RETURN(std::shared_ptr<StoredSequence> stored,
                          store_->Fork(parent.stored_, prefix_tokens));
  return Sequence(std::move(stored));
}

absl::Status Tenant::Truncate(const Sequence& sequence, int64_t new_length) const {
  if (store_ == nullptr) return TenantNotFound();
  return store_->Truncate(sequence.stored_, new_length);
}

absl::Status Tenant::Remove(const Sequence& sequence) const {
  if (store_ == nullptr) return TenantNotFound();
  return store_->Remove(sequence.stored_);
}

absl::Status Tenant::SetQuota(const TenantQuota& quota) const {
  if (store_ == nullptr || store_->closed()) return TenantNotFound();
  WAVEKV_RETURN_IF_ERROR(ValidateTenantQuota(quota));
  return store_->SetQuota(ToStoreQuota(quota));
}

absl::StatusOr<TenantStats> Tenant::stats() const {
  if (store_ == nullptr || store_->closed()) return TenantNotFound();
  return StatsOf(*store_);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& requested) {
  WAVEKV_RETURN_IF_ERROR(ValidateEngineOptions(requested));
  auto impl = std::make_unique<Impl>();
  impl->options = requested;
  ModelSpec& model = impl->options.model;
  if (model.head_dim_v == 0) model.head_dim_v = model.head_dim_k;

  impl->executor = requested.executor;
  if (impl->executor == nullptr) impl->executor = MakeThreadPool(NumWorkerThreads(requested));
  impl->backend = MakeCpuBackend(impl->executor.get());

  impl->context = std::make_shared<StoreContext>();
  impl->context->model = model;
  const IndexOptions& index = requested.index;
  impl->context->cut_rule = {index.segment_tokens, index.update_tokens, index.sink_tokens,
                             index.window_tokens, index.merge_segments};
  std::vector<std::unique_ptr<GpuBuilder>> builders(requested.build_threads);
  if (requested.device == Device::kCuda) {
    WAVEKV_ASSIGN_OR_RETURN(std::shared_ptr<GpuContext> gpu, OpenGpuContext(requested, model));
    WAVEKV_ASSIGN_OR_RETURN(std::unique_ptr<ArenaMemory> memory,
                            MakeGpuArenaMemory(gpu, requested.arena_bytes));
    impl->context->arena = Arena::Create(std::move(memory));
    impl->context->await_releases = [gpu = std::weak_ptr<GpuContext>(gpu)] {
      const std::shared_ptr<GpuContext> open = gpu.lock();
      return open != nullptr && open->CollectAll();
    };
    for (auto& builder : builders) {
      WAVEKV_ASSIGN_OR_RETURN(builder, GpuBuilder::Create(gpu, model, impl->options.index));
    }
    impl->gpu =
        std::make_unique<GpuEngine>(std::move(gpu), model, impl->options.index, *impl->backend);
  } else {
    WAVEKV_ASSIGN_OR_RETURN(impl->context->arena,
                            Arena::Create(requested.arena_bytes, requested.prefault_threads));
  }
  if (!requested.tiers.directory.empty()) {
    WAVEKV_ASSIGN_OR_RETURN(impl->row_tiers, OpenTiers(requested, model));
  }
  WAVEKV_ASSIGN_OR_RETURN(impl->observer, StepObserver::Create(requested.trace_path));
  // With a processor of their own builds are in nobody's way.
  const bool share_processors =
      impl->gpu == nullptr &&
      static_cast<unsigned>(impl->executor->num_workers() + requested.build_threads) >
          std::thread::hardware_concurrency();
  impl->builds = std::make_unique<BuildQueue>(model, index, std::move(builders), *impl->observer,
                                              share_processors ? &impl->steps : nullptr);
  WAVEKV_LOG(
      kInfo,
      "engine opened, wavekv {}: {} layers, {} query and {} kv heads, head_dim {} and {}, {}, "
      "arena of {} bytes, {} worker and {} build threads",
      Version(), model.num_layers, model.num_q_heads, model.num_kv_heads, model.head_dim_k,
      model.head_dim_v, DTypeName(model.kv_dtype), requested.arena_bytes,
      impl->executor->num_workers(), requested.build_threads);
  if (impl->row_tiers != nullptr) {
    const BackingFile& file = impl->row_tiers->file();
    WAVEKV_LOG(kInfo,
               "rows of sealed segments in {}: blocks of {} tokens and {} bytes, cache of {} bytes "
               "({}), {} I/O by {}, opened in {:.3f} s",
               requested.tiers.directory, impl->row_tiers->shape().tokens,
               impl->row_tiers->shape().bytes, requested.tiers.cache_bytes,
               requested.tiers.replacement, file.direct() ? "direct" : "buffered",
               file.engine() == IoEngine::kIoUring ? "io_uring" : "threads",
               impl->row_tiers->stats().open_seconds);
  }
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() {
  impl_->builds.reset();
  if (const std::string& path = impl_->observer->trace_path(); !path.empty()) {
    const absl::Status status = impl_->observer->WriteTrace(path);
    if (!status.ok()) WAVEKV_LOG(kError, "no trace: {}", std::string(status.message()));
  }
  if (impl_->row_tiers != nullptr) impl_->row_tiers->Stop();
  if (impl_->gpu != nullptr) impl_->gpu->context().CollectAll();
  for (const auto& tenant : impl_->AllTenants()) tenant->Close();
  impl_->context->arena->ReleasePages();
  // Handles of tenants may outlive the engine.
  if (impl_->row_tiers != nullptr && impl_->row_tiers->file().space().used_bytes == 0) {
    impl_->row_tiers->Release();
  }
  WAVEKV_LOG(kInfo, "engine closed");
}

const EngineOptions& Engine::options() const { return impl_->options; }

absl::StatusOr<Tenant> Engine::OpenTenant(absl::string_view id) {
  return OpenTenant(id, impl_->options.default_quota);
}

absl::StatusOr<Tenant> Engine::OpenTenant(absl::string_view id, const TenantQuota& quota) {
  if (id.empty() || id.size() > kTenantIdBytesMax) {
    return absl::InvalidArgumentError(
        fmt::format("tenant id must have 1 to {} bytes, got {}", kTenantIdBytesMax, id.size()));
  }
  WAVEKV_RETURN_IF_ERROR(ValidateTenantQuota(quota));
  const auto already_exists = [] {
    return absl::AlreadyExistsError("tenant id: a tenant of that id is open");
  };
  {
    // Before its shares, which may not be there twice.
    std::lock_guard<std::mutex> lock(impl_->mutex);
    if (impl_->tenants.count(std::string(id)) > 0) return already_exists();
  }
  const StoreQuota store_quota = ToStoreQuota(quota);
  std::shared_ptr<RowTier> row_tier;
  if (impl_->row_tiers != nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(row_tier, impl_->row_tiers->AddTenant(store_quota.rows));
  }
  auto store = std::make_shared<TenantStore>(std::string(id), impl_->context, store_quota,
                                             std::move(row_tier));
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    if (!impl_->tenants.emplace(std::string(id), store).second) {
      return already_exists();
    }
  }
  // Outside of the lock: the sink may call the engine.
  WAVEKV_LOG(kDebug, "tenant {} opened", store->label());
  return Tenant(std::move(store));
}

absl::Status Engine::CloseTenant(const Tenant& tenant) {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    const auto found =
        std::find_if(impl_->tenants.begin(), impl_->tenants.end(),
                     [&](const auto& entry) { return entry.second == tenant.store_; });
    if (found == impl_->tenants.end()) return TenantNotFound();
    impl_->tenants.erase(found);
  }
  tenant.store_->Close();
  WAVEKV_LOG(kDebug, "tenant {} closed", tenant.store_->label());
  return absl::OkStatus();
}

std::vector<std::shared_ptr<StoredSequence>> Engine::Stored(absl::Span<const Sequence> sequences) {
  std::vector<std::shared_ptr<StoredSequence>> stored;
  stored.reserve(sequences.size());
  for (const Sequence& sequence : sequences) stored.push_back(sequence.stored_);
  return stored;
}

absl::Status Engine::Append(const RaggedBatch& batch, int layer, const TensorView& keys,
                            const TensorView& values, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  const auto sequences = Impl::SequencesOf(batch);
  const ModelSpec& model = impl_->options.model;
  WAVEKV_RETURN_IF_ERROR(impl_->CheckLayer(layer));
  WAVEKV_RETURN_IF_ERROR(impl_->CheckBatch(sequences, batch.cu_seqlens));
  const int64_t num_rows = batch.cu_seqlens.back();
  const bool on_gpu = impl_->gpu != nullptr;
  WAVEKV_RETURN_IF_ERROR(
      CheckTensor({"keys", num_rows, model.num_kv_heads, model.head_dim_k, on_gpu}, keys));
  WAVEKV_RETURN_IF_ERROR(
      CheckTensor({"values", num_rows, model.num_kv_heads, model.head_dim_v, on_gpu}, values));
  WAVEKV_RETURN_IF_ERROR(CheckSameMemory("keys", keys.memory, "values", values.memory));
  return impl_->Append(sequences, batch.cu_seqlens, layer, TensorSource(keys, values), stream);
}

absl::Status Engine::AppendPaged(const RaggedBatch& batch, int layer, const PagedView& keys,
                                 const PagedView& values, const PageTable& table, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  const auto sequences = Impl::SequencesOf(batch);
  WAVEKV_RETURN_IF_ERROR(impl_->CheckLayer(layer));
  WAVEKV_RETURN_IF_ERROR(impl_->CheckBatch(sequences, batch.cu_seqlens));
  const PagedSource source(keys, values, table);
  WAVEKV_RETURN_IF_ERROR(
      source.CheckViews(impl_->options.model, sequences.size(), impl_->gpu != nullptr));
  return impl_->Append(sequences, batch.cu_seqlens, layer, source, stream);
}

absl::Status Engine::BuildSegments(const Sequence& sequence) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckSequence(sequence.stored_));
  WAVEKV_ASSIGN_OR_RETURN(const SequenceWriter writer, SequenceWriter::Acquire(sequence.stored_));
  StoredSequence& stored = writer.sequence();
  for (int layer = 0; layer < stored.num_layers(); ++layer) {
    LayerCache& cache = stored.layer(layer);
    impl_->builds->Add(cache.RetryUnsealable(), stored.seal_target());
    impl_->builds->Add(cache.Cut(/*decoding=*/true), stored.seal_target());
    impl_->builds->AddMerges(cache.BeginMerges(), stored.seal_target(), stored.tenant(), layer);
  }
  return absl::OkStatus();
}

absl::Status Engine::WaitForBuilds(const Sequence& sequence, absl::Duration timeout) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckSequence(sequence.stored_));
  const StoredSequence& stored = *sequence.stored_;
  int64_t num_unsealable = 0;
  const auto built = [&] {
    num_unsealable = 0;
    for (int layer = 0; layer < stored.num_layers(); ++layer) {
      for (const auto& segment : stored.layer(layer).Snapshot().segments) {
        const Segment::State state = segment->state();
        if (state == Segment::State::kPending || segment->is_merging()) return false;
        if (state == Segment::State::kUnsealable) ++num_unsealable;
      }
    }
    return true;
  };
  const absl::Time deadline =
      timeout == absl::InfiniteDuration() ? absl::InfiniteFuture() : absl::Now() + timeout;
  if (!impl_->builds->WaitUntil(built, deadline)) {
    return absl::DeadlineExceededError(
        fmt::format("timeout: sequence {} still has pending segments after {}", stored.id(),
                    absl::FormatDuration(timeout)));
  }
  if (num_unsealable > 0) {
    return absl::ResourceExhaustedError(fmt::format(
        "sequence {}: {} segments could not be sealed for want of memory or of room in the "
        "backing file, and stay exact; host memory: available {} bytes in the arena, quota {}, "
        "used {}",
        stored.id(), num_unsealable, impl_->context->arena->free_bytes(),
        stored.account().quota_bytes(), stored.account().used_bytes()));
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> Engine::MakePlan(const RaggedBatch& batch, const AttendOptions& options) {
  WAVEKV_RETURN_IF_ERROR(ValidateAttendOptions(options));
  if (impl_->gpu != nullptr && options.exact_below_tokens > 0) {
    return absl::UnimplementedError(fmt::format(
        "exact_below_tokens must be 0 or -1 with a GPU, got {}", options.exact_below_tokens));
  }
  auto sequences = Stored(batch.sequences);
  WAVEKV_RETURN_IF_ERROR(impl_->CheckBatch(sequences, batch.cu_seqlens));
  auto state = std::make_shared<PlanState>();
  state->context = impl_->context;
  state->options = options;
  if (options.exact_below_tokens < 0) {
    const bool waits = options.miss_deadline == absl::InfiniteDuration();
    const bool ranks_always = impl_->gpu != nullptr || !waits;
    state->options.exact_below_tokens =
        ranks_always ? 0 : std::min(kExactBelowTokens, 2 * impl_->options.index.update_tokens);
  }
  state->sequences = std::move(sequences);
  state->cu_seqlens.assign(batch.cu_seqlens.begin(), batch.cu_seqlens.end());
  return Plan(std::move(state));
}

absl::StatusOr<AttendStats> Engine::Attend(const Plan& plan, int layer, const TensorView& queries,
                                           const MutableTensorView& output, const PerHeadView& lse,
                                           const PerHeadView& error_estimate, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  const ModelSpec& model = impl_->options.model;
  const bool on_gpu = impl_->gpu != nullptr;
  WAVEKV_RETURN_IF_ERROR(impl_->CheckLayer(layer));
  WAVEKV_RETURN_IF_ERROR(CheckTensor(
      {"queries", plan.num_rows(), model.num_q_heads, model.head_dim_k, on_gpu}, queries));
  WAVEKV_RETURN_IF_ERROR(CheckTensor(
      {"output", plan.num_rows(), model.num_q_heads, model.head_dim_v, on_gpu}, output));
  WAVEKV_RETURN_IF_ERROR(CheckSameMemory("queries", queries.memory, "output", output.memory));
  WAVEKV_RETURN_IF_ERROR(CheckPerHead("lse", plan.num_rows(), model.num_q_heads, lse));
  WAVEKV_RETURN_IF_ERROR(
      CheckPerHead("error_estimate", plan.num_rows(), model.num_q_heads, error_estimate));

  StepObserver& observer = *impl_->observer;
  const PhaseSpan span(&observer, Phase::kAttend, layer, plan.num_rows());
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  if (state.options.reserve_tokens > 0) {
    WAVEKV_RETURN_IF_ERROR(CheckStepHasBegun(state));
    if (on_gpu) {
      WAVEKV_RETURN_IF_ERROR(CheckOnDevice("queries", queries.memory));
      WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(queries.memory, stream));
      impl_->attend_calls += 1;
      impl_->attend_rows += plan.num_rows();
      return impl_->gpu->AttendStep(state.gpu, layer, queries, output, lse, error_estimate, queue);
    }
  }
  {
    const PhaseSpan pin(&observer, Phase::kPin, layer, plan.num_rows());
    WAVEKV_RETURN_IF_ERROR(impl_->PinStep(state, layer));
  }
  AttendStats stats;
  if (on_gpu) {
    WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(queries.memory, stream));
    WAVEKV_ASSIGN_OR_RETURN(
        stats, impl_->gpu->Attend(state.gpu, state.workspace.batch.views, state.options, queries,
                                  output, lse, error_estimate, queue));
  } else {
    const StepCount::Step counted(impl_->steps);
    const BlockReader::TimePoint deadline = DeadlineAfter(state.options.miss_deadline);
    const StepFetch fetch(impl_->AcquireFetch(state, layer, deadline), state.workspace.batch.views);
    const StepMachine machine = impl_->machine();
    AttendStep step(model, state.options, machine, state.workspace, observer, layer, fetch.get(),
                    deadline);
    WAVEKV_RETURN_IF_ERROR(step.LoadQueries(queries));
    WAVEKV_RETURN_IF_ERROR(step.Attend(&stats));
    WAVEKV_RETURN_IF_ERROR(step.StoreOutputs(output, lse, error_estimate));
    if (const BlockFetch* const reads = fetch.get(); reads != nullptr) {
      stats.blocks_hit = reads->num_hits();
      stats.blocks_missed = reads->num_misses();
      stats.tier_bytes_read = reads->bytes_read();
    }
  }

  impl_->attend_calls += 1;
  impl_->attend_rows += stats.rows;
  impl_->tokens_visible += stats.tokens_visible;
  impl_->tokens_exact += stats.tokens_exact;
  impl_->tokens_estimated += stats.tokens_estimated;
  impl_->tokens_degraded += stats.tokens_degraded;
  impl_->bytes_dense += stats.bytes_dense;
  impl_->bytes_read += stats.bytes_read;
  state.last_stats = stats;
  return stats;
}

absl::StatusOr<std::vector<RetrievedTokens>> Engine::Retrieve(const Plan& plan, int layer,
                                                              const TensorView& queries,
                                                              Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  const ModelSpec& model = impl_->options.model;
  const bool on_gpu = impl_->gpu != nullptr;
  WAVEKV_RETURN_IF_ERROR(impl_->CheckLayer(layer));
  WAVEKV_RETURN_IF_ERROR(CheckTensor(
      {"queries", plan.num_rows(), model.num_q_heads, model.head_dim_k, on_gpu}, queries));

  const PhaseSpan span(impl_->observer.get(), Phase::kRetrieve, layer, plan.num_rows());
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  {
    const PhaseSpan pin(impl_->observer.get(), Phase::kPin, layer, plan.num_rows());
    WAVEKV_RETURN_IF_ERROR(impl_->PinStep(state, layer));
  }
  if (on_gpu) {
    WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(queries.memory, stream));
    return impl_->gpu->Retrieve(state.gpu, state.workspace.batch.views, state.options, queries,
                                queue);
  }
  // Rows are read only to measure errors.
  const BlockReader::TimePoint deadline = DeadlineAfter(state.options.miss_deadline);
  const bool reads = state.options.target_error > 0.0;
  const StepFetch fetch(reads ? impl_->AcquireFetch(state, layer, deadline) : FetchLease(),
                        state.workspace.batch.views);
  const StepMachine machine = impl_->machine();
  AttendStep step(model, state.options, machine, state.workspace, *impl_->observer, layer,
                  fetch.get(), deadline);
  WAVEKV_RETURN_IF_ERROR(step.LoadQueries(queries));
  return step.Retrieve();
}

absl::Status Engine::MergeStates(absl::Span<const TensorView> outputs,
                                 absl::Span<const PerHeadView> lses, LseBase base,
                                 const MutableTensorView& output, const PerHeadView& lse,
                                 Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  const bool on_gpu = impl_->gpu != nullptr;
  if (!on_gpu || output.memory != Memory::kDevice) {
    return wavekv::MergeStates(outputs, lses, base, output, lse);
  }
  WAVEKV_RETURN_IF_ERROR(CheckMergeArguments(outputs, lses, base, output, lse, on_gpu));
  WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(output.memory, stream));
  return impl_->gpu->MergeStates(outputs, lses, base, output, lse, queue);
}

absl::Status Engine::WriteTrace(const std::string& path) const {
  return impl_->observer->WriteTrace(path);
}

}  // namespace wavekv
