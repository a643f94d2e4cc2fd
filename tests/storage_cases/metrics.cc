#include "tests/storage_cases/metrics.h"

namespace wavekv::testing {
namespace {

// Of nothing, all.
double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double Number(int64_t count) { return static_cast<double>(count); }

constexpr Metric kMetrics[] = {
    {"rel_err", true, [](const StepNumbers& n) { return n.rel_err; }},
    {"lse_err", true, [](const StepNumbers& n) { return n.lse_err; }},
    {"exact_tokens_ratio", true,
     [](const StepNumbers& n) { return Share(n.attend.tokens_exact, n.attend.tokens_visible); }},
    {"bytes_ratio", true,
     [](const StepNumbers& n) { return Share(n.attend.bytes_read, n.attend.bytes_dense); }},
    {"estimated_mass", true, [](const StepNumbers& n) { return n.estimated_mass; }},
    {"sequence_length", false, [](const StepNumbers& n) { return Number(n.sequence_length); }},
    {"tenant_bytes_used", false,
     [](const StepNumbers& n) { return Number(n.tenant.host_bytes_used); }},
    {"tenant_sequences", false, [](const StepNumbers& n) { return Number(n.tenant.sequences); }},
    {"evicted_sequences_total", false,
     [](const StepNumbers& n) { return Number(n.tenant.evicted_sequences_total); }},
    {"arena_bytes_used", false,
     [](const StepNumbers& n) { return Number(n.engine.arena_bytes_used); }},
    {"segments_sealed", false,
     [](const StepNumbers& n) { return Number(n.engine.segments_sealed); }},
    {"segments_pending", false,
     [](const StepNumbers& n) { return Number(n.engine.segments_pending); }},
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
