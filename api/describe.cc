// Engine::StatsText and Engine::Describe: what an engine holds, as protobuf text.
#include <string>

#include "api/engine_impl.h"
#include "google/protobuf/text_format.h"
#include "proto/engine_stats.pb.h"
#include "proto/metadata.pb.h"
#include "storage/cluster_index.h"
#include "storage/status_macros.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

std::string ToText(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

v1::EngineStats ToProto(const EngineStats& stats) {
  v1::EngineStats proto;
  proto.set_tenants(stats.tenants);
  proto.set_sequences(stats.sequences);
  proto.set_arena_bytes(stats.arena_bytes);
  proto.set_arena_bytes_used(stats.arena_bytes_used);
  proto.set_arena_bytes_free(stats.arena_bytes_free);
  proto.set_segments_sealed(stats.segments_sealed);
  proto.set_segments_pending(stats.segments_pending);
  proto.set_segments_sealed_total(stats.segments_sealed_total);
  proto.set_seal_failures_total(stats.seal_failures_total);
  proto.set_segment_merges_total(stats.segment_merges_total);
  proto.set_merge_failures_total(stats.merge_failures_total);
  proto.set_build_seconds_total(stats.build_seconds_total);
  proto.set_appended_tokens_total(stats.appended_tokens_total);
  proto.set_attend_calls_total(stats.attend_calls_total);
  proto.set_attend_rows_total(stats.attend_rows_total);
  proto.set_tokens_visible_total(stats.tokens_visible_total);
  proto.set_tokens_exact_total(stats.tokens_exact_total);
  proto.set_tokens_estimated_total(stats.tokens_estimated_total);
  proto.set_bytes_dense_total(stats.bytes_dense_total);
  proto.set_bytes_read_total(stats.bytes_read_total);
  proto.set_attend_seconds_total(stats.attend_seconds_total);
  proto.set_tokens_degraded_total(stats.tokens_degraded_total);
  proto.set_block_bytes(stats.block_bytes);
  proto.set_cache_bytes(stats.cache_bytes);
  proto.set_cache_bytes_free(stats.cache_bytes_free);
  proto.set_cache_bytes_pinned(stats.cache_bytes_pinned);
  proto.set_staging_bytes(stats.staging_bytes);
  proto.set_reads_pending(stats.reads_pending);
  proto.set_backing_bytes_used(stats.backing_bytes_used);
  proto.set_backing_bytes_free(stats.backing_bytes_free);
  proto.set_blocks_read_total(stats.blocks_read_total);
  proto.set_tier_bytes_read_total(stats.tier_bytes_read_total);
  proto.set_tier_bytes_written_total(stats.tier_bytes_written_total);
  proto.set_read_failures_total(stats.read_failures_total);
  proto.set_tiers_open_seconds(stats.tiers_open_seconds);
  return proto;
}

v1::TenantStats ToProto(const TenantStore& tenant) {
  const TenantStats stats = StatsOf(tenant);
  v1::TenantStats proto;
  proto.set_label(tenant.label());
  proto.set_sequences(stats.sequences);
  proto.set_host_bytes_used(stats.host_bytes_used);
  proto.set_host_bytes_quota(stats.host_bytes_quota);
  proto.set_evicted_sequences_total(stats.evicted_sequences_total);
  proto.set_quota_rejects_total(stats.quota_rejects_total);
  proto.set_backing_bytes_used(stats.backing_bytes_used);
  proto.set_backing_bytes_quota(stats.backing_bytes_quota);
  proto.set_backing_rejects_total(stats.backing_rejects_total);
  proto.set_cache_bytes_used(stats.cache_bytes_used);
  proto.set_cache_bytes_quota(stats.cache_bytes_quota);
  proto.set_cache_bytes_reserved(stats.cache_bytes_reserved);
  proto.set_block_hits_total(stats.block_hits_total);
  proto.set_block_misses_total(stats.block_misses_total);
  proto.set_blocks_admitted_total(stats.blocks_admitted_total);
  proto.set_blocks_rejected_total(stats.blocks_rejected_total);
  proto.set_evictions_by_ceiling_total(stats.evictions_by_ceiling_total);
  proto.set_evictions_by_pressure_total(stats.evictions_by_pressure_total);
  proto.set_evictions_by_quota_total(stats.evictions_by_quota_total);
  return proto;
}

v1::SegmentMetadata::State ToProto(Segment::State state) {
  switch (state) {
    case Segment::State::kPending:
      return v1::SegmentMetadata::PENDING;
    case Segment::State::kUnsealable:
      return v1::SegmentMetadata::UNSEALABLE;
    case Segment::State::kSealed:
      return v1::SegmentMetadata::SEALED;
  }
  return v1::SegmentMetadata::STATE_UNSPECIFIED;
}

v1::SegmentMetadata ToProto(const Segment& segment) {
  v1::SegmentMetadata proto;
  proto.set_token_begin(segment.begin());
  proto.set_token_end(segment.end());
  const Segment::Pin pin = segment.Read();
  proto.set_state(pin.sealed != nullptr ? v1::SegmentMetadata::SEALED : ToProto(segment.state()));
  if (pin.sealed == nullptr) return proto;
  for (const SealedHead& head : pin.sealed->heads) {
    const ClusterIndex& index = head.index;
    proto.add_num_clusters(static_cast<uint32_t>(index.num_clusters));
    proto.set_bytes(proto.bytes() + head.extent.bytes());
    proto.set_index_bytes(proto.index_bytes() + ClusterIndexOverheadBytes(index.full_shape()));
  }
  return proto;
}

}  // namespace

std::string Engine::StatsText() const {
  v1::EngineStats proto;
  proto.ParseFromString(StatsProto());
  return ToText(proto);
}

std::string Engine::StatsProto() const {
  v1::EngineStats proto = ToProto(stats());
  for (const auto& tenant : impl_->AllTenants()) *proto.add_tenant() = ToProto(*tenant);
  return proto.SerializeAsString();
}

absl::StatusOr<std::string> Engine::Describe(const Sequence& sequence) const {
  WAVEKV_RETURN_IF_ERROR(impl_->CheckSequence(sequence.stored_));
  const StoredSequence& stored = *sequence.stored_;
  const CutRule& rule = impl_->context->cut_rule;
  v1::SequenceMetadata proto;
  proto.set_sequence_id(stored.id());
  for (int layer = 0; layer < stored.num_layers(); ++layer) {
    const LayerContents contents = stored.layer(layer).Snapshot();
    v1::LayerMetadata& layer_proto = *proto.add_layers();
    layer_proto.set_num_tokens(contents.length);
    for (const auto& segment : contents.segments) *layer_proto.add_segments() = ToProto(*segment);
    layer_proto.set_tail_tokens(std::max<int64_t>(0, contents.length - contents.tail_begin(rule)));
  }
  return ToText(proto);
}

}  // namespace wavekv
