// Engine::BeginStep, AppendStep and EndStep.
#include <utility>
#include <vector>

#include "api/check_arguments.h"
#include "api/engine_impl.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "wavekv/engine.h"

namespace wavekv {

absl::Status PlanNotFound() {
  return absl::NotFoundError("plan: no such plan (default-constructed, or of another engine)");
}

absl::Status CheckStepHasBegun(const PlanState& plan) {
  if (plan.step_has_begun) return absl::OkStatus();
  return absl::FailedPreconditionError("plan: no step has begun; BeginStep comes first");
}

absl::Status CheckOnDevice(const char* name, Memory memory) {
  if (memory == Memory::kDevice) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}.memory must be the device's in a step of a CUDA engine, got {}", name,
                  static_cast<int>(memory)));
}

absl::Status Engine::Impl::BeginStep(PlanState& plan, Stream stream) {
  const int num_layers = options.model.num_layers;
  const auto num_rows = [&](size_t i) { return plan.cu_seqlens[i + 1] - plan.cu_seqlens[i]; };
  std::vector<SequenceWriter> writers;
  std::vector<StoredSequence*> keep;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    WAVEKV_RETURN_IF_ERROR(CheckSequence(plan.sequences[i]));
    if (num_rows(i) > kDecodeRowsMax) {
      return absl::FailedPreconditionError(
          fmt::format("a step has at most {} rows of a sequence, the plan has {} of sequence {}",
                      kDecodeRowsMax, num_rows(i), plan.sequences[i]->id()));
    }
    WAVEKV_ASSIGN_OR_RETURN(SequenceWriter writer, SequenceWriter::Acquire(plan.sequences[i]));
    writers.push_back(std::move(writer));
    keep.push_back(plan.sequences[i].get());
  }
  // Nothing of what follows can be captured.
  WAVEKV_RETURN_IF_ERROR(gpu->CheckNotCaptured(stream));
  // Rows of earlier steps have been written before anything that follows here is done.
  WAVEKV_RETURN_IF_ERROR(gpu->context().EndWrite(stream));

  std::vector<std::vector<SequenceView>> layers(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      StoredSequence& sequence = *plan.sequences[i];
      LayerCache& cache = sequence.layer(layer);
      // What lies behind the window of the rows so far, before there are rows without contents.
      const auto cut = cache.Cut(/*decoding=*/true);
      if (!cut.empty()) {
        builds->Add(cache.RetryUnsealable(), sequence.seal_target());
        builds->Add(cut, sequence.seal_target());
        builds->AddMerges(cache.BeginMerges(), sequence.seal_target(), sequence.tenant(), layer);
      }
      SequenceView& view = layers[layer].emplace_back();
      view.first_row = plan.cu_seqlens[i];
      view.num_rows = num_rows(i);
      view.causal = plan.options.causal;
      PinLayer(sequence, layer, view);
      const int64_t length = view.contents.length + num_rows(i);
      if (length <= plan.options.reserve_tokens) continue;
      return absl::FailedPreconditionError(
          fmt::format("reserve_tokens: sequence {} would have {} tokens, the plan has room for {}",
                      sequence.id(), length, plan.options.reserve_tokens));
    }
  }

  std::vector<std::vector<PendingAppend>> appends(num_layers);
  const auto may_evict_for = [&](const TenantStore& tenant) -> absl::Status {
    int64_t bytes = 0;
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      if (&plan.sequences[i]->account() != &tenant.account()) continue;
      for (int layer = 0; layer < num_layers; ++layer) {
        bytes += plan.sequences[i]->layer(layer).AppendBytes(num_rows(i));
      }
    }
    return tenant.CheckRoom(keep, bytes);
  };
  for (int layer = 0; layer < num_layers; ++layer) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      StoredSequence& sequence = *plan.sequences[i];
      const std::shared_ptr<TenantStore> tenant = sequence.tenant();
      if (tenant == nullptr) return SequenceNotFound();
      WAVEKV_ASSIGN_OR_RETURN(PendingAppend append,
                              tenant->WithEviction(
                                  keep, [&] { return may_evict_for(*tenant); },
                                  [&] {
                                    return sequence.layer(layer).PrepareAppend(sequence.account(),
                                                                               num_rows(i));
                                  }));
      appends[layer].push_back(std::move(append));
    }
  }

  std::vector<std::vector<AppendRun>> runs(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      int64_t row = plan.cu_seqlens[i];
      for (const RowSlice& slice : appends[layer][i].slices()) {
        const RowChunk& chunk = *slice.chunk;
        runs[layer].push_back({nullptr, nullptr, row, slice.count, chunk.keys(0, slice.row),
                               chunk.values(0, slice.row), chunk.keys(1, 0) - chunk.keys(0, 0)});
        row += slice.count;
      }
      appends[layer][i].ApplyTo(layers[layer][i].contents);
    }
  }
  WAVEKV_RETURN_IF_ERROR(
      gpu->BeginStep(plan.gpu, plan.options, std::move(layers), std::move(runs), stream));
  for (int layer = 0; layer < num_layers; ++layer) {
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      plan.sequences[i]->layer(layer).Commit(std::move(appends[layer][i]));
    }
  }
  for (const auto& sequence : plan.sequences) sequence->Touch();
  appended_tokens += int64_t{num_layers} * plan.cu_seqlens.back();
  return absl::OkStatus();
}

