#include "tests/storage_cases/case_world.h"

#include <optional>
#include <utility>

#include "api/engine_config.h"
#include "api/engine_test_peer.h"
#include "google/protobuf/text_format.h"
#include "storage/status_macros.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/step_checks.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {
namespace {

bool UsesTenant(const v1::Step& step) {
  return !step.has_open_tenant() && !step.has_fault() && !step.has_parallel();
}

bool UsesSequence(const v1::Step& step) {
  return UsesTenant(step) && !step.has_close_tenant() && !step.has_set_quota() &&
         !step.has_create_sequence();
}

}  // namespace

CaseWorld::CaseWorld(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), model_(engine_->options().model) {}

absl::Status CaseWorld::ResolveTenant(const v1::Step& step) {
  if (!UsesTenant(step) || tenants_.contains(TenantOf(step))) return absl::OkStatus();
  WAVEKV_ASSIGN_OR_RETURN(tenants_[TenantOf(step)], engine_->OpenTenant(TenantOf(step)));
  return absl::OkStatus();
}

absl::Status CaseWorld::ResolveSequence(const v1::Step& step) {
  if (!UsesSequence(step) || sequences_.contains(SequenceOf(step))) return absl::OkStatus();
  return Create(step);
}

absl::Status CaseWorld::CheckNames(const v1::Step& step) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (UsesTenant(step) && !tenants_.contains(TenantOf(step))) {
    return absl::NotFoundError("no tenant is called " + TenantOf(step));
  }
  if (UsesSequence(step) && !sequences_.contains(SequenceOf(step))) {
    return absl::NotFoundError("no sequence is called " + SequenceOf(step));
  }
  return absl::OkStatus();
}

absl::Status CaseWorld::Do(const v1::Step& step, bool in_group, StepNumbers& numbers,
                           std::vector<QueryAnswer>& answers) {
  WAVEKV_RETURN_IF_ERROR(CheckNames(step));
  switch (step.op_case()) {
    case v1::Step::kOpenTenant:
      return OpenTenant(step);
    case v1::Step::kCloseTenant:
      return engine_->CloseTenant(TenantNamed(step));
    case v1::Step::kSetQuota: {
      WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                              TenantQuotaFromProto(step.set_quota().quota()));
      return TenantNamed(step).SetQuota(quota);
    }
    case v1::Step::kCreateSequence:
      return Create(step);
    case v1::Step::kAppend:
      return Append(SequenceOf(step), step.append());
    case v1::Step::kBuild: {
      const Sequence sequence = Handle(SequenceOf(step));
      WAVEKV_RETURN_IF_ERROR(engine_->BuildSegments(sequence));
      return engine_->WaitForBuilds(sequence);
    }
    case v1::Step::kQuery:
      return Query(step, in_group, numbers, answers);
    case v1::Step::kRetrieve:
      return Retrieve(step, in_group, numbers);
    case v1::Step::kFork:
      return Fork(step);
    case v1::Step::kTruncate:
      return Truncate(step);
    case v1::Step::kRemove:
      return TenantNamed(step).Remove(Handle(SequenceOf(step)));
    case v1::Step::kFault:
      return PlantFault(step.fault());
    default:
      return absl::InternalError("the runner does not know this operation");
  }
}

