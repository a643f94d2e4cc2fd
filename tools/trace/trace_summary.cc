#include "tools/trace/trace_summary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace wavekv {
namespace {

// By value, NaN last: an order that sorting can rely on, which < is not where there are NaNs.
bool IsBefore(double a, double b) { return std::isnan(a) ? false : std::isnan(b) || a < b; }

double Sum(std::vector<double> values) {
  std::sort(values.begin(), values.end(),
            IsBefore);  // the sum must not depend on the order of the samples
  return std::accumulate(values.begin(), values.end(), 0.0);
}

double Mean(const std::vector<double>& values, double of_none) {
  return values.empty() ? of_none : Sum(values) / static_cast<double>(values.size());
}

}  // namespace

double Percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<int64_t>(rank, 1) - 1];
}

std::vector<double> Ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return IsBefore(values[a], values[b]); });
  std::vector<double> ranks(values.size());
  for (size_t first = 0; first < order.size();) {
    size_t last = first;
    while (last < order.size() && !IsBefore(values[order[first]], values[order[last]])) ++last;
    const double rank = static_cast<double>(first + last - 1) / 2.0;
    for (; first < last; ++first) ranks[order[first]] = rank;
  }
  return ranks;
}

double RankCorrelation(const std::vector<double>& a, const std::vector<double>& b) {
  const std::vector<double> ranks_a = Ranks(a), ranks_b = Ranks(b);
  const double mean = static_cast<double>(a.size() - 1) / 2.0;
  double ab = 0.0, aa = 0.0, bb = 0.0;  // of multiples of 1/4: exact, whatever the order
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (ranks_a[i] - mean) * (ranks_b[i] - mean);
    aa += (ranks_a[i] - mean) * (ranks_a[i] - mean);
    bb += (ranks_b[i] - mean) * (ranks_b[i] - mean);
  }
  return aa == 0.0 || bb == 0.0 ? 0.0 : ab / std::sqrt(aa * bb);
}

void TraceSamples::Append(const TraceSamples& other) {
  const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(rel_errors, other.rel_errors);
  append(error_estimates, other.error_estimates);
  append(masses, other.masses);
  append(indexed_masses, other.indexed_masses);
  recalls.resize(std::max(recalls.size(), other.recalls.size()));
  for (size_t k = 0; k < other.recalls.size(); ++k) append(recalls[k], other.recalls[k]);
  num_rows += other.num_rows;
  tokens_visible += other.tokens_visible;
  tokens_exact += other.tokens_exact;
  tokens_indexed += other.tokens_indexed;
  bytes_dense += other.bytes_dense;
  bytes_read += other.bytes_read;
  indexed_bytes_dense += other.indexed_bytes_dense;
  indexed_bytes_read += other.indexed_bytes_read;
}

TraceSummary Summarize(const TraceSamples& samples) {
  TraceSummary summary;
  summary.num_samples = static_cast<int64_t>(samples.rel_errors.size());
  summary.indexed_mass = Mean(samples.indexed_masses, 1.0);
  for (const std::vector<double>& recall : samples.recalls) {
    summary.recalls.push_back(Mean(recall, 1.0));
  }
  if (summary.num_samples == 0) return summary;
  std::vector<double> errors = samples.rel_errors;
  std::sort(errors.begin(), errors.end(), IsBefore);
  summary.rel_err_mean = Mean(errors, 0.0);
  summary.rel_err_p95 = Percentile(errors, 0.95);
  summary.rel_err_p99 = Percentile(errors, 0.99);
  summary.rel_err_max = errors.back();
  summary.error_estimate_correlation = RankCorrelation(samples.rel_errors, samples.error_estimates);
  int64_t num_near = 0;
  for (size_t i = 0; i < samples.rel_errors.size(); ++i) {
    const double error = samples.rel_errors[i], estimate = samples.error_estimates[i];
    num_near += estimate <= 2.0 * error && error <= 2.0 * estimate ? 1 : 0;
  }
  summary.error_estimate_within_2 =
      static_cast<double>(num_near) / static_cast<double>(summary.num_samples);
  summary.mass = Mean(samples.masses, 1.0);
  const auto rows = static_cast<double>(samples.num_rows);
  summary.tokens_visible = static_cast<double>(samples.tokens_visible) / rows;
  summary.tokens_exact = static_cast<double>(samples.tokens_exact) / rows;
  summary.bytes_dense = static_cast<double>(samples.bytes_dense) / rows;
  summary.bytes_read = static_cast<double>(samples.bytes_read) / rows;
  summary.exact_tokens_ratio = summary.tokens_exact / summary.tokens_visible;
  summary.bytes_ratio = summary.bytes_read / summary.bytes_dense;
  summary.indexed_bytes_ratio = samples.indexed_bytes_dense == 0
                                    ? 1.0
                                    : static_cast<double>(samples.indexed_bytes_read) /
                                          static_cast<double>(samples.indexed_bytes_dense);
  return summary;
}

}  // namespace wavekv
