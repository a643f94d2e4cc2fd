// The operations of RandomWorld that write to sequences.
#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/api/random_world.h"
#include "tests/api/random_world_tensors.h"

namespace wavekv::testing {
namespace {

std::vector<const LiveSequence*> Const(const std::vector<LiveSequence*>& sequences) {
  return {sequences.begin(), sequences.end()};
}

std::string Ids(const std::vector<LiveSequence*>& sequences) {
  std::string ids;
  for (const LiveSequence* sequence : sequences) {
    ids += fmt::format("{}{}", ids.empty() ? "" : ",", sequence->handle.id());
  }
  return ids;
}

}  // namespace

std::vector<LiveSequence*> RandomWorld::DrawBatch(int64_t num_max) {
  std::vector<LiveSequence*> chosen;
  const int64_t num = random_.Integer(1, num_max);
  for (int64_t i = 0; i < num; ++i) {
    LiveSequence* const one = &state_.Pick(random_);
    if (std::find(chosen.begin(), chosen.end(), one) == chosen.end()) chosen.push_back(one);
  }
  return chosen;
}

absl::Status RandomWorld::Create() {
  if (state_.sequences.size() >= static_cast<size_t>(shape_.num_sequences_max)) return Remove();
  const auto i = static_cast<size_t>(random_.Integer(0, shape_.num_tenants - 1));
  const LiveTenant& tenant = state_.tenants[i];
  Note("create a sequence of " + tenant.id);
  const bool is_full =
      tenant.quota.max_sequences > 0 && state_.NumSequencesOf(i) >= tenant.quota.max_sequences;
  const bool evicts = tenant.quota.on_limit == TenantQuota::OnLimit::kEvictOwn;
  const auto sequence = tenant.handle.CreateSequence();
  WAVEKV_ASSIGN_OR_RETURN(const bool accepted, Accepted(sequence.status(), {}, is_full));
  if (accepted != (!is_full || evicts)) return absl::InternalError("max_sequences was not kept");
  if (accepted) state_.Add(*sequence, i, ModelSequence(model_));
  return absl::OkStatus();
}

absl::Status RandomWorld::Append() {
  std::vector<LiveSequence*> chosen = DrawBatch(3);
  std::erase_if(chosen, [&](const LiveSequence* sequence) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      if (sequence->model.length(layer) >= shape_.length_max) return true;
    }
    return false;
  });
  std::vector<int32_t> cu_seqlens = {0};
  const bool decoding = random_.Integer(0, 2) > 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const int64_t rows = decoding ? 1 : random_.Integer(0, shape_.prompt_rows_max);
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(rows));
  }
  // Now and then one layer alone, so that lengths differ for a while.
  const bool one_layer = random_.Integer(0, 19) == 0;
  const int first = one_layer ? static_cast<int>(random_.Integer(0, model_.num_layers - 1)) : 0;
  const int last = one_layer ? first : model_.num_layers - 1;
  for (int layer = first; layer <= last; ++layer) {
    bool appended = false;
    WAVEKV_RETURN_IF_ERROR(AppendToLayer(chosen, cu_seqlens, layer, &appended));
    if (appended) continue;
    // Even the layers out again, as an engine would, or leave them.
    for (LiveSequence* sequence : chosen) {
      if (random_.Integer(0, 3) == 0) continue;
      WAVEKV_RETURN_IF_ERROR(Truncate(*sequence, sequence->model.length()));
      // It may have evicted the next one.
      if (state_.tenants[sequence->tenant].quota.on_limit == TenantQuota::OnLimit::kEvictOwn) break;
    }
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status RandomWorld::AppendToLayer(const std::vector<LiveSequence*>& chosen,
                                        const std::vector<int32_t>& cu_seqlens, int layer,
                                        bool* appended) {
  const int64_t rows = cu_seqlens.back();
  const int64_t key_row = static_cast<int64_t>(model_.num_kv_heads) * model_.head_dim_k;
  const int64_t value_row = static_cast<int64_t>(model_.num_kv_heads) * model_.head_dim_v;
  std::vector<float> keys = DrawRows(random_, rows, model_.num_kv_heads, model_.head_dim_k);
  std::vector<float> values = DrawRows(random_, rows, model_.num_kv_heads, model_.head_dim_v);
  std::vector<Sequence> handles;
  std::vector<int64_t> lengths;
  for (const LiveSequence* sequence : chosen) {
    handles.push_back(sequence->handle);
    lengths.push_back(sequence->model.length(layer));
  }
  const bool paged = random_.Integer(0, 4) == 0;
  Note(fmt::format("append {} {} rows in all to layer {} of {}", paged ? "paged" : "dense", rows,
                   layer, Ids(chosen)));
  absl::Status status;
  if (paged) {
    const CallerPages pages(random_, lengths, cu_seqlens, model_.num_kv_heads, model_.head_dim_k,
                            model_.head_dim_v, keys, values);
    status = engine_->AppendPaged({handles, cu_seqlens}, layer, pages.keys(), pages.values(),
                                  pages.table());
  } else {
    CallerTensor key_tensor(random_, rows, model_.num_kv_heads, model_.head_dim_k);
    CallerTensor value_tensor(random_, rows, model_.num_kv_heads, model_.head_dim_v);
    key_tensor.Fill(keys);
    value_tensor.Fill(values);
    status = engine_->Append({handles, cu_seqlens}, layer, key_tensor.view(), value_tensor.view());
  }
  WAVEKV_ASSIGN_OR_RETURN(*appended, Accepted(status, Const(chosen), /*may_evict=*/true));
  if (!*appended) return absl::OkStatus();
  ++counts_.appended;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const auto part = [&](const std::vector<float>& all, int64_t width) {
      return std::vector<float>(all.begin() + cu_seqlens[i] * width,
                                all.begin() + cu_seqlens[i + 1] * width);
    };
    chosen[i]->model.Append(layer, part(keys, key_row), part(values, value_row));
    state_.Touch(*chosen[i]);
  }
  return absl::OkStatus();
}

