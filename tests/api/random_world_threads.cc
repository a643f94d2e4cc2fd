#include "tests/api/random_world_threads.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <set>
#include <thread>

#include "api/engine_test_peer.h"
#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/api/random_world_questions.h"
#include "tests/api/random_world_tensors.h"

namespace wavekv::testing {
namespace {

constexpr size_t kNumSlots = 5;

absl::Status Wrong(const std::string& what) { return absl::InternalError(what); }

TensorView Dense(const std::vector<float>& data, int64_t rows, int64_t heads, int64_t dim) {
  return TensorView::Dense(data.data(), DType::kFloat32, rows, heads, dim);
}

// OK when the answer is right for one of the candidates, which is returned in *found.
absl::Status MatchesOne(const Question& question, const Answer& answer,
                        const EngineOptions& options,
                        const std::vector<SequenceLog::Version>& candidates,
                        SequenceLog::Version* found = nullptr) {
  absl::Status last = Wrong("no candidates");
  for (auto version = candidates.rbegin(); version != candidates.rend(); ++version) {
    last = CheckAnswer(question, answer, options, {version->get()});
    if (!last.ok()) continue;
    if (found != nullptr) *found = *version;
    return last;
  }
  return Wrong(fmt::format("{}: right for none of {} versions; for the oldest: {}",
                           ToString(question), candidates.size(), std::string(last.message())));
}

}  // namespace

SharedWorld::SharedWorld(uint64_t seed, const WorldShape& shape, int num_readers)
    : seed_(seed), shape_(shape), num_readers_(num_readers) {}

SharedWorld::~SharedWorld() = default;

absl::Status SharedWorld::Run(int64_t num_operations) {
  WAVEKV_RETURN_IF_ERROR(Open());
  std::vector<std::thread> readers;
  for (int i = 0; i < num_readers_; ++i) {
    readers.emplace_back([this, i] { RunReader(seed_ * 1000 + i); });
  }
  Random random(seed_);
  for (int64_t i = 0; i < num_operations && !stop_; ++i) {
    const absl::Status status = Write(random);
    if (!status.ok()) {
      Fail(Wrong(fmt::format("writer, operation {}: {}", i, status.ToString())));
    }
  }
  stop_ = true;
  for (std::thread& reader : readers) reader.join();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    WAVEKV_RETURN_IF_ERROR(error_);
  }
  return Finish();
}

absl::Status SharedWorld::Open() {
  WAVEKV_ASSIGN_OR_RETURN(engine_, Engine::Open(shape_.options));
  model_ = engine_->options().model;
  for (int i = 0; i < shape_.num_tenants; ++i) {
    TenantQuota quota;
    if (i % 2 == 1) quota.on_limit = TenantQuota::OnLimit::kEvictOwn;
    WAVEKV_ASSIGN_OR_RETURN(Tenant tenant, engine_->OpenTenant(fmt::format("tenant{}", i), quota));
    tenants_.push_back(std::move(tenant));
  }
  slots_.resize(kNumSlots);
  for (size_t slot = 0; slot < kNumSlots; ++slot) {
    WAVEKV_RETURN_IF_ERROR(Replace(slot, /*remove=*/false));
  }
  return absl::OkStatus();
}

absl::Status SharedWorld::Finish() {
  EngineTestPeer::FailAllocations(*engine_, 0, 0);
  for (size_t slot = 0; slot < kNumSlots; ++slot) {
    const Log log = Slot(slot);
    const absl::Status status = tenants_[log->tenant()].Remove(log->handle());
    if (!status.ok() && log->handle().valid()) return status;
  }
  while (engine_->stats().segments_pending > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  EngineTestPeer::WaitUntilAdmitted(*engine_);
  WAVEKV_RETURN_IF_ERROR(EngineTestPeer::Audit(*engine_));
  const EngineStats stats = engine_->stats();
  if (stats.arena_bytes_used != 0 || stats.sequences != 0) {
    return Wrong(
        fmt::format("{} bytes and {} sequences are left", stats.arena_bytes_used, stats.sequences));
  }
  if (!EngineTestPeer::FreeBytesAreZero(*engine_)) return Wrong("a freed byte was not wiped");
  return absl::OkStatus();
}

void SharedWorld::Fail(const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  error_.Update(status);
  stop_ = true;
}

SharedWorld::Log SharedWorld::Slot(size_t slot) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return slots_[slot];
}

absl::Status SharedWorld::Tolerate(const absl::Status& status, const Sequence& sequence,
                                   bool writes) {
  if (absl::IsResourceExhausted(status)) {
    ++counts_.refused;
    return absl::OkStatus();
  }
  if (writes && absl::IsAborted(status)) {
    ++counts_.aborted;
    return absl::OkStatus();
  }
  if (absl::IsNotFound(status) && !sequence.valid()) return absl::OkStatus();
  return status;
}

