// Masses of clusters and of the sketch zone's tokens, and the error terms that they make, for the
// arithmetic of compute/estimate_clusters.h. Compiled once per instruction set.
#if defined(WAVEKV_CPU_ESTIMATE_MASSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ESTIMATE_MASSES_INL_H_
#undef WAVEKV_CPU_ESTIMATE_MASSES_INL_H_
#else
#define WAVEKV_CPU_ESTIMATE_MASSES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "compute/score_tokens.h"
#include "cpu/estimate_parts.h"
#include "cpu/exp-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/shares-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

// Sums of so many variances stay far from where fp32 ends, unless tokens that are not chosen are
// heavier than all clusters: sums are infinite then.
inline constexpr float kErrorVarianceMax = 1e33f;
inline constexpr float kGrowthMax = 1e7f;

// growth(x) of compute/estimate_clusters.h.
HWY_INLINE V Growth(V x) {
  const Full d;
  V growth = hn::MulAdd(hn::Min(x, hn::Set(d, 16.0f)), hn::Set(d, 1.0f / 256.0f), hn::Set(d, 1.0f));
  for (int i = 0; i < 8; ++i) growth = hn::Mul(growth, growth);
  return growth;
}

// The spread of its super-cluster's value means for each cluster.
inline void LoadSpreads(const ClusterIndex& index, EstimateParts& parts) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  parts.super_spreads.resize(index.num_clusters + EstimateParts::kPadding);
  for (int64_t s = 0; s < index.num_supers; ++s) {
    const V spread = hn::Set(d, index.super_value_spreads[s]);
    const int64_t last = index.super_offsets[s + 1];
    for (int64_t i = index.super_offsets[s]; i < last; i += n) {
      hn::StoreU(spread, d, &parts.super_spreads[i]);
    }
  }
  std::fill_n(parts.super_spreads.begin() + index.num_clusters, EstimateParts::kPadding, 0.0f);
}

// The queries of a batch, worked on together, and what their error terms have come to. Of the
// queries past num_queries the rows of the first stand in.
struct QueryBatch {
  static constexpr int kBatch = EstimateParts::kBatch;

  QueryBatch(const EstimateClustersTask& task, int first_query) {
    const Full d;
    for (int q = 0; q < kBatch; ++q) {
      const int query = first_query + q < task.num_queries ? first_query + q : first_query;
      log_masses[q] = task.log_masses + query * task.log_masses_stride;
      if (task.token_masses != nullptr) {
        token_masses[q] = task.token_masses + query * task.token_stride;
        token_offsets[q] = task.token_offsets[query];
      }
      missing[q] = variances[q] = doubtful[q] = token_variances[q] = hn::Zero(d);
      if (task.missing_lse == nullptr) continue;
      const int dim = task.index->shape.head_dim_k;
      const float* row = task.queries + static_cast<int64_t>(query) * dim;
      squared[q] = Dot(row, row, dim);
    }
  }

  // e^{log - offset}, at most e^80.
  HWY_INLINE V Mass(V log, int q) const {
    const Full d;
    const V power = hn::Mul(hn::Sub(log, hn::Set(d, offsets[q])), hn::Set(d, kLog2E));
    return EstimateExp2(d, hn::Min(power, hn::Set(d, 80.0f * kLog2E)));
  }

  const float* log_masses[kBatch];
  const float* token_masses[kBatch];  // to be scaled
  float token_offsets[kBatch] = {};
  float token_scales[kBatch] = {};  // e^{token_offset - offset}; 0 if there are no tokens
  float offsets[kBatch] = {};
  float squared[kBatch] = {};  // |q|^2
  // Vectors whose lanes add up to the error terms: the mass that may be missing and the variance.
  V missing[kBatch];
  V variances[kBatch];
  // And of tokens, by masses that are not scaled yet, the first without kDoubt.
  V doubtful[kBatch];
  V token_variances[kBatch];
};