absl::Status RandomWorld::AppendUnsound() {
  const std::vector<LiveSequence*> chosen = DrawBatch(3);
  std::vector<Sequence> handles;
  std::vector<int32_t> cu_seqlens = {0};
  for (const LiveSequence* sequence : chosen) {
    handles.push_back(sequence->handle);
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(random_.Integer(1, 100)));
  }
  const int64_t rows = cu_seqlens.back();
  std::vector<float> keys = DrawRows(random_, rows, model_.num_kv_heads, model_.head_dim_k);
  std::vector<float> values = DrawRows(random_, rows, model_.num_kv_heads, model_.head_dim_v);
  const int64_t mistake = random_.Integer(0, 2);
  absl::StatusCode expected = absl::StatusCode::kInvalidArgument;
  if (mistake == 0) {
    std::vector<float>& spoilt = random_.Integer(0, 1) == 0 ? keys : values;
    spoilt[random_.Integer(0, static_cast<int64_t>(spoilt.size()) - 1)] =
        random_.Integer(0, 1) == 0 ? std::numeric_limits<float>::quiet_NaN()
                                   : -std::numeric_limits<float>::infinity();
  } else if (mistake == 1) {
    handles.push_back(handles.front());
    cu_seqlens.push_back(cu_seqlens.back());
  } else {
    handles.back() = stale_;
    expected = absl::StatusCode::kNotFound;
  }
  Note(fmt::format("append unsound ({}) {} rows to {}", mistake, rows, Ids(chosen)));
  const int64_t used_bytes = engine_->stats().arena_bytes_used;
  const absl::Status status = engine_->Append(
      {handles, cu_seqlens}, 0,
      TensorView::Dense(keys.data(), DType::kFloat32, rows, model_.num_kv_heads, model_.head_dim_k),
      TensorView::Dense(values.data(), DType::kFloat32, rows, model_.num_kv_heads,
                        model_.head_dim_v));
  // A batch that does not fit is refused before all its numbers have been looked at.
  if (mistake != 0 || status.code() != absl::StatusCode::kResourceExhausted) {
    WAVEKV_RETURN_IF_ERROR(Expect(expected, status));
  }
  WAVEKV_RETURN_IF_ERROR(state_.NoteEvictions(/*allowed=*/false, {}));
  if (builds_ == Builds::kBetweenSteps && engine_->stats().arena_bytes_used != used_bytes) {
    return absl::InternalError("an unsound append left bytes behind");
  }
  return absl::OkStatus();
}