absl::Status SharedWorld::Write(Random& random) {
  // What was evicted is replaced first.
  for (size_t slot = 0; slot < kNumSlots; ++slot) {
    if (!Slot(slot)->handle().valid()) WAVEKV_RETURN_IF_ERROR(Replace(slot, /*remove=*/false));
  }
  const int64_t dice = random.Integer(0, 99);
  if (dice < 70) return AppendLayers(random);
  if (dice < 85) return Truncate(random);
  if (dice < 90) {
    return Replace(random.Integer(0, static_cast<int64_t>(kNumSlots) - 1), /*remove=*/true);
  }
  return DisturbMemory(random);
}

absl::Status SharedWorld::AppendLayers(Random& random) {
  std::vector<Log> logs;
  std::vector<int32_t> cu_seqlens = {0};
  const bool decoding = random.Integer(0, 2) > 0;
  for (size_t slot = random.Integer(0, 2); slot < kNumSlots; slot += random.Integer(1, 3)) {
    const Log log = Slot(slot);
    if (log->latest()->length() >= shape_.length_max) continue;
    logs.push_back(log);
    const int64_t rows = decoding ? 1 : random.Integer(1, shape_.prompt_rows_max);
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(rows));
  }
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    const absl::Status status = AppendToLayer(random, logs, layer, cu_seqlens);
    if (status.ok()) continue;
    // Even the layers out again; what cannot be must go.
    for (const Log& log : logs) {
      const auto tolerated = Tolerate(status, log->handle(), /*writes=*/false);
      const bool gone = std::any_of(logs.begin(), logs.end(),
                                    [](const Log& other) { return !other->handle().valid(); });
      if (!tolerated.ok() && !gone) return tolerated;
      if (!log->handle().valid()) continue;
      ModelSequence even = *log->latest();
      even.Truncate(even.length());
      const int64_t length = even.length();
      log->Announce(std::move(even));
      absl::Status truncated;
      do {
        truncated = tenants_[log->tenant()].Truncate(log->handle(), length);
      } while (absl::IsAborted(truncated));
      if (truncated.ok()) {
        log->Confirm();
        continue;
      }
      log->Withdraw();
      WAVEKV_RETURN_IF_ERROR(Tolerate(truncated, log->handle(), /*writes=*/false));
    }
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status SharedWorld::AppendToLayer(Random& random, const std::vector<Log>& logs, int layer,
                                        const std::vector<int32_t>& cu_seqlens) {
  const int64_t rows = cu_seqlens.back();
  const int64_t key_row = static_cast<int64_t>(model_.num_kv_heads) * model_.head_dim_k;
  const int64_t value_row = static_cast<int64_t>(model_.num_kv_heads) * model_.head_dim_v;
  const std::vector<float> keys = DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_k);
  const std::vector<float> values = DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_v);
  std::vector<Sequence> handles;
  for (size_t i = 0; i < logs.size(); ++i) {
    handles.push_back(logs[i]->handle());
    ModelSequence next = *logs[i]->latest();
    next.Append(
        layer, {keys.begin() + cu_seqlens[i] * key_row, keys.begin() + cu_seqlens[i + 1] * key_row},
        {values.begin() + cu_seqlens[i] * value_row,
         values.begin() + cu_seqlens[i + 1] * value_row});
    logs[i]->Announce(std::move(next));
  }
  absl::Status status;
  do {
    status = engine_->Append({handles, cu_seqlens}, layer,
                             Dense(keys, rows, model_.num_kv_heads, model_.head_dim_k),
                             Dense(values, rows, model_.num_kv_heads, model_.head_dim_v));
  } while (absl::IsAborted(status));
  for (const Log& log : logs) status.ok() ? log->Confirm() : log->Withdraw();
  if (status.ok()) ++counts_.writes;
  return status;
}

absl::Status SharedWorld::Truncate(Random& random) {
  const Log log = Slot(random.Integer(0, static_cast<int64_t>(kNumSlots) - 1));
  ModelSequence next = *log->latest();
  const int64_t length = next.length();
  const int64_t left = length - random.Integer(0, random.Integer(0, 3) == 0 ? length : length / 8);
  next.Truncate(left);
  log->Announce(std::move(next));
  absl::Status status;
  do {
    status = tenants_[log->tenant()].Truncate(log->handle(), left);
  } while (absl::IsAborted(status));
  status.ok() ? log->Confirm() : log->Withdraw();
  if (status.ok()) ++counts_.writes;
  return status.ok() ? status : Tolerate(status, log->handle(), /*writes=*/false);
}

