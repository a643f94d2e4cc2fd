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

// Sums of so many variances stay far from where fp32 ends.
inline constexpr float kErrorVarianceMax = 1e33f;
inline constexpr float kGrowthMax = 1e7f;

// growth(x) of compute/estimate_clusters.h.
HWY_INLINE V Growth(V x) {
  const Full d;
  V growth = hn::MulAdd(hn::Min(x, hn::Set(d, 16.0f)), hn::Set(d, 1.0f / 256.0f), hn::Set(d, 1.0f));
  for (int i = 0; i < 8; ++i) growth = hn::Mul(growth, growth);
  return growth;
}

// What the error terms take from an index and the sketch zone.
inline void LoadSpreads(const EstimateClustersTask& task, EstimateParts& parts) {
  const ClusterIndex& index = *task.index;
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  parts.super_spreads.resize(index.num_clusters + EstimateParts::kPadding);
  parts.token_variances.resize(parts.num_tokens + EstimateParts::kPadding);
  parts.token_doubts.resize(parts.num_tokens + EstimateParts::kPadding);
  const float noise = CodeNoise(index.code_bits);
  const V scale = hn::Set(d, 0.5f * noise * noise);
  const auto* sketch = parts.sketch_clusters.data();
  // Factors lie apart, and are asked for some clusters ahead.
  constexpr size_t kAhead = 16;
  size_t listed = 0;
  for (int64_t s = 0; s < index.num_supers; ++s) {
    const int64_t first = index.super_offsets[s], last = index.super_offsets[s + 1];
    const V spread = hn::Set(d, index.super_value_spreads[s]);
    for (int64_t i = first; i < last; i += n) hn::StoreU(spread, d, &parts.super_spreads[i]);
    if (parts.remainders[s] == Remainder::kWhole) continue;
    for (int64_t i = first; i < last; ++i) {
      if (task.zones[i] != Zone::kSketch) continue;
      if (++listed + kAhead < parts.clusters.size()) {
        const uint32_t ahead = parts.clusters[listed + kAhead];
        PrefetchBytes(reinterpret_cast<const std::byte*>(index.code_factors + index.offsets[ahead]),
                      64);
      }
      const V variance = hn::Set(d, std::min(TokenVariance(index, i), kErrorVarianceMax));
      // Reads whole vectors: behind the factors stand other sections.
      const uint16_t* factors = index.code_factors + index.offsets[i] - sketch->first_token;
      for (int64_t t = sketch->first_token; t < sketch->end_token; t += n) {
        const V factor = LoadFloat16(d, reinterpret_cast<const std::byte*>(factors + t));
        hn::StoreU(variance, d, &parts.token_variances[t]);
        hn::StoreU(hn::Mul(hn::Mul(factor, factor), scale), d, &parts.token_doubts[t]);
      }
      ++sketch;
    }
  }
  std::fill_n(parts.super_spreads.begin() + index.num_clusters, EstimateParts::kPadding, 0.0f);
  std::fill_n(parts.token_variances.begin() + parts.num_tokens, EstimateParts::kPadding, 0.0f);
  std::fill_n(parts.token_doubts.begin() + parts.num_tokens, EstimateParts::kPadding, 0.0f);
}

// The masses of a batch of queries, worked on together. Of the queries past num_queries the rows of
// the first stand in.
class BatchMasses {
 public:
  static constexpr int kBatch = EstimateParts::kBatch;

  BatchMasses(const EstimateClustersTask& task, int first_query, EstimateParts& parts)
      : task_(task), parts_(parts), first_query_(first_query) {
    for (int q = 0; q < kBatch; ++q) {
      const int query = first_query + q < task.num_queries ? first_query + q : first_query;
      log_masses_[q] = task.log_masses + query * task.log_masses_stride;
      logits_[q] =
          task.token_logits == nullptr ? nullptr : task.token_logits + query * task.token_stride;
      offsets_[q] = Offset(log_masses_[q], logits_[q]);
      squared_[q] = 0.0f;
      if (task.missing_lse == nullptr) continue;
      const int dim = task.index->shape.head_dim_k;
      const float* row = task.queries + static_cast<int64_t>(query) * dim;
      squared_[q] = Dot(row, row, dim);
    }
  }

  // Fills in the masses and offsets, and the error terms where they are asked for.
  void Compute() {
    if (task_.missing_lse != nullptr) {
      ComputeClusters</*kErrors=*/true>();
      ComputeTokens</*kErrors=*/true>();
    } else {
      ComputeClusters</*kErrors=*/false>();
      ComputeTokens</*kErrors=*/false>();
    }
    for (int q = 0; q < kBatch; ++q) parts_.sums[first_query_ + q].offset = offsets_[q];
  }

 private:
  float Offset(const float* log_masses, const float* logits) const {
    float most = GreatestOf(log_masses, parts_.answered.data(), task_.index->num_clusters);
    if (parts_.num_tokens > 0) {
      most = std::max(most, GreatestOf(logits, parts_.left_tokens.data(), parts_.num_tokens));
    }
    return most == -std::numeric_limits<float>::infinity() ? 0.0f : most;
  }

