// The error terms of compute/estimate_clusters.h.
#ifndef WAVEKV_CPU_ESTIMATE_ERRORS_H_
#define WAVEKV_CPU_ESTIMATE_ERRORS_H_

#include <cstdint>
#include <vector>

#include "compute/estimate_clusters.h"
#include "cpu/estimate_weights.h"

namespace wavekv::cpu {

// Relative to e^offset, the variance to e^(2 offset); without what ignored clusters miss. In
// double, as what clusters and what tokens add may differ in magnitude.
struct ErrorTerms {
  double missing_mass = 0.0;
  double value_variance = 0.0;
};

// Used in order: Load, then Compute for each query. The buffers are kept from one task to the next.
class EstimateErrors {
 public:
  void Load(const EstimateClustersTask& task);

  // `weights`: as they are once all queries are loaded.
  ErrorTerms Compute(const EstimateClustersTask& task, int query,
                     const EstimateWeights& weights) const;

  // What a cluster or a token weighs in the sums; 0 or 1 by its zone, and variances.
  const std::vector<float>& variances() const { return variances_; }
  const std::vector<float>& hidden_variances() const { return hidden_variances_; }
  const std::vector<float>& token_variances() const { return token_variances_; }

 private:
  std::vector<float> variances_;
  std::vector<float> hidden_variances_;
  std::vector<float> token_variances_;
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_ERRORS_H_