absl::Status SharedWorld::Replace(size_t slot, bool remove) {
  const Log old = Slot(slot);
  if (remove) {
    absl::Status status;
    do {
      status = tenants_[old->tenant()].Remove(old->handle());
    } while (absl::IsAborted(status));
    if (!status.ok()) WAVEKV_RETURN_IF_ERROR(Tolerate(status, old->handle(), /*writes=*/false));
  }
  if (old != nullptr) ++counts_.removed;
  const size_t tenant = slot % tenants_.size();
  WAVEKV_ASSIGN_OR_RETURN(const Sequence handle, tenants_[tenant].CreateSequence());
  auto log = std::make_shared<SequenceLog>(handle, tenant, ModelSequence(model_));
  std::lock_guard<std::mutex> lock(mutex_);
  slots_[slot] = std::move(log);
  return absl::OkStatus();
}

absl::Status SharedWorld::DisturbMemory(Random& random) {
  if (random.Integer(0, 1) == 0) {
    EngineTestPeer::FailAllocations(*engine_, random.Integer(0, 20), random.Integer(0, 3));
    return absl::OkStatus();
  }
  const int64_t i = random.Integer(0, static_cast<int64_t>(tenants_.size()) - 1);
  TenantQuota quota;
  if (random.Integer(0, 1) == 0) {
    quota.host_bytes = random.Integer(shape_.options.arena_bytes / 4, shape_.options.arena_bytes);
  }
  if (i % 2 == 1) quota.on_limit = TenantQuota::OnLimit::kEvictOwn;
  if (const int64_t cache_bytes = shape_.options.tiers.cache_bytes; cache_bytes > 0) {
    if (random.Integer(0, 1) == 0) quota.backing_bytes = random.Integer(1, 1 << 20);
    if (random.Integer(0, 1) == 0) quota.cache_bytes = random.Integer(1, cache_bytes);
    const int64_t floor_bytes = cache_bytes / 2 / static_cast<int64_t>(tenants_.size());
    quota.reserved_cache_bytes = random.Integer(
        0, quota.cache_bytes == 0 ? floor_bytes : std::min(floor_bytes, quota.cache_bytes));
    quota.cache_weight = 0.1 * static_cast<double>(random.Integer(1, 50));
  }
  return tenants_[i].SetQuota(quota);
}

void SharedWorld::RunReader(uint64_t seed) {
  Random random(seed);
  while (!stop_) {
    const absl::Status status = Read(random);
    if (!status.ok()) Fail(Wrong(fmt::format("reader: {}", status.ToString())));
  }
}

absl::Status SharedWorld::Read(Random& random) {
  const Log log = Slot(random.Integer(0, static_cast<int64_t>(kNumSlots) - 1));
  const int64_t dice = random.Integer(0, 99);
  if (dice < 50) return AttendTo(random, log);
  if (dice < 65) return RetrieveFrom(random, log);
  if (dice < 85) return ForkFrom(random, log);
  return RivalWrite(random, log);
}

absl::Status SharedWorld::AttendTo(Random& random, const Log& log) {
  const Question question = DrawQuestion(random, model_, 1);
  const int64_t since = log->Now();
  const auto answer = Ask(*engine_, random, {&log->handle(), 1}, question);
  const auto candidates = log->Since(since);
  if (!answer.ok()) return Tolerate(answer.status(), log->handle(), /*writes=*/false);
  if (candidates.empty()) return absl::OkStatus();
  ++counts_.answers;
  return MatchesOne(question, *answer, engine_->options(), candidates);
}

absl::Status SharedWorld::RetrieveFrom(Random& random, const Log& log) {
  const Question question = DrawQuestion(random, model_, 1);
  const auto plan = engine_->MakePlan({{&log->handle(), 1}, question.cu_seqlens}, question.options);
  if (!plan.ok()) return Tolerate(plan.status(), log->handle(), /*writes=*/false);
  const int64_t since = log->Now();
  const auto retrieved = engine_->Retrieve(
      *plan, question.layer,
      Dense(question.queries, question.num_rows(), model_.num_q_heads, model_.head_dim_k));
  const auto candidates = log->Since(since);
  if (!retrieved.ok()) return Tolerate(retrieved.status(), log->handle(), /*writes=*/false);
  if (candidates.empty()) return absl::OkStatus();
  ++counts_.answers;
  int64_t length = 0;
  for (const auto& version : candidates) {
    length = std::max(length, version->length(question.layer));
  }
  for (const RetrievedTokens& tokens : *retrieved) {
    const std::set<int64_t> seen(tokens.positions.begin(), tokens.positions.end());
    if (seen.size() != tokens.positions.size()) return Wrong("a position was retrieved twice");
    if (!seen.empty() && (*seen.begin() < 0 || *seen.rbegin() >= length)) {
      return Wrong(fmt::format("position {} was retrieved of {}", *seen.rbegin(), length));
    }
  }
  return absl::OkStatus();
}