absl::Status Engine::BeginStep(const Plan& plan, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  if (state.options.reserve_tokens == 0) {
    return absl::FailedPreconditionError(
        "plan: steps need a plan with AttendOptions::reserve_tokens");
  }
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  if (impl_->gpu != nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(Memory::kDevice, stream));
    WAVEKV_RETURN_IF_ERROR(impl_->gpu->TakeErrors(state.gpu));
    WAVEKV_RETURN_IF_ERROR(impl_->BeginStep(state, queue));
  }
  state.step_has_begun = true;
  return absl::OkStatus();
}

absl::Status Engine::AppendStep(const Plan& plan, int layer, const TensorView& keys,
                                const TensorView& values, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  const ModelSpec& model = impl_->options.model;
  const bool on_gpu = impl_->gpu != nullptr;
  WAVEKV_RETURN_IF_ERROR(impl_->CheckLayer(layer));
  WAVEKV_RETURN_IF_ERROR(
      CheckTensor({"keys", plan.num_rows(), model.num_kv_heads, model.head_dim_k, on_gpu}, keys));
  WAVEKV_RETURN_IF_ERROR(CheckTensor(
      {"values", plan.num_rows(), model.num_kv_heads, model.head_dim_v, on_gpu}, values));
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  WAVEKV_RETURN_IF_ERROR(CheckStepHasBegun(state));
  if (!on_gpu) {
    return impl_->Append(state.sequences, state.cu_seqlens, layer, TensorSource(keys, values),
                         stream);
  }
  WAVEKV_RETURN_IF_ERROR(CheckOnDevice("keys", keys.memory));
  WAVEKV_RETURN_IF_ERROR(CheckOnDevice("values", values.memory));
  WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(keys.memory, stream));
  return impl_->gpu->AppendStep(state.gpu, layer,
                                {keys.data, values.data, keys.dtype, values.dtype, keys.row_stride,
                                 keys.head_stride, values.row_stride, values.head_stride},
                                queue);
}

absl::Status Engine::EndStep(const Plan& plan, Stream stream) {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckStream(stream));
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  WAVEKV_RETURN_IF_ERROR(CheckStepHasBegun(state));
  if (impl_->gpu != nullptr) {
    WAVEKV_ASSIGN_OR_RETURN(const GpuStream queue, impl_->gpu->StreamFor(Memory::kDevice, stream));
    WAVEKV_RETURN_IF_ERROR(impl_->gpu->EndStep(state.gpu, queue));
  }
  state.step_has_begun = false;
  return absl::OkStatus();
}

absl::StatusOr<AttendStats> Engine::ReadStats(const Plan& plan) {
  if (plan.state_ == nullptr || plan.state_->context != impl_->context) return PlanNotFound();
  PlanState& state = *plan.state_;
  const PlanUse use(state);
  WAVEKV_RETURN_IF_ERROR(use.status());
  if (impl_->gpu == nullptr) return state.last_stats;
  return impl_->gpu->ReadStats(state.gpu, plan.num_rows());
}

}  // namespace wavekv
