// What means and values weigh in the answer of a batch of queries: the arithmetic of
// compute/estimate_clusters.h without the sums over rows. Compiled once per instruction set.
#if defined(WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#undef WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#else
#define WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "compute/score_tokens.h"
#include "cpu/estimate_masses-inl.h"
#include "cpu/estimate_parts.h"
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// One vector has a number of each query of the batch.
template <bool kErrors>
class BatchWeights {
 public:
  static constexpr int kBatch = EstimateParts::kBatch;
  using Tag = hn::FixedTag<float, kBatch>;
  using Numbers = hn::Vec<Tag>;

  BatchWeights(const EstimateClustersTask& task, int first_query, EstimateParts& parts,
               QueryBatch& batch)
      : index_(*task.index), parts_(parts), batch_(batch), first_query_(first_query) {
    const int64_t number = first_query / kBatch;
    mean_weight_ = parts.cluster_weights.data() + number * parts.cluster_stride() * kBatch;
    super_weight_ = parts.super_weights.data() + number * parts.super_stride() * kBatch;
    taken_weight_ = parts.taken_weights.data() + number * parts.taken_stride() * kBatch;
    const float noise = CodeNoise(index_.code_bits);
    doubt_ = 0.5f * noise * noise;
  }

  // Needs the masses of clusters; fills in the weights and sums, but for offsets and error terms.
  void Compute() {
    const Tag d;
    mass_ = hn::Zero(d);
    if (parts_.num_tokens > 0) WeighTokens();
    Numbers of_means = hn::Zero(d);
    for (int64_t s = 0; s < index_.num_supers; ++s) {
      const EstimateParts::Super& super = parts_.all_supers[s];
      const Numbers weight =
          super.remainder == Remainder::kWhole ? WeighWhole(s) : WeighParts(s, super);
      if (!super.has_mean) continue;
      hn::StoreU(weight, d, super_weight_);
      super_weight_ += kBatch;
      of_means = hn::Add(of_means, weight);
    }
    float masses[kBatch], means[kBatch];
    hn::StoreU(mass_, d, masses);
    hn::StoreU(of_means, d, means);
    for (int q = 0; q < kBatch; ++q) {
      parts_.sums[first_query_ + q].mass = masses[q];
      parts_.sums[first_query_ + q].of_means = means[q];
    }
  }

 private:
  static Numbers Number(int64_t x) { return hn::Set(Tag(), static_cast<float>(x)); }
  Numbers TokenScales() const { return hn::LoadU(Tag(), batch_.token_scales); }
  float* ClusterMassAt(int64_t cluster) const {
    return parts_.cluster_masses.data() + cluster * kBatch;
  }
  Numbers ClusterMass(int64_t cluster) const { return hn::LoadU(Tag(), ClusterMassAt(cluster)); }
  float* PartWeightAt(uint32_t part) const {
    return parts_.part_weights.data() + int64_t{part} * kBatch;
  }
  // Of the clusters [first, last).
  Numbers SumMasses(int64_t first, int64_t last) const {
    const hn::CappedTag<float, 16> wide;
    constexpr int kAtOnce = hn::MaxLanes(hn::CappedTag<float, 16>()) / kBatch;
    auto sums = hn::Zero(wide);
    for (; first + kAtOnce <= last; first += kAtOnce) {
      sums = hn::Add(sums, hn::LoadU(wide, parts_.cluster_masses.data() + first * kBatch));
    }
    Numbers sum = SumOfBlocks(wide, sums);
    for (; first < last; ++first) sum = hn::Add(sum, ClusterMass(first));
    return sum;
  }
  // Calls visit(first, last) for the runs of clusters between the parts of a super-cluster.
  template <class Visit>
  HWY_INLINE void ForEachGap(int64_t s, const EstimateParts::Super& super, const Visit& visit) {
    int64_t first = index_.super_offsets[s];
    for (uint32_t p = super.first_part; p < super.end_part; ++p) {
      const int64_t cluster = parts_.parts[p].cluster;
      if (first < cluster) visit(first, cluster);
      first = cluster + 1;
    }
    if (first < index_.super_offsets[s + 1]) visit(first, int64_t{index_.super_offsets[s + 1]});
  }
  void PushMeanWeight(Numbers weight) {
    hn::StoreU(weight, Tag(), mean_weight_);
    mean_weight_ += kBatch;
  }

  // How far a part of the given mass per token is taken out of a whole.
  static Numbers Deduction(Numbers rest_mass, Numbers part_mass) {
    return hn::IfThenElse(hn::Gt(part_mass, rest_mass), hn::Div(rest_mass, part_mass),
                          hn::Set(Tag(), 1.0f));
  }

  // A super-cluster whose clusters are all of the remainder zone.
  Numbers WeighWhole(int64_t s) {
    const Numbers sum = SumMasses(index_.super_offsets[s], index_.super_offsets[s + 1]);
    mass_ = hn::Add(mass_, sum);
    return sum;
  }