absl::Status SharedWorld::ForkFrom(Random& random, const Log& log) {
  const Tenant& tenant = tenants_[log->tenant()];
  std::optional<int64_t> prefix;
  if (random.Integer(0, 1) == 0) prefix = random.Integer(0, log->latest()->length());
  const int64_t since = log->Now();
  const auto child = tenant.Fork(log->handle(), prefix);
  const auto candidates = log->Since(since);
  if (!child.ok()) {
    // The writer is between two layers, or has truncated meanwhile.
    if (absl::IsFailedPrecondition(child.status()) || absl::IsOutOfRange(child.status())) {
      return absl::OkStatus();
    }
    return Tolerate(child.status(), log->handle(), /*writes=*/false);
  }
  const int64_t length = child->length();
  if (prefix.has_value() && child->valid() && length != *prefix) {
    return Wrong(fmt::format("a fork of {} tokens has {}", *prefix, length));
  }
  absl::Status status;
  if (child->valid() && !candidates.empty()) {
    status = UseFork(random, *child, candidates);
    // An eviction of it is another writer.
    if (!status.ok()) status = Tolerate(status, *child, /*writes=*/true);
  }
  const absl::Status removed = tenant.Remove(*child);
  if (!removed.ok()) status.Update(Tolerate(removed, *child, /*writes=*/true));
  return status;
}

absl::Status SharedWorld::UseFork(Random& random, const Sequence& child,
                                  const std::vector<SequenceLog::Version>& candidates) {
  const int64_t length = child.length();
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    // Layers are seen one after the other, so each has its own version.
    std::vector<SequenceLog::Version> prefixes;
    for (const auto& version : candidates) {
      if (version->length() < length) continue;
      ModelSequence prefix = *version;
      prefix.Truncate(length);
      prefixes.push_back(std::make_shared<const ModelSequence>(std::move(prefix)));
    }
    Question question = DrawQuestion(random, model_, 1);
    question.layer = layer;
    question.options.retrieval = Budget::All();
    question.options.target_error = 0.0;
    WAVEKV_ASSIGN_OR_RETURN(const Answer answer, Ask(*engine_, random, {&child, 1}, question));
    SequenceLog::Version found;
    WAVEKV_RETURN_IF_ERROR(MatchesOne(question, answer, engine_->options(), prefixes, &found));

    // Its own tokens, in rows that the parent may be claiming just now.
    const int64_t rows = random.Integer(1, 3);
    const std::vector<float> keys = DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_k);
    const std::vector<float> values =
        DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_v);
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    WAVEKV_RETURN_IF_ERROR(engine_->Append(
        {{&child, 1}, cu_seqlens}, layer, Dense(keys, rows, model_.num_kv_heads, model_.head_dim_k),
        Dense(values, rows, model_.num_kv_heads, model_.head_dim_v)));
    ModelSequence own = *found;
    own.Append(layer, keys, values);
    WAVEKV_ASSIGN_OR_RETURN(const Answer after, Ask(*engine_, random, {&child, 1}, question));
    WAVEKV_RETURN_IF_ERROR(CheckAnswer(question, after, engine_->options(), {&own}));
  }
  ++counts_.forks;
  return absl::OkStatus();
}

absl::Status SharedWorld::RivalWrite(Random& random, const Log& log) {
  absl::Status status;
  if (random.Integer(0, 2) == 0) {
    status = engine_->BuildSegments(log->handle());
  } else {
    const int64_t rows = random.Integer(1, 70);
    std::vector<float> keys = DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_k);
    const std::vector<float> values =
        DrawRows(random, rows, model_.num_kv_heads, model_.head_dim_v);
    keys.back() = std::numeric_limits<float>::quiet_NaN();
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    status = engine_->Append({{&log->handle(), 1}, cu_seqlens}, 0,
                             Dense(keys, rows, model_.num_kv_heads, model_.head_dim_k),
                             Dense(values, rows, model_.num_kv_heads, model_.head_dim_v));
    if (status.ok()) return Wrong("an append of NaN was accepted");
    if (absl::IsInvalidArgument(status)) return absl::OkStatus();
  }
  return status.ok() ? status : Tolerate(status, log->handle(), /*writes=*/true);
}

}  // namespace wavekv::testing