absl::Status RandomWorld::Fork() {
  if (state_.sequences.size() >= static_cast<size_t>(shape_.num_sequences_max)) return Remove();
  const LiveSequence& parent = state_.Pick(random_);
  const LiveTenant& tenant = state_.tenants[parent.tenant];
  const int64_t length = parent.model.length();
  std::optional<int64_t> prefix;
  if (random_.Integer(0, 3) > 0) prefix = random_.Integer(0, length);
  if (random_.Integer(0, 19) == 0) prefix = length + random_.Integer(1, 3);
  Note(
      fmt::format("fork {} tokens of {} with {}", prefix.value_or(-1), parent.handle.id(), length));
  const auto child = tenant.handle.Fork(parent.handle, prefix);
  if (prefix.value_or(0) > length) {
    return Expect(absl::StatusCode::kOutOfRange, child.status());
  }
  for (int layer = 0; layer < model_.num_layers && !prefix.has_value(); ++layer) {
    if (parent.model.length(layer) == length) continue;
    return Expect(absl::StatusCode::kFailedPrecondition, child.status());
  }
  ModelSequence model = parent.model;
  const size_t owner = parent.tenant;
  WAVEKV_ASSIGN_OR_RETURN(const bool accepted,
                          Accepted(child.status(), {&parent}, /*may_evict=*/true));
  if (!accepted) return absl::OkStatus();
  model.Truncate(prefix.value_or(length));
  state_.Add(*child, owner, std::move(model));
  return absl::OkStatus();
}

absl::Status RandomWorld::Truncate(LiveSequence& sequence, int64_t new_length) {
  Note(fmt::format("truncate {} to {}", sequence.handle.id(), new_length));
  const absl::Status status =
      state_.tenants[sequence.tenant].handle.Truncate(sequence.handle, new_length);
  WAVEKV_ASSIGN_OR_RETURN(const bool accepted, Accepted(status, {&sequence}, /*may_evict=*/true));
  if (!accepted) return absl::OkStatus();
  sequence.model.Truncate(new_length);
  state_.Touch(sequence);
  return absl::OkStatus();
}

absl::Status RandomWorld::TruncateSome() {
  LiveSequence& sequence = state_.Pick(random_);
  const int64_t length = sequence.model.length();
  if (random_.Integer(0, 19) == 0) {
    Note("truncate beyond the length");
    return Expect(absl::StatusCode::kOutOfRange,
                  state_.tenants[sequence.tenant].handle.Truncate(sequence.handle, length + 1));
  }
  const int64_t drop = random_.Integer(0, random_.Integer(0, 3) == 0 ? length : length / 8);
  return Truncate(sequence, length - drop);
}

absl::Status RandomWorld::Remove() {
  const LiveSequence& sequence = state_.Pick(random_);
  Note(fmt::format("remove {}", sequence.handle.id()));
  WAVEKV_RETURN_IF_ERROR(state_.tenants[sequence.tenant].handle.Remove(sequence.handle));
  stale_ = sequence.handle;
  state_.Remove(sequence);
  return absl::OkStatus();
}

absl::Status RandomWorld::BuildAndWait() {
  const LiveSequence& sequence = state_.Pick(random_);
  Note(fmt::format("build {}", sequence.handle.id()));
  WAVEKV_RETURN_IF_ERROR(engine_->BuildSegments(sequence.handle));
  const auto check_wait = [](const absl::Status& status) {
    return status.ok() || absl::IsResourceExhausted(status) ? absl::OkStatus() : status;
  };
  if (builds_ == Builds::kBetweenSteps) {
    const absl::Status waited = engine_->WaitForBuilds(sequence.handle, absl::ZeroDuration());
    if (!absl::IsDeadlineExceeded(waited)) WAVEKV_RETURN_IF_ERROR(check_wait(waited));
    Drain();
  }
  return check_wait(engine_->WaitForBuilds(sequence.handle));
}

}  // namespace wavekv::testing
