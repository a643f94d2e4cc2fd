#include "tests/api/random_world.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <thread>
#include <utility>

#include "api/engine_test_peer.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/api/random_world_questions.h"

namespace wavekv::testing {
namespace {

constexpr size_t kHistoryMax = 30;
constexpr int64_t kStepsPerAudit = 16;

}  // namespace

std::string ToString(const WorldCounts& counts) {
  return fmt::format(
      "{} appends, {} attends ({} estimated), {} retrieves, {} refused, {} device errors, {} "
      "evicted, {} segments sealed, {} seal failures, {} merges",
      counts.appended, counts.attended, counts.estimated, counts.retrieved, counts.refused,
      counts.device_errors, counts.evicted, counts.sealed, counts.seal_failures, counts.merged);
}

RandomWorld::RandomWorld(uint64_t seed, const WorldShape& shape, Builds builds)
    : random_(seed), shape_(shape), builds_(builds) {}

RandomWorld::~RandomWorld() = default;

absl::Status RandomWorld::OpenTenants() {
  WAVEKV_ASSIGN_OR_RETURN(engine_, Engine::Open(shape_.options));
  model_ = engine_->options().model;
  EngineTestPeer::PauseBuilds(*engine_, builds_ == Builds::kBetweenSteps);
  for (int i = 0; i < shape_.num_tenants; ++i) {
    LiveTenant tenant;
    tenant.id = fmt::format("tenant{}", i);
    tenant.quota = DrawQuota();
    WAVEKV_ASSIGN_OR_RETURN(tenant.handle, engine_->OpenTenant(tenant.id, tenant.quota));
    state_.tenants.push_back(std::move(tenant));
  }
  return absl::OkStatus();
}

absl::Status RandomWorld::Step() {
  if (engine_ == nullptr) WAVEKV_RETURN_IF_ERROR(OpenTenants());
  ++step_;
  WAVEKV_RETURN_IF_ERROR(RunOperation());
  // Until then, rows that were read keep their segments alive.
  if (builds_ == Builds::kBetweenSteps) EngineTestPeer::WaitUntilAdmitted(*engine_);
  if (builds_ == Builds::kBetweenSteps && random_.Integer(0, 2) == 0) Drain();
  return CheckInvariants();
}

absl::Status RandomWorld::RunOperation() {
  const int64_t dice = random_.Integer(0, 999);
  if (state_.sequences.empty() || dice < 50) return Create();
  if (dice < 380) return Append();
  if (dice < 395) return AppendUnsound();
  if (dice < 455) return Fork();
  if (dice < 535) return TruncateSome();
  if (dice < 565) return Remove();
  if (dice < 595) return BuildAndWait();
  if (dice < 610) return UseStaleHandles();
  if (dice < 625) return SetQuota();
  if (dice < 629) return ReopenTenant();
  if (dice < 659) {
    const bool has_device = !shape_.options.tiers.directory.empty();
    return has_device && dice % 2 == 0 ? RunWithFailingDevice() : RunWithFailingAllocations();
  }
  if (dice < 750) return Retrieve();
  return Attend();
}

absl::Status RandomWorld::RunWithFailingAllocations() {
  const int64_t after = random_.Integer(0, 6);
  const int64_t count = random_.Integer(0, 3) == 0 ? 1000 : random_.Integer(1, 4);
  Note(fmt::format("allocations fail after {}, {} times, in:", after, count));
  EngineTestPeer::FailAllocations(*engine_, after, count);
  absl::Status status;
  switch (random_.Integer(0, 4)) {
    case 0:
      status = Fork();
      break;
    case 1:
      status = TruncateSome();
      break;
    case 2:
      Drain();
      break;
    default:
      status = Append();
  }
  EngineTestPeer::FailAllocations(*engine_, 0, 0);
  return status;
}

absl::Status RandomWorld::RunWithFailingDevice() {
  using Site = BackingFaults::Site;
  using Fault = BackingFaults::Fault;
  struct Failure {
    Site site;
    Fault fault;
  };
  static constexpr Failure kFailures[] = {
      {Site::kAllocate, Fault::kDiskFull}, {Site::kWrite, Fault::kIoError},
      {Site::kWrite, Fault::kShort},       {Site::kSubmit, Fault::kTransient},
      {Site::kRun, Fault::kIoError},       {Site::kRun, Fault::kTransient},
      {Site::kComplete, Fault::kShort},    {Site::kComplete, Fault::kCorrupt}};
  const Failure& failure = kFailures[random_.Integer(0, std::size(kFailures) - 1)];
  // Of reads all or none: which comes first is not ours to say.
  const bool writes = failure.site == Site::kAllocate || failure.site == Site::kWrite;
  const int64_t after = writes ? random_.Integer(0, 6) : 0;
  const int64_t count = failure.fault == Fault::kTransient || failure.fault == Fault::kShort
                            ? 3
                            : (writes ? random_.Integer(1, 4) : 1000000);
  Note(fmt::format("device fails (site {}, fault {}) after {}, {} times, in:",
                   static_cast<int>(failure.site), static_cast<int>(failure.fault), after, count));
  EngineTestPeer::EmptyCache(*engine_);
  EngineTestPeer::Faults(*engine_).Plant(failure.site, failure.fault, after, count);
  device_fails_ = true;
  absl::Status status;
  switch (random_.Integer(0, 5)) {
    case 0:
      status = Fork();
      break;
    case 1:
      status = TruncateSome();
      break;
    case 2:
      Drain();
      break;
    case 3:
      status = Retrieve();
      break;
    default:
      status = Attend();
  }
  EngineTestPeer::WaitUntilAdmitted(*engine_);
  EngineTestPeer::Faults(*engine_).Clear();
  device_fails_ = false;
  return status;
}

bool RandomWorld::IsOfDevice(const absl::Status& status) const {
  return device_fails_ && (absl::IsUnavailable(status) || absl::IsDataLoss(status));
}

absl::Status RandomWorld::Attend() {
  const std::vector<LiveSequence*> chosen = DrawBatch(3);
  const Question question = DrawQuestion(random_, model_, static_cast<int64_t>(chosen.size()));
  Note(fmt::format("attend {}", ToString(question)));
  std::vector<Sequence> handles;
  std::vector<const ModelSequence*> models;
  for (LiveSequence* sequence : chosen) {
    handles.push_back(sequence->handle);
    models.push_back(&sequence->model);
    state_.Touch(*sequence);
  }
  const auto asked = Ask(*engine_, random_, handles, question);
  if (IsOfDevice(asked.status())) {
    ++counts_.device_errors;
    return absl::OkStatus();
  }
  if (!asked.ok()) return asked.status();
  const Answer& answer = *asked;
  ++counts_.attended;
  if (answer.stats.tokens_estimated > 0) ++counts_.estimated;
  return CheckAnswer(question, answer, engine_->options(), models);
}

absl::Status RandomWorld::Retrieve() {
  // Which segments are sealed must not change between asking and checking.
  if (builds_ == Builds::kAnyTime) Drain();
  LiveSequence& sequence = state_.Pick(random_);
  const Question question = DrawQuestion(random_, model_, 1);
  Note(fmt::format("retrieve {}", ToString(question)));
  WAVEKV_ASSIGN_OR_RETURN(
      const Plan plan,
      engine_->MakePlan({{&sequence.handle, 1}, question.cu_seqlens}, question.options));
  state_.Touch(sequence);
  const auto retrieved = engine_->Retrieve(
      plan, question.layer,
      TensorView::Dense(question.queries.data(), DType::kFloat32, question.num_rows(),
                        model_.num_q_heads, model_.head_dim_k));
  if (IsOfDevice(retrieved.status())) {
    ++counts_.device_errors;
    return absl::OkStatus();
  }
  if (!retrieved.ok()) return retrieved.status();
  ++counts_.retrieved;
  return CheckRetrieved(question, *retrieved, model_, {&sequence.model},
                        {EngineTestPeer::SealedRuns(sequence.handle, question.layer)});
}

TenantQuota RandomWorld::DrawQuota() {
  TenantQuota quota;
  const int64_t arena_bytes = shape_.options.arena_bytes;
  if (random_.Integer(0, 1) == 0) {
    quota.host_bytes = random_.Integer(arena_bytes / 8, arena_bytes * 3 / 4);
  }
  if (random_.Integer(0, 4) == 0) quota.max_sequences = random_.Integer(1, 5);
  if (random_.Integer(0, 1) == 0) quota.on_limit = TenantQuota::OnLimit::kEvictOwn;
  const int64_t cache_bytes = shape_.options.tiers.cache_bytes;
  if (cache_bytes == 0) return quota;
  if (random_.Integer(0, 2) == 0) quota.backing_bytes = random_.Integer(1, arena_bytes);
  // Floors of all fit: at least half of the cache is slots.
  const int64_t floor_bytes = cache_bytes / 2 / shape_.num_tenants;
  if (random_.Integer(0, 1) == 0) quota.reserved_cache_bytes = random_.Integer(0, floor_bytes);
  if (random_.Integer(0, 2) == 0) {
    quota.cache_bytes = quota.reserved_cache_bytes + random_.Integer(1, floor_bytes / 4);
  }
  if (random_.Integer(0, 2) == 0) quota.cache_weight = 0.1 * random_.Integer(1, 50);
  return quota;
}

absl::Status RandomWorld::SetQuota() {
  LiveTenant& tenant = state_.tenants[random_.Integer(0, shape_.num_tenants - 1)];
  tenant.quota = DrawQuota();
  Note(fmt::format(
      "set quota of {}: {} bytes, {} sequences, on_limit {}, {} backing bytes, {} to {} "
      "cache bytes",
      tenant.id, tenant.quota.host_bytes, tenant.quota.max_sequences,
      static_cast<int>(tenant.quota.on_limit), tenant.quota.backing_bytes,
      tenant.quota.reserved_cache_bytes, tenant.quota.cache_bytes));
  return tenant.handle.SetQuota(tenant.quota);
}

absl::Status RandomWorld::ReopenTenant() {
  const int64_t i = random_.Integer(0, shape_.num_tenants - 1);
  LiveTenant& tenant = state_.tenants[i];
  Note(fmt::format("close and open {}", tenant.id));
  WAVEKV_RETURN_IF_ERROR(
      Expect(absl::StatusCode::kAlreadyExists, engine_->OpenTenant(tenant.id).status()));
  closed_tenant_ = tenant.handle;
  WAVEKV_RETURN_IF_ERROR(engine_->CloseTenant(closed_tenant_));
  std::erase_if(state_.sequences, [&](const auto& sequence) {
    if (sequence->tenant != static_cast<size_t>(i)) return false;
    stale_ = sequence->handle;
    return true;
  });
  tenant.quota = DrawQuota();
  tenant.evicted = 0;
  WAVEKV_ASSIGN_OR_RETURN(tenant.handle, engine_->OpenTenant(tenant.id, tenant.quota));
  return absl::OkStatus();
}

absl::Status RandomWorld::UseStaleHandles() {
  Note("use stale and foreign handles");
  const auto not_found = [this](const absl::Status& status) {
    return Expect(absl::StatusCode::kNotFound, status);
  };
  const int32_t cu_seqlens[] = {0, 1};
  for (const LiveTenant& tenant : state_.tenants) {
    WAVEKV_RETURN_IF_ERROR(not_found(tenant.handle.Truncate(stale_, 0)));
    WAVEKV_RETURN_IF_ERROR(not_found(tenant.handle.Fork(stale_).status()));
    WAVEKV_RETURN_IF_ERROR(not_found(tenant.handle.Remove(stale_)));
  }
  WAVEKV_RETURN_IF_ERROR(not_found(engine_->BuildSegments(stale_)));
  WAVEKV_RETURN_IF_ERROR(not_found(engine_->WaitForBuilds(stale_)));
  WAVEKV_RETURN_IF_ERROR(not_found(engine_->MakePlan({{&stale_, 1}, cu_seqlens}).status()));
  WAVEKV_RETURN_IF_ERROR(not_found(closed_tenant_.CreateSequence().status()));
  WAVEKV_RETURN_IF_ERROR(not_found(engine_->CloseTenant(closed_tenant_)));
  // A living sequence of another tenant is no better.
  const LiveSequence& other = state_.Pick(random_);
  const Tenant& stranger = state_.tenants[(other.tenant + 1) % state_.tenants.size()].handle;
  WAVEKV_RETURN_IF_ERROR(not_found(stranger.Remove(other.handle)));
  WAVEKV_RETURN_IF_ERROR(not_found(stranger.Truncate(other.handle, 0)));
  return not_found(stranger.Fork(other.handle).status());
}

void RandomWorld::Note(std::string operation) {
  history_.push_back(fmt::format("{}: {}", step_, operation));
  if (history_.size() > kHistoryMax) history_.pop_front();
}

std::string RandomWorld::History() const {
  std::string text;
  for (const std::string& line : history_) text += line + "\n";
  return text;
}

absl::StatusOr<bool> RandomWorld::Accepted(const absl::Status& status,
                                           const std::vector<const LiveSequence*>& keep,
                                           bool may_evict) {
  const size_t before = state_.sequences.size();
  WAVEKV_RETURN_IF_ERROR(state_.NoteEvictions(may_evict, keep));
  const auto evicted = static_cast<int64_t>(before - state_.sequences.size());
  counts_.evicted += evicted;
  if (status.ok()) return true;
  if (IsOfDevice(status)) {
    ++counts_.device_errors;
    Note("  device error");
    return false;
  }
  Note(fmt::format("  {} evicted, then {}", evicted, status.ToString()));
  if (status.code() != absl::StatusCode::kResourceExhausted) {
    return absl::InternalError("unexpected: " + status.ToString());
  }
  ++counts_.refused;
  return false;
}

absl::Status RandomWorld::Expect(absl::StatusCode expected, const absl::Status& got) {
  if (got.code() == expected) return absl::OkStatus();
  return absl::InternalError(
      fmt::format("expected {}, got {}", absl::StatusCodeToString(expected), got.ToString()));
}

void RandomWorld::Drain() {
  EngineTestPeer::PauseBuilds(*engine_, false);
  while (engine_->stats().segments_pending > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  EngineTestPeer::PauseBuilds(*engine_, builds_ == Builds::kBetweenSteps);
}

absl::Status RandomWorld::CheckInvariants() {
  const bool audits = step_ % kStepsPerAudit == 0;
  if (builds_ == Builds::kAnyTime && audits) Drain();
  if (audits) EngineTestPeer::WaitUntilAdmitted(*engine_);
  const bool quiet = builds_ == Builds::kBetweenSteps;
  WAVEKV_RETURN_IF_ERROR(state_.Check(*engine_, quiet));
  if (!audits) return absl::OkStatus();
  if (!EngineTestPeer::FreeBytesAreZero(*engine_)) {
    return absl::InternalError("a freed byte was not wiped");
  }
  return EngineTestPeer::Audit(*engine_);
}

absl::Status RandomWorld::Finish() {
  if (engine_ == nullptr) return absl::OkStatus();
  for (const auto& sequence : state_.sequences) {
    WAVEKV_RETURN_IF_ERROR(state_.tenants[sequence->tenant].handle.Remove(sequence->handle));
  }
  state_.sequences.clear();
  Drain();
  EngineTestPeer::WaitUntilAdmitted(*engine_);
  WAVEKV_RETURN_IF_ERROR(state_.Check(*engine_, /*quiet=*/true));
  WAVEKV_RETURN_IF_ERROR(EngineTestPeer::Audit(*engine_));
  const EngineStats stats = engine_->stats();
  if (stats.arena_bytes_used != 0 || stats.segments_sealed != 0) {
    return absl::InternalError(fmt::format("{} bytes and {} segments outlived their sequences",
                                           stats.arena_bytes_used, stats.segments_sealed));
  }
  return EngineTestPeer::FreeBytesAreZero(*engine_)
             ? absl::OkStatus()
             : absl::InternalError("a freed byte was not wiped");
}

WorldCounts RandomWorld::counts() const {
  WorldCounts counts = counts_;
  if (engine_ == nullptr) return counts;
  counts.sealed = engine_->stats().segments_sealed_total;
  counts.seal_failures = engine_->stats().seal_failures_total;
  counts.merged = engine_->stats().segment_merges_total;
  return counts;
}

}  // namespace wavekv::testing
