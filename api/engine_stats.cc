// Engine::stats and its Prometheus text.
#include <string>

#include "api/engine_impl.h"
#include "fmt/format.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

void AddHeader(std::string& text, const char* name, const char* type, const char* help) {
  text += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

template <typename Number>
void AddMetric(std::string& text, const char* name, const char* type, const char* help,
               Number value) {
  AddHeader(text, name, type, help);
  text += fmt::format("{} {}\n", name, value);
}

}  // namespace

EngineStats Engine::stats() const {
  EngineStats stats;
  const auto tenants = impl_->AllTenants();
  stats.tenants = static_cast<int64_t>(tenants.size());
  for (const auto& tenant : tenants) stats.sequences += tenant->num_sequences();
  const Arena& arena = *impl_->context->arena;
  stats.arena_bytes = arena.bytes();
  stats.arena_bytes_used = arena.used_bytes();
  stats.arena_bytes_free = stats.arena_bytes - stats.arena_bytes_used;

  const BuildQueue& builds = *impl_->builds;
  stats.segments_sealed = builds.segments_sealed();
  stats.segments_pending = builds.segments_pending();
  stats.segments_sealed_total = builds.segments_sealed_total();
  stats.seal_failures_total = builds.seal_failures_total();
  stats.segment_merges_total = builds.segment_merges_total();
  stats.merge_failures_total = builds.merge_failures_total();
  stats.build_seconds_total = impl_->observer->seconds(Phase::kBuild);

  stats.appended_tokens_total = impl_->appended_tokens;
  stats.attend_calls_total = impl_->attend_calls;
  stats.attend_rows_total = impl_->attend_rows;
  stats.tokens_visible_total = impl_->tokens_visible;
  stats.tokens_exact_total = impl_->tokens_exact;
  stats.tokens_estimated_total = impl_->tokens_estimated;
  stats.tokens_degraded_total = impl_->tokens_degraded;
  stats.bytes_dense_total = impl_->bytes_dense;
  stats.bytes_read_total = impl_->bytes_read;
  stats.attend_seconds_total = impl_->observer->seconds(Phase::kAttend);
  if (impl_->row_tiers == nullptr) return stats;

  const RowTiersStats tiers = impl_->row_tiers->stats();
  stats.block_bytes = impl_->row_tiers->shape().bytes;
  stats.cache_bytes = tiers.slots * stats.block_bytes;
  stats.cache_bytes_free = tiers.slots_free * stats.block_bytes;
  stats.cache_bytes_pinned = tiers.slots_pinned * stats.block_bytes;
  stats.staging_bytes = tiers.staging_bytes;
  stats.reads_pending = tiers.reads_pending;
  stats.backing_bytes_used = tiers.file.used_bytes;
  stats.backing_bytes_free = tiers.file.free_bytes;
  stats.blocks_read_total = tiers.blocks_read;
  stats.tier_bytes_read_total = tiers.bytes_read;
  stats.tier_bytes_written_total = tiers.bytes_written;
  stats.read_failures_total = tiers.read_failures;
  stats.tiers_open_seconds = tiers.open_seconds;
  return stats;
}

