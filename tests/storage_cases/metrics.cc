#include "tests/storage_cases/metrics.h"

namespace wavekv::testing {
namespace {

// Of nothing, all.
double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double Number(int64_t count) { return static_cast<double>(count); }

constexpr Metric kMetrics[] = {
    {"rel_err", MetricOf::kQuery, [](const StepNumbers& n) { return n.rel_err; }},
    {"rel_err_mean", MetricOf::kQuery, [](const StepNumbers& n) { return n.rel_errs.value(0.0); }},
    {"lse_err", MetricOf::kQuery, [](const StepNumbers& n) { return n.lse_err; }},
    {"exact_tokens", MetricOf::kQuery,
     [](const StepNumbers& n) { return Number(n.attend.tokens_exact); }},
    {"exact_tokens_ratio", MetricOf::kQuery,
     [](const StepNumbers& n) { return Share(n.attend.tokens_exact, n.attend.tokens_visible); }},
    {"bytes_ratio", MetricOf::kQuery,
     [](const StepNumbers& n) { return Share(n.attend.bytes_read, n.attend.bytes_dense); }},
    {"estimated_mass", MetricOf::kQuery,
     [](const StepNumbers& n) { return n.estimated_masses.value(0.0); }},
    {"blocks_missed", MetricOf::kQuery,
     [](const StepNumbers& n) { return Number(n.attend.blocks_missed); }},
    {"tokens_degraded", MetricOf::kQuery,
     [](const StepNumbers& n) { return Number(n.attend.tokens_degraded); }},
    {"recall", MetricOf::kRetrieval, [](const StepNumbers& n) { return n.recalls.value(1.0); }},
    {"mass", MetricOf::kRetrieval, [](const StepNumbers& n) { return n.masses.value(1.0); }},
    {"retrieved_tokens", MetricOf::kQueryOrRetrieve,
     [](const StepNumbers& n) { return Number(n.retrieved_tokens); }},
    {"sequence_length", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.sequence_length); }},
    {"sealed_kv_bytes", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.sealed_kv_bytes); }},
    {"sealed_index_bytes", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.sealed_index_bytes); }},
    {"tenant_host_bytes_used", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.host_bytes_used); }},
    {"tenant_sequences", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.sequences); }},
    {"evicted_sequences_total", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.evicted_sequences_total); }},
    {"quota_rejects_total", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.quota_rejects_total); }},
    {"tenant_backing_bytes_used", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.backing_bytes_used); }},
    {"tenant_cache_bytes_used", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.tenant.cache_bytes_used); }},
    {"backing_bytes_used", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.backing_bytes_used); }},
    {"read_failures_total", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.read_failures_total); }},
    {"host_bytes", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.arena_bytes); }},
    {"host_bytes_used", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.arena_bytes_used); }},
    {"host_bytes_free", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.arena_bytes_free); }},
    {"free_bytes_are_zero", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return n.free_bytes_are_zero ? 1.0 : 0.0; }},
    {"tenants", MetricOf::kAnyStep, [](const StepNumbers& n) { return Number(n.engine.tenants); }},
    {"segments_sealed", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.segments_sealed); }},
    {"segments_pending", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.segments_pending); }},
    {"segments_sealed_total", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.segments_sealed_total); }},
    {"seal_failures_total", MetricOf::kAnyStep,
     [](const StepNumbers& n) { return Number(n.engine.seal_failures_total); }},
};

}  // namespace

const Metric* FindMetric(const std::string& name) {
  for (const Metric& metric : kMetrics) {
    if (name == metric.name) return &metric;
  }
  return nullptr;
}

std::string MetricNames() {
  std::string names;
  for (const Metric& metric : kMetrics) {
    if (!names.empty()) names += ", ";
    names += metric.name;
  }
  return names;
}

}  // namespace wavekv::testing
