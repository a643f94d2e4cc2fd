// Engine::stats and its Prometheus text.
#include <memory>
#include <string>
#include <vector>

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

// The lines of a metric that each tenant has.
class TenantMetric {
 public:
  TenantMetric(const char* name, const char* type, const char* help) : name_(name) {
    AddHeader(text_, name, type, help);
  }

  // labels: beside the tenant's, each with a comma before it.
  void Add(const std::string& tenant, const char* labels, int64_t value) {
    text_ += fmt::format("{}{{tenant=\"{}\"{}}} {}\n", name_, tenant, labels, value);
  }
  const std::string& text() const { return text_; }

 private:
  const char* const name_;
  std::string text_;
};

// What the tiers hold and move, for engines that have some.
void AddTierMetrics(const EngineStats& stats,
                    const std::vector<std::shared_ptr<TenantStore>>& tenants, std::string& text) {
  TenantMetric bytes("wavekv_tier_tenant_bytes", "gauge", "Bytes of tiers that a tenant holds.");
  TenantMetric quotas("wavekv_tier_quota_bytes", "gauge",
                      "Quota of a tenant in tiers; a ceiling of 0 is all there is.");
  TenantMetric lookups("wavekv_blocks_total", "counter", "Look-ups of blocks in the cache.");
  TenantMetric admissions("wavekv_block_admissions_total", "counter",
                          "Blocks read that were admitted to the cache, or found no room.");
  TenantMetric evictions("wavekv_evicted_blocks_total", "counter",
                         "Blocks that gave way, by what made them.");
  TenantMetric rejects("wavekv_backing_reject_total", "counter",
                       "Segments refused by the tenant's quota of the backing tier.");
  for (const auto& tenant : tenants) {
    const std::string label = tenant->label();
    const TenantStats of = StatsOf(*tenant);
    bytes.Add(label, ",tier=\"backing\"", of.backing_bytes_used);
    bytes.Add(label, ",tier=\"cache\"", of.cache_bytes_used);
    quotas.Add(label, ",tier=\"backing\",kind=\"ceiling\"", of.backing_bytes_quota);
    quotas.Add(label, ",tier=\"cache\",kind=\"ceiling\"", of.cache_bytes_quota);
    quotas.Add(label, ",tier=\"cache\",kind=\"floor\"", of.cache_bytes_reserved);
    lookups.Add(label, ",result=\"hit\"", of.block_hits_total);
    lookups.Add(label, ",result=\"miss\"", of.block_misses_total);
    admissions.Add(label, ",result=\"admitted\"", of.blocks_admitted_total);
    admissions.Add(label, ",result=\"rejected\"", of.blocks_rejected_total);
    evictions.Add(label, ",reason=\"ceiling\"", of.evictions_by_ceiling_total);
    evictions.Add(label, ",reason=\"pressure\"", of.evictions_by_pressure_total);
    evictions.Add(label, ",reason=\"quota\"", of.evictions_by_quota_total);
    rejects.Add(label, "", of.backing_rejects_total);
  }
  for (const TenantMetric* metric :
       {&bytes, &quotas, &lookups, &admissions, &evictions, &rejects}) {
    text += metric->text();
  }

  AddHeader(text, "wavekv_tier_bytes", "gauge", "Bytes of tiers by state.");
  const auto add_bytes = [&](const char* tier, const char* state, int64_t value) {
    text += fmt::format("wavekv_tier_bytes{{tier=\"{}\",state=\"{}\"}} {}\n", tier, state, value);
  };
  add_bytes("cache", "used", stats.cache_bytes - stats.cache_bytes_free);
  add_bytes("cache", "free", stats.cache_bytes_free);
  add_bytes("cache", "pinned", stats.cache_bytes_pinned);
  add_bytes("staging", "reserved", stats.staging_bytes);
  add_bytes("backing", "used", stats.backing_bytes_used);
  add_bytes("backing", "free", stats.backing_bytes_free);
  AddMetric(text, "wavekv_reads_pending", "gauge", "Blocks asked for that have not come.",
            stats.reads_pending);
  AddMetric(text, "wavekv_read_blocks_total", "counter", "Blocks read for misses.",
            stats.blocks_read_total);
  AddHeader(text, "wavekv_transfer_bytes_total", "counter", "Bytes to and from the backing tier.");
  text += fmt::format("wavekv_transfer_bytes_total{{dir=\"disk_read\"}} {}\n",
                      stats.tier_bytes_read_total);
  text += fmt::format("wavekv_transfer_bytes_total{{dir=\"disk_write\"}} {}\n",
                      stats.tier_bytes_written_total);
  AddMetric(text, "wavekv_read_failures_total", "counter",
            "Blocks that could not be read, or came damaged.", stats.read_failures_total);
  AddMetric(text, "wavekv_tiers_open_seconds", "gauge", "Time that opening the tiers took.",
            stats.tiers_open_seconds);
}

}  // namespace

TenantStats StatsOf(const TenantStore& tenant) {
  TenantStats stats;
  stats.sequences = tenant.num_sequences();
  stats.host_bytes_used = tenant.account().used_bytes();
  stats.host_bytes_quota = tenant.account().quota_bytes();
  stats.evicted_sequences_total = tenant.evicted_sequences_total();
  stats.quota_rejects_total = tenant.rejects_total();
  if (tenant.row_tier() == nullptr) return stats;

  // An engine has one kind of tiers.
  const auto& tier = static_cast<const TenantRowTier&>(*tenant.row_tier());
  const RowQuota quota = tier.quota();
  const CacheTenantStats cache = tier.cache_stats();
  stats.backing_bytes_used = tier.backing_bytes_used();
  stats.backing_bytes_quota = quota.backing_bytes;
  stats.backing_rejects_total = tier.backing_rejects_total();
  stats.cache_bytes_used = cache.slots_used * tier.slot_bytes();
  stats.cache_bytes_quota = quota.cache_bytes;
  stats.cache_bytes_reserved = quota.reserved_cache_bytes;
  stats.block_hits_total = cache.hits_total;
  stats.block_misses_total = cache.misses_total;
  stats.blocks_admitted_total = cache.admissions_total;
  stats.blocks_rejected_total = cache.rejections_total;
  stats.evictions_by_ceiling_total = cache.evictions_by_ceiling_total;
  stats.evictions_by_pressure_total = cache.evictions_by_pressure_total;
  stats.evictions_by_quota_total = cache.evictions_by_share_total;
  return stats;
}

EngineStats Engine::stats() const {
  if (impl_->gpu != nullptr) impl_->gpu->context().Collect();  // what has run is not used any more
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
  AddMetric(text, "wavekv_degraded_tokens_total", "counter",
            "Tokens chosen to be read that had not come by miss_deadline; estimated instead.",
            stats.tokens_degraded_total);
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
  if (impl_->row_tiers != nullptr) AddTierMetrics(stats, impl_->AllTenants(), text);
  return text;
}

}  // namespace wavekv