std::string Engine::PrometheusText() const {
  const EngineStats stats = this->stats();
  std::string text;
  AddMetric(text, "wavekv_tenants", "gauge", "Open tenants.", stats.tenants);
  AddMetric(text, "wavekv_sequences", "gauge", "Live sequences.", stats.sequences);
  AddHeader(text, "wavekv_bytes", "gauge", "Bytes by tier and state: live ones by tenant.");
  text += fmt::format("wavekv_bytes{{tier=\"host\",state=\"free\"}} {}\n", stats.arena_bytes_free);
  std::string quotas;
  std::string rejects;
  std::string evicted;
  for (const auto& tenant : impl_->AllTenants()) {
    const std::string label = tenant->label();
    const MemoryAccount& account = tenant->account();
    text += fmt::format("wavekv_bytes{{tier=\"host\",state=\"live\",tenant=\"{}\"}} {}\n", label,
                        account.used_bytes());
    quotas += fmt::format("wavekv_quota_bytes{{tier=\"host\",tenant=\"{}\",kind=\"ceiling\"}} {}\n",
                          label, account.quota_bytes());
    rejects += fmt::format("wavekv_quota_reject_total{{tenant=\"{}\",reason=\"bytes\"}} {}\n",
                           label, account.rejects_total());
    rejects += fmt::format("wavekv_quota_reject_total{{tenant=\"{}\",reason=\"sequences\"}} {}\n",
                           label, tenant->sequence_rejects_total());
    evicted += fmt::format("wavekv_evicted_sequences_total{{tenant=\"{}\",reason=\"quota\"}} {}\n",
                           label, tenant->evicted_sequences_total());
  }
  AddHeader(text, "wavekv_quota_bytes", "gauge", "Quota of a tenant; 0 is the whole arena.");
  text += quotas;
  AddHeader(text, "wavekv_quota_reject_total", "counter",
            "Allocations and sequences refused to a tenant.");
  text += rejects;
  AddHeader(text, "wavekv_evicted_sequences_total", "counter",
            "Sequences a tenant lost to its own newer ones.");
  text += evicted;

  AddHeader(text, "wavekv_segments", "gauge", "Segments by state.");
  text += fmt::format("wavekv_segments{{state=\"sealed\"}} {}\n", stats.segments_sealed);
  text += fmt::format("wavekv_segments{{state=\"pending\"}} {}\n", stats.segments_pending);
  AddMetric(text, "wavekv_sealed_segments_total", "counter", "Segments sealed.",
            stats.segments_sealed_total);
  AddMetric(text, "wavekv_seal_failures_total", "counter",
            "Builds that failed; the tokens stay exact.", stats.seal_failures_total);
  AddMetric(text, "wavekv_segment_merges_total", "counter",
            "Runs of small segments merged into one.", stats.segment_merges_total);
  AddMetric(text, "wavekv_merge_failures_total", "counter",
            "Merges that failed; the small segments stay.", stats.merge_failures_total);
  AddMetric(text, "wavekv_build_seconds_total", "counter", "Time of the build threads.",
            stats.build_seconds_total);

  AddMetric(text, "wavekv_appended_tokens_total", "counter", "Tokens appended, per layer.",
            stats.appended_tokens_total);
  AddMetric(text, "wavekv_attend_calls_total", "counter", "Attend calls answered.",
            stats.attend_calls_total);
  AddMetric(text, "wavekv_attend_rows_total", "counter", "Query rows answered.",
            stats.attend_rows_total);
  AddMetric(text, "wavekv_lookup_tokens_total", "counter",
            "Tokens that exact attention would have read, per row and kv head.",
            stats.tokens_visible_total);
  AddHeader(text, "wavekv_answered_tokens_total", "counter",
            "Tokens by the way they were answered, per row and kv head.");
  text +=
      fmt::format("wavekv_answered_tokens_total{{zone=\"exact\"}} {}\n", stats.tokens_exact_total);
  text += fmt::format("wavekv_answered_tokens_total{{zone=\"estimation\"}} {}\n",
                      stats.tokens_estimated_total);
  AddMetric(text, "wavekv_dense_bytes_total", "counter",
            "Bytes that exact attention would have read.", stats.bytes_dense_total);
  AddMetric(text, "wavekv_read_bytes_total", "counter", "Bytes read, index included.",
            stats.bytes_read_total);
  AddMetric(text, "wavekv_attend_call_seconds_total", "counter", "Time of Attend calls.",
            stats.attend_seconds_total);
  AddHeader(text, "wavekv_attend_seconds_total", "counter",
            "Time of Attend and Retrieve calls by phase.");
  for (const Phase phase : {Phase::kPin, Phase::kLoad, Phase::kRank, Phase::kRead, Phase::kFetch,
                            Phase::kEstimate, Phase::kMerge, Phase::kStore}) {
    text += fmt::format("wavekv_attend_seconds_total{{phase=\"{}\"}} {}\n", PhaseName(phase),
                        impl_->observer->seconds(phase));
  }
  AddMetric(text, "wavekv_append_seconds_total", "counter", "Time of Append calls.",
            impl_->observer->seconds(Phase::kAppend));
  return text;
}

}  // namespace wavekv
