#ifndef WAVEKV_COMPUTE_SELECT_CLUSTERS_H_
#define WAVEKV_COMPUTE_SELECT_CLUSTERS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "compute/zone.h"

namespace wavekv {

// A second end of the best ones, where the error that those behind it cause is small enough.
//
// The risk of item i is the squared error, relative to the squared length of the output, that it
// causes while it is not read, for the query h that it hurts most: the greatest over h of
//   inverse_squares[h] (variances[i] e^{2 l_hi} + hidden_variances[i] e^{2 l_hi + x_hi}),
// with l_hi = log_masses[h, i] - lses[h] the logarithm of its share and x_hi = logit_spreads[h]
// key_spreads[i] the variance of the logits in a cluster, without the caps that estimates have;
// exponents are at most 80. Items are read in rank order until the risks of the others add up to at
// most `limit`.
//
// Shapes: log_masses [num_queries, items], row h at h * stride; lses, inverse_squares and
// logit_spreads [num_queries]; variances, hidden_variances and key_spreads [items].
// hidden_variances == nullptr: there are none.
struct RiskLimit {
  const float* log_masses = nullptr;
  int64_t stride = 0;
  const float* lses = nullptr;
  const float* inverse_squares = nullptr;
  const float* variances = nullptr;
  const float* hidden_variances = nullptr;
  const float* key_spreads = nullptr;
  const float* logit_spreads = nullptr;
  double limit = 0.0;
};

// Ranks the clusters of all sealed segments for one GQA group and divides them into zones.
//
// The rank of a cluster is its probability by score, summed over the group's heads:
//   p_i = sum_h exp(r_hi - ln sum_j exp(r_hj)), and no less than the least normal number unless all
// its scores are -infinity; ties go to the lower index. In rank order, clusters go to the first
// zone until they hold at least token_budget tokens (all of them when they never do; none when the
// budget is 0) or, where `risk` is given, until its limit is met; the next num_estimation that have
// a score go to the estimation zone, all others to the last zone. Super-clusters are selected the
// same way.
//
// Shapes: scores [num_queries, num_clusters], the rank scores of score_clusters.h, row h at h *
// stride; sizes [num_clusters] tokens, all >= 1; zones [num_clusters]; retrieved and probabilities
// [num_clusters] capacity; log_totals [num_queries], ln sum_j exp(r_hj), nullptr: not wanted (GPUs
// leave it). Results: zones; retrieved[0, *num_retrieved) holds the first zone, in
// rank order or, where `ranked` is false, ascending; probabilities[i] = p_i; everything is
// deterministic.
struct SelectClustersTask {
  const float* scores = nullptr;
  int64_t stride = 0;
  int num_queries = 0;
  const uint32_t* sizes = nullptr;
  int64_t num_clusters = 0;
  int64_t token_budget = 0;
  int64_t num_estimation = 0;
  Zone first_zone = Zone::kRetrieval;
  Zone last_zone = Zone::kRemainder;
  bool ranked = true;
  const RiskLimit* risk = nullptr;
  float* probabilities = nullptr;
  float* log_totals = nullptr;
  Zone* zones = nullptr;
  uint32_t* retrieved = nullptr;
  int64_t* num_retrieved = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SELECT_CLUSTERS_H_