// The greatest of the logs whose `counts` is not 0.
inline float GreatestCounted(const float* logs, const float* counts, int64_t count) {
  const Full d;
  const V none = hn::Set(d, -std::numeric_limits<float>::infinity());
  V greatest = none;
  ForEachVector(logs, count, [&](int64_t i, V log) HWY_ATTR {
    const auto is_counted = hn::Ne(hn::LoadU(d, counts + i), hn::Zero(d));
    greatest = hn::Max(greatest, hn::IfThenElse(is_counted, log, none));
  });
  return hn::GetLane(hn::MaxOfLanes(d, greatest));
}

// What all masses of a batch are relative to.
inline void FindOffsets(const EstimateClustersTask& task, const EstimateParts& parts,
                        QueryBatch& batch) {
  for (int q = 0; q < QueryBatch::kBatch; ++q) {
    float most =
        GreatestCounted(batch.log_masses[q], parts.answered.data(), task.index->num_clusters);
    // So that no scale exceeds 1.
    if (parts.num_tokens > 0) most = std::max(most, batch.token_offsets[q]);
    batch.offsets[q] = most == -std::numeric_limits<float>::infinity() ? 0.0f : most;
    if (parts.num_tokens > 0) {
      batch.token_scales[q] = std::exp(batch.token_offsets[q] - batch.offsets[q]);
    }
  }
}

// The masses of all clusters for a batch, and the error terms of those that are answered.
template <bool kErrors>
void ComputeClusterMasses(const EstimateClustersTask& task, EstimateParts& parts,
                          QueryBatch& batch) {
  constexpr int kBatch = QueryBatch::kBatch;
  const Full d;
  const ClusterIndex& index = *task.index;
  const int64_t count = index.num_clusters;
  const bool bound = task.mass == MassEstimate::kLowerBound;
  const V one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f), doubt = hn::Set(d, kDoubt);
  const V gain_max = hn::Set(d, kLogMassGainMax);
  V masses[kBatch];
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    HWY_UNROLL(4)
    for (int q = 0; q < kBatch; ++q) {
      masses[q] = batch.Mass(
          LoadSome(batch.log_masses[q], i, count, -std::numeric_limits<float>::infinity()), q);
    }
    hn::StoreInterleaved4(masses[0], masses[1], masses[2], masses[3], d,
                          &parts.cluster_masses[i * kBatch]);
    if (!kErrors) continue;
    const auto is_answered = hn::Ne(hn::LoadU(d, parts.answered.data() + i), hn::Zero(d));
    const V key_spread = LoadSome(index.key_spreads, i, count);
    const V value_spread = LoadSome(index.value_spreads, i, count);
    const V super_spread = hn::LoadU(d, parts.super_spreads.data() + i);
    const V own =
        hn::Min(hn::Mul(super_spread, hn::Set(d, kClusterVariance)), hn::Set(d, kErrorVarianceMax));
    const V hidden =
        hn::Min(hn::Mul(hn::Mul(hn::Add(value_spread, super_spread), hn::Set(d, kHiddenVariance)),
                        Exp(d, hn::Neg(LoadSome(index.log_sizes, i, count)))),
                hn::Set(d, kErrorVarianceMax / kGrowthMax));
    HWY_UNROLL(4)
    for (int q = 0; q < kBatch; ++q) {
      const float spread = batch.squared[q] / static_cast<float>(index.shape.head_dim_k);
      const V x = hn::Mul(hn::Set(d, spread), key_spread);
      const V gain = hn::Min(hn::Mul(x, half), gain_max);
      const V lacking = bound ? gain : hn::Div(hn::Mul(doubt, gain), hn::Add(one, gain));
      // Masked before it is squared: what is read may be heavier than all else by e^80.
      const V mass = hn::IfThenElseZero(is_answered, masses[q]);
      batch.missing[q] = hn::MulAdd(mass, lacking, batch.missing[q]);
      const V factor = hn::MulAdd(hidden, Growth(x), own);
      batch.variances[q] = hn::MulAdd(hn::Mul(mass, mass), factor, batch.variances[q]);
    }
  }
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