absl::Status CaseWorld::PlantFault(const v1::Fault& fault) {
  const bool has_tiers = !engine_->options().tiers.directory.empty();
  if (fault.kind_case() != v1::Fault::kRefuseAllocations && has_tiers) {
    // What calls that have ended still read would meet it as well.
    EngineTestPeer::WaitUntilAdmitted(*engine_);
    EngineTestPeer::Faults(*engine_).Clear();
  } else if (fault.has_device() || fault.has_empty_cache()) {
    return absl::InvalidArgumentError("fault: only an engine with tiers has a device and a cache");
  }
  if (fault.has_empty_cache()) {
    EngineTestPeer::EmptyCache(*engine_);
    return absl::OkStatus();
  }
  if (!fault.has_device()) {
    const auto& refuse = fault.refuse_allocations();
    EngineTestPeer::FailAllocations(*engine_, static_cast<int64_t>(refuse.after()),
                                    static_cast<int64_t>(refuse.count()));
    return absl::OkStatus();
  }
  using Site = BackingFaults::Site;
  using Kind = BackingFaults::Fault;
  const v1::Fault::Device& device = fault.device();
  const auto plant = [&](Site site, Kind kind) {
    EngineTestPeer::Faults(*engine_).Plant(site, kind, static_cast<int64_t>(device.after()),
                                           static_cast<int64_t>(device.count()),
                                           std::chrono::milliseconds(device.delay_ms()));
    return absl::OkStatus();
  };
  switch (device.kind()) {
    case v1::Fault::Device::READ_ERROR:
      return plant(Site::kComplete, Kind::kIoError);
    case v1::Fault::Device::CORRUPT_BLOCK:
      return plant(Site::kComplete, Kind::kCorrupt);
    case v1::Fault::Device::SLOW_READ:
      return plant(Site::kComplete, Kind::kDelay);
    case v1::Fault::Device::WRITE_ERROR:
      return plant(Site::kWrite, Kind::kIoError);
    case v1::Fault::Device::DISK_FULL:
      return plant(Site::kAllocate, Kind::kDiskFull);
    default:
      return absl::InvalidArgumentError("fault.device.kind must be given");
  }
}

absl::Status CaseWorld::OpenTenant(const v1::Step& step) {
  Tenant tenant;
  if (step.open_tenant().has_quota()) {
    WAVEKV_ASSIGN_OR_RETURN(const TenantQuota quota,
                            TenantQuotaFromProto(step.open_tenant().quota()));
    WAVEKV_ASSIGN_OR_RETURN(tenant, engine_->OpenTenant(TenantOf(step), quota));
  } else {
    WAVEKV_ASSIGN_OR_RETURN(tenant, engine_->OpenTenant(TenantOf(step)));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  tenants_.insert_or_assign(TenantOf(step), tenant);
  return absl::OkStatus();
}

absl::Status CaseWorld::Create(const v1::Step& step) {
  WAVEKV_ASSIGN_OR_RETURN(const Sequence handle, TenantNamed(step).CreateSequence());
  NamedSequence named{handle, ModelSequence(model_), {}};
  named.lengths.assign(model_.num_layers, {0});
  const std::lock_guard<std::mutex> lock(mutex_);
  sequences_.insert_or_assign(SequenceOf(step), std::move(named));
  return absl::OkStatus();
}

absl::Status CaseWorld::Append(const std::string& name, const v1::Append& append) {
  if (append.has_layer()) return AppendToLayer(name, append, static_cast<int>(append.layer()));
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    WAVEKV_RETURN_IF_ERROR(AppendToLayer(name, append, layer));
  }
  return absl::OkStatus();
}

absl::Status CaseWorld::AppendToLayer(const std::string& name, const v1::Append& append,
                                      int layer) {
  const bool exists = layer < model_.num_layers;  // else the engine must say so
  const auto num_rows = static_cast<int64_t>(append.tokens());
  const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
  WantedRows wanted{layer, 0, num_rows, model_.num_kv_heads, model_.head_dim_k};
  Sequence handle;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    handle = Named(name).handle;
    if (exists) wanted.first_row = Named(name).expected.length(layer);
  }
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> keys, TensorRows(append.k(), wanted));
  wanted.head_dim = model_.head_dim_v;
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> values, TensorRows(append.v(), wanted));
  WAVEKV_RETURN_IF_ERROR(
      engine_->Append({{&handle, 1}, cu_seqlens}, layer,
                      TensorView::Dense(keys.data(), DType::kFloat32, num_rows, model_.num_kv_heads,
                                        model_.head_dim_k),
                      TensorView::Dense(values.data(), DType::kFloat32, num_rows,
                                        model_.num_kv_heads, model_.head_dim_v)));
  if (!exists) return absl::InternalError("the engine took rows of a layer that it does not have");
  const std::lock_guard<std::mutex> lock(mutex_);
  Named(name).expected.Append(layer, keys, values);
  Named(name).lengths[layer].push_back(wanted.first_row + num_rows);
  return absl::OkStatus();
}