  // The greatest of the logs whose `counts` is not 0.
  static float GreatestOf(const float* logs, const float* counts, int64_t count) {
    const Full d;
    const V none = hn::Set(d, -std::numeric_limits<float>::infinity());
    V greatest = none;
    ForEachVector(logs, count, [&](int64_t i, V log) HWY_ATTR {
      const auto is_counted = hn::Ne(hn::LoadU(d, counts + i), hn::Zero(d));
      greatest = hn::Max(greatest, hn::IfThenElse(is_counted, log, none));
    });
    return hn::GetLane(hn::MaxOfLanes(d, greatest));
  }

  // e^{log - offset}, at most e^80, of a vector of items.
  V Mass(const float* logs, int64_t i, int64_t count, int q) const {
    const Full d;
    const V log = LoadSome(logs, i, count, -std::numeric_limits<float>::infinity());
    return Exp(d, hn::Min(hn::Sub(log, hn::Set(d, offsets_[q])), hn::Set(d, 80.0f)));
  }

  static void StoreBatch(const V (&masses)[kBatch], int64_t i, std::vector<float>& to) {
    hn::StoreInterleaved4(masses[0], masses[1], masses[2], masses[3], Full(), &to[i * kBatch]);
  }

  template <bool kErrors>
  void ComputeClusters() {
    const Full d;
    const ClusterIndex& index = *task_.index;
    const int64_t count = index.num_clusters;
    const bool bound = task_.mass == MassEstimate::kLowerBound;
    const V one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f), doubt = hn::Set(d, kDoubt);
    const V gain_max = hn::Set(d, kLogMassGainMax);
    V missing[kBatch], variances[kBatch], masses[kBatch];
    for (int q = 0; q < kBatch; ++q) missing[q] = variances[q] = hn::Zero(d);
    for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) masses[q] = Mass(log_masses_[q], i, count, q);
      StoreBatch(masses, i, parts_.cluster_masses);
      if (!kErrors) continue;
      const V is_answered = hn::LoadU(d, parts_.answered.data() + i);
      const V key_spread = LoadSome(index.key_spreads, i, count);
      const V value_spread = LoadSome(index.value_spreads, i, count);
      const V super_spread = hn::LoadU(d, parts_.super_spreads.data() + i);
      const V own = hn::Min(hn::Mul(super_spread, hn::Set(d, kClusterVariance)),
                            hn::Set(d, kErrorVarianceMax));
      const V hidden =
          hn::Min(hn::Mul(hn::Mul(hn::Add(value_spread, super_spread), hn::Set(d, kHiddenVariance)),
                          Exp(d, hn::Neg(LoadSome(index.log_sizes, i, count)))),
                  hn::Set(d, kErrorVarianceMax / kGrowthMax));
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) {
        const V x = hn::Mul(LogitSpread(q), key_spread);
        const V gain = hn::Min(hn::Mul(x, half), gain_max);
        const V lacking = bound ? gain : hn::Div(hn::Mul(doubt, gain), hn::Add(one, gain));
        // Masked before it is squared: what is read may be heavier than all else by e^80.
        const V mass = hn::IfThenElseZero(hn::Ne(is_answered, hn::Zero(d)), masses[q]);
        missing[q] = hn::MulAdd(mass, lacking, missing[q]);
        const V factor = hn::MulAdd(hidden, Growth(x), own);
        variances[q] = hn::MulAdd(hn::Mul(mass, mass), factor, variances[q]);
      }
    }
    if (kErrors) AddErrors(missing, variances, 1.0);
  }

  template <bool kErrors>
  void ComputeTokens() {
    const Full d;
    const int64_t count = parts_.num_tokens;
    V missing[kBatch], variances[kBatch], masses[kBatch];
    for (int q = 0; q < kBatch; ++q) missing[q] = variances[q] = hn::Zero(d);
    for (int64_t t = 0; t < count; t += static_cast<int64_t>(hn::Lanes(d))) {
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) masses[q] = Mass(logits_[q], t, count, q);
      StoreBatch(masses, t, parts_.token_masses);
      if (!kErrors) continue;
      const V is_left = hn::LoadU(d, parts_.left_tokens.data() + t);
      const V doubts = hn::LoadU(d, parts_.token_doubts.data() + t);
      const V spread = hn::LoadU(d, parts_.token_variances.data() + t);
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) {
        const V gain =
            hn::Min(hn::Mul(doubts, hn::Set(d, squared_[q])), hn::Set(d, kLogMassGainMax));
        const V mass = hn::Mul(masses[q], is_left);
        missing[q] = hn::MulAdd(mass, gain, missing[q]);
        variances[q] = hn::MulAdd(hn::Mul(mass, mass), spread, variances[q]);
      }
    }
    if (kErrors) AddErrors(missing, variances, kDoubt);
  }

  V LogitSpread(int q) const {
    return hn::Set(Full(), squared_[q] / static_cast<float>(task_.index->shape.head_dim_k));
  }

  void AddErrors(const V (&missing)[kBatch], const V (&variances)[kBatch], double share) {
    const Full d;
    for (int q = 0; q < kBatch; ++q) {
      EstimateParts::Sums& sums = parts_.sums[first_query_ + q];
      sums.missing_mass += share * hn::GetLane(hn::SumOfLanes(d, missing[q]));
      sums.value_variance += hn::GetLane(hn::SumOfLanes(d, variances[q]));
    }
  }

  const EstimateClustersTask& task_;
  EstimateParts& parts_;
  const int first_query_;
  const float* log_masses_[kBatch];
  const float* logits_[kBatch];
  float offsets_[kBatch];
  float squared_[kBatch];  // |q|^2
};

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
