#include "tests/api/random_world_state.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "api/engine_test_peer.h"
#include "fmt/format.h"

namespace wavekv::testing {
namespace {

template <typename... Args>
absl::Status Differs(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

LiveSequence& WorldState::Add(const Sequence& handle, size_t tenant, ModelSequence model) {
  sequences.push_back(
      std::make_unique<LiveSequence>(LiveSequence{handle, std::move(model), tenant, 0}));
  Touch(*sequences.back());
  return *sequences.back();
}

void WorldState::Remove(const LiveSequence& sequence) {
  std::erase_if(sequences, [&](const auto& other) { return other.get() == &sequence; });
}

int64_t WorldState::NumSequencesOf(size_t tenant) const {
  return std::count_if(sequences.begin(), sequences.end(),
                       [&](const auto& sequence) { return sequence->tenant == tenant; });
}

absl::Status WorldState::NoteEvictions(bool allowed, const std::vector<const LiveSequence*>& keep) {
  std::vector<uint64_t> oldest_survivor(tenants.size(), std::numeric_limits<uint64_t>::max());
  std::vector<const LiveSequence*> gone;
  for (const auto& sequence : sequences) {
    const bool kept = std::find(keep.begin(), keep.end(), sequence.get()) != keep.end();
    if (sequence->handle.valid()) {
      uint64_t& oldest = oldest_survivor[sequence->tenant];
      if (!kept) oldest = std::min(oldest, sequence->last_use);
      continue;
    }
    const LiveTenant& tenant = tenants[sequence->tenant];
    if (!allowed || kept || tenant.quota.on_limit != TenantQuota::OnLimit::kEvictOwn) {
      return Differs("sequence {} of tenant {} vanished", sequence->handle.id(), tenant.id);
    }
    gone.push_back(sequence.get());
  }
  for (const LiveSequence* sequence : gone) {
    if (sequence->last_use > oldest_survivor[sequence->tenant]) {
      return Differs("sequence {} was evicted before one that was used less recently",
                     sequence->handle.id());
    }
    ++tenants[sequence->tenant].evicted;
    Remove(*sequence);
  }
  return absl::OkStatus();
}

absl::Status WorldState::Check(const Engine& engine, bool quiet) {
  int64_t used_bytes = 0;
  for (size_t i = 0; i < tenants.size(); ++i) {
    LiveTenant& tenant = tenants[i];
    const auto stats = tenant.handle.stats();
    if (!stats.ok()) return stats.status();
    used_bytes += stats->host_bytes_used;
    if (stats->sequences != NumSequencesOf(i)) {
      return Differs("tenant {} has {} sequences, expected {}", tenant.id, stats->sequences,
                     NumSequencesOf(i));
    }
    if (stats->evicted_sequences_total != tenant.evicted) {
      return Differs("tenant {} evicted {} sequences, expected {}", tenant.id,
                     stats->evicted_sequences_total, tenant.evicted);
    }
    if (stats->host_bytes_quota != tenant.quota.host_bytes) {
      return Differs("tenant {} has a quota of {} bytes, expected {}", tenant.id,
                     stats->host_bytes_quota, tenant.quota.host_bytes);
    }
    const int64_t quota =
        tenant.quota.host_bytes > 0 ? tenant.quota.host_bytes : std::numeric_limits<int64_t>::max();
    if (quiet && stats->host_bytes_used > std::max(quota, tenant.used_bytes_max)) {
      return Differs("tenant {} grew to {} bytes beyond its quota of {}", tenant.id,
                     stats->host_bytes_used, quota);
    }
    tenant.used_bytes_max = stats->host_bytes_used;
    if (engine.options().tiers.directory.empty()) continue;
    const int64_t backing_bytes = EngineTestPeer::BackingBytesUsed(engine, tenant.id);
    if (quiet && tenant.quota.backing_bytes > 0 &&
        backing_bytes > std::max(tenant.quota.backing_bytes, tenant.backing_bytes_max)) {
      return Differs("tenant {} grew to {} bytes of the file beyond its quota of {}", tenant.id,
                     backing_bytes, tenant.quota.backing_bytes);
    }
    tenant.backing_bytes_max = backing_bytes;
  }
  const EngineStats stats = engine.stats();
  if (stats.arena_bytes_used + stats.arena_bytes_free != stats.arena_bytes) {
    return Differs("used {} and free {} bytes do not make an arena of {}", stats.arena_bytes_used,
                   stats.arena_bytes_free, stats.arena_bytes);
  }
  if (quiet && stats.arena_bytes_used != used_bytes) {
    return Differs("tenants use {} bytes, the arena says {}", used_bytes, stats.arena_bytes_used);
  }
  if (stats.sequences != static_cast<int64_t>(sequences.size()) ||
      stats.tenants != static_cast<int64_t>(tenants.size())) {
    return Differs("{} sequences of {} tenants, expected {} of {}", stats.sequences, stats.tenants,
                   sequences.size(), tenants.size());
  }
  for (const auto& sequence : sequences) {
    if (sequence->handle.length() != sequence->model.length()) {
      return Differs("sequence {} has {} tokens, expected {}", sequence->handle.id(),
                     sequence->handle.length(), sequence->model.length());
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv::testing
