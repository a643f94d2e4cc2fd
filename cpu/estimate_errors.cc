#include "cpu/estimate_errors.h"

#include <algorithm>
#include <cstddef>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/estimate_errors.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// growth(x) of compute/estimate_clusters.h.
HWY_INLINE V Growth(V x) {
  const Full d;
  V growth = hn::MulAdd(hn::Min(x, hn::Set(d, 16.0f)), hn::Set(d, 1.0f / 256.0f), hn::Set(d, 1.0f));
  for (int i = 0; i < 8; ++i) growth = hn::Mul(growth, growth);
  return growth;
}

ErrorTerms SumClusters(const EstimateClustersTask& task, const EstimateErrors& errors,
                       const EstimateWeights& weights, float logit_spread, const float* masses) {
  const Full d;
  const V one = hn::Set(d, 1.0f), doubt = hn::Set(d, kDoubt), half = hn::Set(d, 0.5f);
  const V gain_max = hn::Set(d, kLogMassGainMax), spread = hn::Set(d, logit_spread);
  const bool bound = task.mass == MassEstimate::kLowerBound;
  V missing = hn::Zero(d), variance = hn::Zero(d);
  const int64_t count = task.index->num_clusters;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    const V mass = LoadSome(masses, i, count);
    const V x = hn::Mul(spread, LoadSome(task.index->key_spreads, i, count));
    const V gain = hn::Min(hn::Mul(x, half), gain_max);
    const V lacking = bound ? gain : hn::Div(hn::Mul(doubt, gain), hn::Add(one, gain));
    // Masked before it is squared: what is read may be heavier than all else by e^80.
    const V answered = hn::Mul(mass, LoadSome(weights.answered().data(), i, count));
    missing = hn::MulAdd(answered, lacking, missing);
    const V factor = hn::MulAdd(LoadSome(errors.hidden_variances().data(), i, count), Growth(x),
                                LoadSome(errors.variances().data(), i, count));
    variance = hn::MulAdd(hn::Mul(answered, answered), factor, variance);
  }
  return {hn::GetLane(hn::SumOfLanes(d, missing)), hn::GetLane(hn::SumOfLanes(d, variance))};
}

ErrorTerms SumTokens(const EstimateClustersTask& task, const EstimateErrors& errors,
                     const EstimateWeights& weights, int query, const float* masses,
                     int64_t count) {
  const Full d;
  const V half = hn::Set(d, 0.5f), gain_max = hn::Set(d, kLogMassGainMax);
  const float* logits = task.token_logits + query * task.token_stride;
  const float* rank_scores = task.token_rank_scores + query * task.token_stride;
  V missing = hn::Zero(d), variance = hn::Zero(d);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    const V mass = LoadSome(masses, i, count);
    const V noise = hn::Sub(LoadSome(rank_scores, i, count), LoadSome(logits, i, count));
    const V gain = hn::Min(hn::Mul(hn::Mul(noise, noise), half), gain_max);
    const V left = hn::Mul(mass, LoadSome(weights.left_tokens().data(), i, count));
    missing = hn::MulAdd(left, gain, missing);
    const V spread = LoadSome(errors.token_variances().data(), i, count);
    variance = hn::MulAdd(hn::Mul(left, left), spread, variance);
  }
  return {kDoubt * hn::GetLane(hn::SumOfLanes(d, missing)),
          hn::GetLane(hn::SumOfLanes(d, variance))};
}

ErrorTerms ComputeErrors(const EstimateClustersTask& task, const EstimateErrors& errors,
                         const EstimateWeights& weights, int query) {
  const float* masses = weights.logs(query).data();
  const int dim = task.index->shape.head_dim_k;
  float squared = 0.0f;
  for (int i = 0; i < dim; ++i) {
    const float element = task.queries[int64_t{query} * dim + i];
    squared += element * element;
  }
  const float logit_spread = squared / static_cast<float>(dim);
  const ErrorTerms clusters = SumClusters(task, errors, weights, logit_spread, masses);
  const auto num_tokens = static_cast<int64_t>(errors.token_variances().size());
  if (num_tokens == 0) return clusters;
  const float* token_masses = masses + task.index->num_clusters;
  const ErrorTerms tokens = SumTokens(task, errors, weights, query, token_masses, num_tokens);
  return {clusters.missing_mass + tokens.missing_mass,
          clusters.value_variance + tokens.value_variance};
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {
namespace {

// Sums of so many variances stay far from where fp32 ends.
constexpr float kVarianceMax = 1e33f;
constexpr float kGrowthMax = 1e7f;

}  // namespace

HWY_EXPORT(ComputeErrors);

void EstimateErrors::Load(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  variances_.assign(index.num_clusters, 0.0f);
  hidden_variances_.assign(index.num_clusters, 0.0f);
  int64_t num_tokens = 0;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (task.zones[i] == Zone::kSketch) num_tokens += index.cluster_size(i);
  }
  token_variances_.resize(num_tokens);
  int64_t token = 0;
  for (int64_t s = 0; s < index.num_supers; ++s) {
    for (int64_t i = index.super_offsets[s]; i < index.super_offsets[s + 1]; ++i) {
      switch (task.zones[i]) {
        case Zone::kRetrieval:
        case Zone::kIgnored:
          break;
        case Zone::kSketch:
          std::fill_n(token_variances_.begin() + token, index.cluster_size(i),
                      std::min(TokenVariance(index, i), kVarianceMax));
          token += index.cluster_size(i);
          break;
        case Zone::kEstimation:
        case Zone::kRemainder:
          variances_[i] = std::min(ClusterVariance(index, s), kVarianceMax);
          hidden_variances_[i] = std::min(HiddenVariance(index, s, i), kVarianceMax / kGrowthMax);
          break;
      }
    }
  }
}

ErrorTerms EstimateErrors::Compute(const EstimateClustersTask& task, int query,
                                   const EstimateWeights& weights) const {
  return HWY_DYNAMIC_DISPATCH(ComputeErrors)(task, *this, weights, query);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
