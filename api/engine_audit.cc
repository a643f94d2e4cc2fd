// EngineTestPeer::Audit.
#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "api/engine_impl.h"
#include "api/engine_test_peer.h"
#include "buffer/file_extents.h"
#include "buffer/row_tiers.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

template <typename... Args>
absl::Status Broken(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

absl::Status Expect(bool holds, const char* what) {
  return holds ? absl::OkStatus() : absl::InternalError(what);
}

// What a walk over all sequences has met.
struct Census {
  std::map<const void*, std::pair<int64_t, const MemoryAccount*>> extents;
  std::set<const SealedSegment*> sealed;
  std::map<const MemoryAccount*, int64_t> backing_bytes;

  absl::Status Add(const void* object, int64_t bytes, const MemoryAccount* account) {
    const auto [entry, is_new] = extents.try_emplace(object, bytes, account);
    if (is_new || entry->second.second == account) return absl::OkStatus();
    return Broken("an extent of {} bytes is shared by two tenants", bytes);
  }
  int64_t BytesOf(const MemoryAccount* account) const {
    int64_t bytes = 0;
    for (const auto& [object, extent] : extents) {
      if (extent.second == account) bytes += extent.first;
    }
    return bytes;
  }
};

absl::Status CheckChunks(const RowChunks& chunks, int64_t begin, int64_t end) {
  WAVEKV_RETURN_IF_ERROR(
      Expect(static_cast<int64_t>(chunks.size()) ==
                 (std::max<int64_t>(0, end - begin) + kChunkTokens - 1) / kChunkTokens,
             "a run of tokens has too few or too many chunks"));
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t position = begin + static_cast<int64_t>(i) * kChunkTokens;
    WAVEKV_RETURN_IF_ERROR(
        Expect(chunks[i]->position_begin() == position, "a chunk stands at a wrong position"));
    WAVEKV_RETURN_IF_ERROR(
        Expect(chunks[i]->capacity() == kChunkTokens, "a chunk has a wrong capacity"));
  }
  return absl::OkStatus();
}

absl::Status CheckSealed(const Segment& segment, const SealedSegment& sealed,
                         const ModelSpec& model) {
  WAVEKV_RETURN_IF_ERROR(Expect(sealed.heads.size() == static_cast<size_t>(model.num_kv_heads),
                                "a sealed segment lacks a kv head"));
  for (const SealedHead& head : sealed.heads) {
    const ClusterIndex& index = head.index;
    WAVEKV_RETURN_IF_ERROR(Expect(index.position_begin == segment.begin(),
                                  "a sealed segment stands at a wrong position"));
    WAVEKV_RETURN_IF_ERROR(Expect(index.num_tokens == segment.num_tokens() &&
                                      index.offsets[0] == 0 &&
                                      index.offsets[index.num_clusters] == index.num_tokens,
                                  "a sealed segment has a wrong number of tokens"));
    std::vector<bool> seen(index.num_tokens);
    for (int64_t i = 0; i < index.num_tokens; ++i) {
      const int64_t token = index.positions[i];
      if (token >= index.num_tokens || seen[token]) {
        return Broken("a sealed segment holds position {} twice, or beyond its end", token);
      }
      seen[token] = true;
    }
    for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
      WAVEKV_RETURN_IF_ERROR(
          Expect(index.offsets[cluster] < index.offsets[cluster + 1], "a cluster is empty"));
    }
  }
  return absl::OkStatus();
}

// Of the file.
int64_t BackingBytes(const SealedSegment& sealed) {
  int64_t bytes = 0;
  for (const SealedHead& head : sealed.heads) {
    if (head.rows == nullptr) continue;
    const auto& rows = static_cast<const TieredRows&>(*head.rows);
    bytes += FileExtents::RoundUp(rows.num_blocks() * rows.shape().bytes);
  }
  return bytes;
}

absl::Status AuditTiers(RowTiers& tiers, const std::vector<std::shared_ptr<TenantStore>>& tenants,
                        Census& census) {
  int64_t held_bytes = 0;
  int64_t slots_used = 0;
  for (const auto& tenant : tenants) {
    const auto& row_tier = static_cast<const TenantRowTier&>(*tenant->row_tier());
    const int64_t tenant_bytes = census.backing_bytes[&tenant->account()];
    if (tenant_bytes != row_tier.backing_bytes_used()) {
      return Broken("tenant {}: its segments hold {} bytes of the file, it is charged {}",
                    tenant->id(), tenant_bytes, row_tier.backing_bytes_used());
    }
    held_bytes += tenant_bytes;
    slots_used += row_tier.cache_stats().slots_used;
  }
  const RowTiersStats stats = tiers.stats();
  if (held_bytes != stats.file.used_bytes) {
    return Broken("segments hold {} bytes of the file, it says {}", held_bytes,
                  stats.file.used_bytes);
  }
  if (slots_used + stats.slots_free != stats.slots) {
    return Broken("tenants use {} slots, {} of {} are free", slots_used, stats.slots_free,
                  stats.slots);
  }
  if (stats.slots_pinned != 0 || stats.reads_pending != 0) {
    return Broken("{} slots are pinned and {} reads pending after the last call",
                  stats.slots_pinned, stats.reads_pending);
  }
  return tiers.cache().Audit();
}

