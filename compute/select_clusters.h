#ifndef WAVEKV_COMPUTE_SELECT_CLUSTERS_H_
#define WAVEKV_COMPUTE_SELECT_CLUSTERS_H_

#include <cstdint>

#include "absl/types/span.h"

namespace wavekv {

// How a query answers a cluster.
enum class Zone : uint8_t {
  kRetrieval = 0,   // its tokens are attended exactly
  kSketch = 1,      // its tokens are weighed by their codes, and the best of them attended exactly
  kEstimation = 2,  // its estimated mass times its own value mean
  kRemainder = 3,   // its estimated mass times the value mean of its super-cluster's remainder
  kIgnored = 4,     // not at all
};

// Ranks the clusters of all sealed segments for one GQA group and divides them into zones.
//
// The rank of a cluster is its probability by score, summed over the group's heads:
//   p_i = sum_h exp(r_hi - ln sum_j exp(r_hj)); ties go to the lower index.
// In rank order, clusters go to the first zone until they hold at least token_budget tokens (all of
// them when they never do; none when the budget is 0), the next num_estimation to the estimation
// zone, all others to the last zone.
//
// Shapes: scores [num_queries, num_clusters], the rank scores of score_clusters.h, row h at h *
// stride; sizes [num_clusters] tokens, all >= 1; zones [num_clusters]; retrieved and probabilities
// [num_clusters] capacity. Results: zones; retrieved[0, *num_retrieved) holds the first zone, in
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
  float* probabilities = nullptr;
  Zone* zones = nullptr;
  uint32_t* retrieved = nullptr;
  int64_t* num_retrieved = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SELECT_CLUSTERS_H_
