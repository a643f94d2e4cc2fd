// Where a ranking is cut by the risk of what stands behind the cut.
#ifndef WAVEKV_CPU_RISK_CUT_H_
#define WAVEKV_CPU_RISK_CUT_H_

#include <cstdint>

#include "absl/types/span.h"
#include "compute/select_clusters.h"
#include "cpu/rank_cut.h"

namespace wavekv::cpu {

// The shortest prefix of the ranking behind which risks add up to the limit; everything where there
// is no limit. One at a time per thread, whose buffer it uses.
class RiskCut {
 public:
  RiskCut(const RiskLimit* limit, int num_queries, const float* probabilities, int64_t count);
  // Of risks that are known, as many as probabilities.
  RiskCut(absl::Span<const float> risks, double limit, const float* probabilities);

  // To be asked once for every item, in index order.
  bool Includes(int64_t item, uint32_t bits) {
    return risks_.empty() || cut_.Includes(bits, risks_[item]);
  }

 private:
  absl::Span<const float> risks_;  // empty: no limit
  RankCut<double> cut_;
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_RISK_CUT_H_