absl::Status CaseWorld::Fork(const v1::Step& step) {
  std::optional<int64_t> prefix;
  if (step.fork().has_prefix_tokens()) prefix = static_cast<int64_t>(step.fork().prefix_tokens());
  WAVEKV_ASSIGN_OR_RETURN(const Sequence handle,
                          TenantNamed(step).Fork(Handle(SequenceOf(step)), prefix));
  const std::lock_guard<std::mutex> lock(mutex_);
  NamedSequence child = Named(SequenceOf(step));
  child.handle = handle;
  child.lengths.clear();
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    // Another thread's append may have stored tokens that are not followed here yet.
    if (prefix.has_value() && child.expected.length(layer) < *prefix) {
      return absl::InternalError(
          "fork.prefix_tokens: in a group it must not exceed what the parent had before");
    }
  }
  if (prefix.has_value()) child.expected.Truncate(*prefix);
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    child.lengths.push_back({child.expected.length(layer)});
  }
  sequences_.insert_or_assign(step.fork().child(), std::move(child));
  return absl::OkStatus();
}

absl::Status CaseWorld::Truncate(const v1::Step& step) {
  const auto length = static_cast<int64_t>(step.truncate().length());
  WAVEKV_RETURN_IF_ERROR(TenantNamed(step).Truncate(Handle(SequenceOf(step)), length));
  const std::lock_guard<std::mutex> lock(mutex_);
  Named(SequenceOf(step)).expected.Truncate(length);
  return absl::OkStatus();
}

void CaseWorld::StartHistory() {
  for (auto& [name, sequence] : sequences_) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      sequence.lengths[layer] = {sequence.expected.length(layer)};
    }
  }
}

void CaseWorld::Collect(const v1::Step& step, StepNumbers& numbers) const {
  numbers.engine = engine_->stats();
  if (Expects(step, {"free_bytes_are_zero"})) {
    numbers.free_bytes_are_zero = EngineTestPeer::FreeBytesAreZero(*engine_);
  }
  if (const auto tenant = tenants_.find(TenantOf(step)); tenant != tenants_.end()) {
    if (const auto stats = tenant->second.stats(); stats.ok()) numbers.tenant = *stats;
  }
  const auto sequence = sequences_.find(SequenceOf(step));
  if (sequence == sequences_.end()) return;
  numbers.sequence_length = sequence->second.handle.length();
  if (!Expects(step, {"sealed_kv_bytes", "sealed_index_bytes"})) return;
  const auto metadata = Describe(sequence->second.handle);
  if (!metadata.ok()) return;
  for (const v1::LayerMetadata& layer : metadata->layers()) {
    for (const v1::SegmentMetadata& segment : layer.segments()) {
      numbers.sealed_kv_bytes += static_cast<int64_t>(segment.bytes() - segment.index_bytes());
      numbers.sealed_index_bytes += static_cast<int64_t>(segment.index_bytes());
    }
  }
}

absl::StatusOr<v1::SequenceMetadata> CaseWorld::Describe(const Sequence& sequence) const {
  WAVEKV_ASSIGN_OR_RETURN(const std::string text, engine_->Describe(sequence));
  v1::SequenceMetadata metadata;
  if (!google::protobuf::TextFormat::ParseFromString(text, &metadata)) {
    return absl::InternalError("Describe: not a SequenceMetadata");
  }
  return metadata;
}

Tenant CaseWorld::TenantNamed(const v1::Step& step) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return tenants_.at(TenantOf(step));
}

Sequence CaseWorld::Handle(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return sequences_.at(name).handle;
}

}  // namespace wavekv::testing