absl::Status AuditLayer(const LayerContents& contents, const StoreContext& context,
                        const MemoryAccount* account, Census& census) {
  const int64_t sink_tokens = context.cut_rule.sink_tokens;
  WAVEKV_RETURN_IF_ERROR(
      Expect((contents.sinks != nullptr) == (contents.length > 0 && sink_tokens > 0),
             "sinks must be held from the first token on"));
  if (contents.sinks != nullptr) {
    WAVEKV_RETURN_IF_ERROR(
        Expect(contents.sinks->capacity() == sink_tokens && contents.sinks->position_begin() == 0,
               "sinks of a wrong size or position"));
    WAVEKV_RETURN_IF_ERROR(census.Add(contents.sinks.get(), contents.sinks->bytes(), account));
  }
  int64_t position = sink_tokens;
  for (const auto& segment : contents.segments) {
    WAVEKV_RETURN_IF_ERROR(Expect(segment->begin() == position, "a gap before a segment"));
    position = segment->end();
    const Segment::Pin pin = segment->Read();
    if (pin.sealed == nullptr) {
      WAVEKV_RETURN_IF_ERROR(CheckChunks(pin.chunks, segment->begin(), segment->end()));
      for (const auto& chunk : pin.chunks) {
        WAVEKV_RETURN_IF_ERROR(census.Add(chunk.get(), chunk->bytes(), account));
      }
      continue;
    }
    if (census.sealed.insert(pin.sealed.get()).second) {
      WAVEKV_RETURN_IF_ERROR(CheckSealed(*segment, *pin.sealed, context.model));
      census.backing_bytes[account] += BackingBytes(*pin.sealed);
    }
    for (const SealedHead& head : pin.sealed->heads) {
      WAVEKV_RETURN_IF_ERROR(census.Add(&head, head.extent.bytes(), account));
    }
  }
  WAVEKV_RETURN_IF_ERROR(Expect(contents.segments.empty() || position <= contents.length,
                                "a segment ends behind the last token"));
  WAVEKV_RETURN_IF_ERROR(CheckChunks(contents.tail, position, contents.length));
  for (const auto& chunk : contents.tail) {
    WAVEKV_RETURN_IF_ERROR(census.Add(chunk.get(), chunk->bytes(), account));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status EngineTestPeer::Audit(const Engine& engine) {
  WaitUntilAdmitted(engine);
  const StoreContext& context = *engine.impl_->context;
  Census census;
  int64_t charged_bytes = 0;
  for (const auto& tenant : engine.impl_->AllTenants()) {
    for (const auto& sequence : tenant->sequences()) {
      WAVEKV_RETURN_IF_ERROR(Expect(!sequence->removed(), "a removed sequence is still listed"));
      WAVEKV_RETURN_IF_ERROR(Expect(sequence->shared_account().get() == &tenant->account(),
                                    "a sequence is charged to another tenant"));
      for (int layer = 0; layer < sequence->num_layers(); ++layer) {
        const absl::Status status =
            AuditLayer(sequence->layer(layer).Snapshot(), context, &tenant->account(), census);
        if (!status.ok()) {
          return Broken("sequence {} layer {}: {}", sequence->id(), layer,
                        std::string(status.message()));
        }
      }
    }
    const int64_t held_bytes = census.BytesOf(&tenant->account());
    if (held_bytes != tenant->account().used_bytes()) {
      return Broken("tenant {}: its sequences hold {} bytes, its account says {}", tenant->id(),
                    held_bytes, tenant->account().used_bytes());
    }
    charged_bytes += held_bytes;
  }
  if (charged_bytes != context.arena->used_bytes()) {
    return Broken("tenants are charged {} bytes, the arena says {}", charged_bytes,
                  context.arena->used_bytes());
  }
  const auto num_sealed = static_cast<int64_t>(census.sealed.size());
  if (num_sealed != engine.impl_->builds->segments_sealed()) {
    return Broken("{} sealed segments are held, the statistics say {}", num_sealed,
                  engine.impl_->builds->segments_sealed());
  }
  if (engine.impl_->row_tiers == nullptr) return absl::OkStatus();
  return AuditTiers(*engine.impl_->row_tiers, engine.impl_->AllTenants(), census);
}

}  // namespace wavekv
