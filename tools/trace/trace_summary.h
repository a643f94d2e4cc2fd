// From what was measured of recorded attention, sample by sample, to the figures that are reported.
#ifndef WAVEKV_TOOLS_TRACE_TRACE_SUMMARY_H_
#define WAVEKV_TOOLS_TRACE_TRACE_SUMMARY_H_

#include <cstdint>
#include <vector>

namespace wavekv {

// What was measured for one budget. Shares are per sample: a sample is one query of one query head.
struct TraceSamples {
  std::vector<double> rel_errors;       // |output - exact| / |exact|; |output| where exact is 0
  std::vector<double> error_estimates;  // the engine's, of rel_errors
  std::vector<double> masses;           // softmax mass that was read exactly
  std::vector<double> indexed_masses;   // of the mass of the indexed tokens
  std::vector<std::vector<double>> recalls;  // [recall_ks]: of the k indexed tokens of most mass
  int64_t num_rows = 0;  // pairs of query and kv head; what follows sums over them
  int64_t tokens_visible = 0;
  int64_t tokens_exact = 0;
  int64_t tokens_indexed = 0;
  int64_t bytes_dense = 0;
  int64_t bytes_read = 0;
  int64_t indexed_bytes_dense = 0;  // of the indexed tokens alone
  int64_t indexed_bytes_read = 0;

  // Of other heads or files, with the same recall_ks.
  void Append(const TraceSamples& other);
};

// Percentiles are the smallest sample that so many per cent of the samples do not exceed. Samples
// without an indexed token have no recall and no indexed mass; both are 1 when no sample has.
struct TraceSummary {
  int64_t num_samples = 0;
  double rel_err_mean = 0.0;
  double rel_err_p95 = 0.0;
  double rel_err_p99 = 0.0;
  double rel_err_max = 0.0;
  // The engine's estimates of the errors: their rank correlation (Spearman's; 0 where either are
  // all equal), and the share of samples whose error they come near by a factor of two.
  double error_estimate_correlation = 0.0;
  double error_estimate_within_2 = 0.0;
  double mass = 0.0;
  double indexed_mass = 0.0;
  std::vector<double> recalls;  // [recall_ks]
  double tokens_visible = 0.0;  // these four: mean of a query and kv head
  double tokens_exact = 0.0;
  double bytes_dense = 0.0;
  double bytes_read = 0.0;
  double exact_tokens_ratio = 0.0;
  double bytes_ratio = 0.0;
  double indexed_bytes_ratio = 0.0;  // 1 when no token is indexed
};

// Independent of the order of the samples. REQUIRES: as many error_estimates as rel_errors.
TraceSummary Summarize(const TraceSamples& samples);

// In all of these a NaN comes behind every number, and is equal to other NaNs.

// The smallest value that `share` of the values do not exceed. REQUIRES: sorted, not empty.
double Percentile(const std::vector<double>& sorted, double share);

// Places in ascending order, from 0; equal values at the mean of theirs.
std::vector<double> Ranks(const std::vector<double>& values);

// Spearman's; 0 where either are all equal. REQUIRES: as many of b as of a.
double RankCorrelation(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_TRACE_SUMMARY_H_