  // The weight of a super-cluster; of its clusters, those that are listed get theirs.
  Numbers WeighParts(int64_t s, const EstimateParts::Super& super) {
    const Tag d;
    float* const first_weight = mean_weight_;
    Numbers weights = hn::Zero(d);
    for (uint32_t p = super.first_part; p < super.end_part; ++p) {
      const EstimateParts::Part& part = parts_.parts[p];
      Numbers weight = hn::Zero(d);
      if (part.zone == Zone::kSketch) {
        weight = hn::LoadU(d, PartWeightAt(p));
      } else if (part.zone == Zone::kEstimation) {
        weight = ClusterMass(part.cluster);
        mass_ = hn::Add(mass_, weight);
      }
      if (!part.has_mean) continue;
      PushMeanWeight(weight);
      weights = hn::Add(weights, weight);
    }
    if (super.remainder == Remainder::kNone) return weights;

    Numbers of_remainder = hn::Zero(d);
    ForEachGap(s, super, [&](int64_t first, int64_t last) HWY_ATTR {
      of_remainder = hn::Add(of_remainder, SumMasses(first, last));
    });
    mass_ = hn::Add(mass_, of_remainder);
    if (super.remainder == Remainder::kOwnMeans) {
      ForEachGap(s, super, [&](int64_t first, int64_t last) HWY_ATTR {
        for (; first < last; ++first) PushMeanWeight(ClusterMass(first));
      });
      return hn::Add(weights, of_remainder);
    }
    return hn::Add(weights, TakeOutParts(s, super, of_remainder, first_weight));
  }

  // Answers a remainder by what is left of the super-cluster's mean. `weights` of the parts are
  // lessened; returns what that and the mean itself add to the super-cluster's weight.
  Numbers TakeOutParts(int64_t s, const EstimateParts::Super& super, Numbers of_remainder,
                       float* weights) {
    const Tag d;
    const Numbers rest = hn::Div(of_remainder, Number(super.remainder_tokens));
    const Numbers size = Number(index_.super_size(s));
    const auto part_of = [&](uint32_t p) HWY_ATTR {
      const Numbers tokens = Number(parts_.parts[p].size);
      const Numbers mass = ClusterMass(parts_.parts[p].cluster);
      return hn::Mul(tokens, Deduction(rest, hn::Div(mass, tokens)));
    };
    Numbers left = size;
    for (uint32_t p = super.first_part; p < super.end_part; ++p) left = hn::Sub(left, part_of(p));
    const Numbers per_token = hn::Div(of_remainder, left);
    Numbers deducted = hn::Zero(d);
    for (uint32_t p = super.first_part; p < super.end_part; ++p, weights += kBatch) {
      const Numbers taken = hn::Mul(per_token, part_of(p));
      hn::StoreU(hn::Sub(hn::LoadU(d, weights), taken), d, weights);
      deducted = hn::Add(deducted, taken);
    }
    return hn::Sub(hn::Mul(per_token, size), deducted);
  }

  // For the sketch zone: masses of clusters become those of all their tokens, and weights of parts
  // those of their means. Clusters with chosen tokens, which are hard to foretell, come second.
  void WeighTokens() {
    std::vector<uint32_t>& with_chosen = parts_.parts_with_chosen;
    with_chosen.resize(parts_.parts.size());
    size_t count = 0;
    for (uint32_t p = 0; p < parts_.parts.size(); ++p) {
      if (parts_.parts[p].zone != Zone::kSketch) continue;
      // Factors lie apart, and are asked for some clusters ahead.
      if (kErrors && p + kAhead < parts_.parts.size()) {
        PrefetchFactors(index_, parts_.parts[p + kAhead].cluster);
      }
      with_chosen[count] = p;
      count += AddTokensLeft(p) ? 1 : 0;
    }
    for (size_t i = 0; i < count; ++i) WeighChosen(with_chosen[i]);
  }

  // Of tokens that were not chosen, as if there were no others, with their error terms. Returns
  // whether there are others.
  HWY_INLINE bool AddTokensLeft(uint32_t number) {
    constexpr int64_t kChunk = TokenBits::kBits;
    const Full d;
    constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(Full()));
    const EstimateParts::Part& part = parts_.parts[number];
    const V variance =
        hn::Set(d, kErrors ? std::min(TokenVariance(index_, part.cluster), kErrorVarianceMax) : 0);
    const uint16_t* const factors = index_.code_factors + index_.offsets[part.cluster];
    V sums[kBatch];
    for (int q = 0; q < kBatch; ++q) sums[q] = hn::Zero(d);
    uint64_t any_chosen = 0;
    for (int64_t begin = 0; begin < part.size; begin += kChunk) {
      const int64_t count = std::min(kChunk, part.size - begin);
      const int64_t token = part.first_token + begin;
      const uint64_t chosen = parts_.chosen.Get(token, count);
      const uint64_t left = ~chosen & (~uint64_t{0} >> (kChunk - count));
      any_chosen |= chosen;
      for (int64_t t = 0; t < count; t += kLanes) {
        const uint64_t left_here = left >> t;
        const auto is_left = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&left_here));
        V doubt = hn::Zero(d);
        if constexpr (kErrors) {
          // Reads whole vectors: behind the factors stand other sections.
          const V factor = LoadFloat16(d, reinterpret_cast<const std::byte*>(factors + begin + t));
          doubt = hn::Mul(hn::Mul(factor, factor), hn::Set(d, doubt_));
        }
        HWY_UNROLL(4)
        for (int q = 0; q < kBatch; ++q) {
          // Masked before it is squared: what was chosen may be heavier by e^40.
          const V mass = hn::IfThenElseZero(
              is_left, LoadSome(batch_.token_masses[q], token + t, parts_.num_tokens));
          sums[q] = hn::Add(sums[q], mass);
          if constexpr (!kErrors) continue;
          const V gain =
              hn::Min(hn::Mul(doubt, hn::Set(d, batch_.squared[q])), hn::Set(d, kLogMassGainMax));
          batch_.doubtful[q] = hn::MulAdd(mass, gain, batch_.doubtful[q]);
          batch_.token_variances[q] =
              hn::MulAdd(hn::Mul(mass, mass), variance, batch_.token_variances[q]);
        }
      }
    }
    const Numbers mass = hn::Mul(SumsOfFour(d, sums), TokenScales());
    mass_ = hn::Add(mass_, mass);
    hn::StoreU(mass, Tag(), ClusterMassAt(part.cluster));
    hn::StoreU(mass, Tag(), PartWeightAt(number));
    return any_chosen != 0;
  }

  // The mean of what was not chosen: the whole without what was taken out of it.
  HWY_INLINE void WeighChosen(uint32_t number) {
    const Tag d;
    const EstimateParts::Part& part = parts_.parts[number];
    Numbers taken = hn::Zero(d);
    float* const weights = taken_weight_;
    ForEachChosen(part, [&](int64_t token) HWY_ATTR {
      const Numbers mass = hn::Mul(TokenMass(token), TokenScales());
      hn::StoreU(mass, d, taken_weight_);
      taken_weight_ += kBatch;
      taken = hn::Add(taken, mass);
    });
    const Numbers mass = ClusterMass(part.cluster);
    hn::StoreU(hn::Add(mass, taken), d, ClusterMassAt(part.cluster));
    const int64_t num_taken = (taken_weight_ - weights) / kBatch;
    const int64_t num_left = part.size - num_taken;
    if (num_left == 0) {
      std::fill_n(weights, num_taken * kBatch, 0.0f);
      return;
    }
    const Numbers rest = hn::Div(mass, Number(num_left));
    Numbers left = Number(part.size);
    for (int64_t i = 0; i < num_taken; ++i) {
      const Numbers deducted = Deduction(rest, hn::LoadU(d, weights + i * kBatch));
      hn::StoreU(deducted, d, weights + i * kBatch);
      left = hn::Sub(left, deducted);
    }
    const Numbers per_token = hn::Div(mass, left);
    const Numbers negative = hn::Neg(per_token);
    for (int64_t i = 0; i < num_taken; ++i) {
      hn::StoreU(hn::Mul(negative, hn::LoadU(d, weights + i * kBatch)), d, weights + i * kBatch);
    }
    hn::StoreU(hn::Mul(per_token, Number(part.size)), d, PartWeightAt(number));
  }

  template <class Visit>
  HWY_INLINE void ForEachChosen(const EstimateParts::Part& part, const Visit& visit) const {
    constexpr int64_t kChunk = TokenBits::kBits;
    for (int64_t begin = 0; begin < part.size; begin += kChunk) {
      const int64_t token = part.first_token + begin;
      uint64_t chosen = parts_.chosen.Get(token, std::min(kChunk, part.size - begin));
      for (; chosen != 0; chosen &= chosen - 1) visit(token + std::countr_zero(chosen));
    }
  }

  // Of one token, not scaled. To write four numbers and read them as a vector would wait for the
  // writes, so that near the end alone they are copied.
  HWY_INLINE Numbers TokenMass(int64_t token) const {
    const Tag d;
    if (token + kBatch > parts_.num_tokens) {
      float masses[kBatch];
      for (int q = 0; q < kBatch; ++q) masses[q] = batch_.token_masses[q][token];
      return hn::LoadU(d, masses);
    }
    const auto of_two = [&](int q) HWY_ATTR {
      return hn::InterleaveLower(d, hn::LoadU(d, batch_.token_masses[q] + token),
                                 hn::LoadU(d, batch_.token_masses[q + 1] + token));
    };
    return hn::ConcatLowerLower(d, of_two(2), of_two(0));
  }

  static constexpr uint32_t kAhead = 16;

  const ClusterIndex& index_;
  EstimateParts& parts_;
  QueryBatch& batch_;
  const int first_query_;
  float doubt_;  // what times |q|^2 and a squared factor is half the variance of a token's logit
  // Of the next mean, super-cluster, and chosen token.
  float* mean_weight_;
  float* super_weight_;
  float* taken_weight_;
  Numbers mass_;
};

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
