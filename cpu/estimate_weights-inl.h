// What means and values weigh in the answer of a batch of queries: the arithmetic of
// compute/estimate_clusters.h without the sums over rows. Compiled once per instruction set.
#if defined(WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#undef WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#else
#define WAVEKV_CPU_ESTIMATE_WEIGHTS_INL_H_
#endif

#include <cstdint>

#include "cpu/estimate_parts.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// One vector has a number of each query of the batch.
class BatchWeights {
 public:
  static constexpr int kBatch = EstimateParts::kBatch;
  using Tag = hn::FixedTag<float, kBatch>;
  using Numbers = hn::Vec<Tag>;

  BatchWeights(const EstimateClustersTask& task, int first_query, EstimateParts& parts)
      : task_(task), index_(*task.index), parts_(parts), first_query_(first_query) {
    const int64_t batch = first_query / kBatch;
    cluster_weights_ = parts.cluster_weights.data() + batch * index_.num_clusters * kBatch;
    super_weights_ = parts.super_weights.data() + batch * index_.num_supers * kBatch;
    taken_weights_ = parts.taken_weights.data() +
                     batch * static_cast<int64_t>(parts.taken_tokens.size()) * kBatch;
  }

  void Compute() {
    const Tag d;
    mass_ = hn::Zero(d);
    Numbers of_means = hn::Zero(d);
    const auto* sketch = parts_.sketch_clusters.data();
    for (int64_t s = 0; s < index_.num_supers; ++s) {
      const Numbers weight =
          parts_.remainders[s] == Remainder::kWhole ? WeighWhole(s) : WeighParts(s, &sketch);
      hn::StoreU(weight, d, super_weights_ + s * kBatch);
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
  Numbers ClusterMass(int64_t cluster) const {
    return hn::LoadU(Tag(), parts_.cluster_masses.data() + cluster * kBatch);
  }
  Numbers TokenMass(int64_t token) const {
    return hn::LoadU(Tag(), parts_.token_masses.data() + token * kBatch);
  }
  // Of the tokens [begin, end): two sums, as each waits for its last addition.
  Numbers TokenMasses(int64_t begin, int64_t end) const {
    Numbers even = hn::Zero(Tag()), odd = hn::Zero(Tag());
    for (; begin + 2 <= end; begin += 2) {
      even = hn::Add(even, TokenMass(begin));
      odd = hn::Add(odd, TokenMass(begin + 1));
    }
    if (begin < end) even = hn::Add(even, TokenMass(begin));
    return hn::Add(even, odd);
  }
  static Numbers Number(int64_t x) { return hn::Set(Tag(), static_cast<float>(x)); }
  void SetWeight(int64_t cluster, Numbers weight) {
    hn::StoreU(weight, Tag(), cluster_weights_ + cluster * kBatch);
  }

  // How far a part of the given mass per token is taken out of a whole.
  static Numbers Deduction(Numbers rest_mass, Numbers part_mass) {
    return hn::IfThenElse(hn::Gt(part_mass, rest_mass), hn::Div(rest_mass, part_mass),
                          hn::Set(Tag(), 1.0f));
  }

  // A super-cluster whose clusters are all of the remainder zone.
  Numbers WeighWhole(int64_t super) {
    Numbers sum = hn::Zero(Tag());
    for (int64_t i = index_.super_offsets[super]; i < index_.super_offsets[super + 1]; ++i) {
      sum = hn::Add(sum, ClusterMass(i));
    }
    mass_ = hn::Add(mass_, sum);
    return sum;
  }

  // The weight of a super-cluster; of its clusters, those that are listed get theirs.
  Numbers WeighParts(int64_t super, const EstimateParts::SketchCluster** sketch) {
    const Tag d;
    const Remainder remainder = parts_.remainders[super];
    const int64_t first = index_.super_offsets[super], last = index_.super_offsets[super + 1];
    Numbers weights = hn::Zero(d), of_remainder = hn::Zero(d);
    int64_t remainder_tokens = 0;
    for (int64_t i = first; i < last; ++i) {
      Numbers weight = hn::Zero(d);
      switch (task_.zones[i]) {
        case Zone::kSketch:
          weight = WeighSketch(i, *(*sketch)++);
          break;
        case Zone::kEstimation:
          weight = ClusterMass(i);
          mass_ = hn::Add(mass_, weight);
          break;
        case Zone::kRemainder:
          of_remainder = hn::Add(of_remainder, ClusterMass(i));
          remainder_tokens += index_.cluster_size(i);
          if (remainder == Remainder::kOwnMeans) weight = ClusterMass(i);
          break;
        case Zone::kRetrieval:
        case Zone::kIgnored:
          break;
      }
      SetWeight(i, weight);
      weights = hn::Add(weights, weight);
    }
    mass_ = hn::Add(mass_, of_remainder);
    if (remainder != Remainder::kSuperMean) return weights;

    const Numbers rest = hn::Div(of_remainder, Number(remainder_tokens));
    Numbers left = Number(index_.super_size(super)), deducted = hn::Zero(d);
    const auto for_each_part = [&](const auto& visit) HWY_ATTR {
      for (int64_t i = first; i < last; ++i) {
        if (task_.zones[i] == Zone::kRemainder) continue;
        const Numbers size = Number(index_.cluster_size(i));
        visit(i, hn::Mul(size, Deduction(rest, hn::Div(ClusterMass(i), size))));
      }
    };
    for_each_part([&](int64_t, Numbers part) HWY_ATTR { left = hn::Sub(left, part); });
    const Numbers per_token = hn::Div(of_remainder, left);
    for_each_part([&](int64_t i, Numbers part) HWY_ATTR {
      const Numbers taken = hn::Mul(per_token, part);
      const Numbers weight = hn::LoadU(d, cluster_weights_ + i * kBatch);
      SetWeight(i, hn::Sub(weight, taken));
      deducted = hn::Add(deducted, taken);
    });
    const Numbers own = hn::Mul(per_token, Number(index_.super_size(super)));
    return hn::Add(hn::Sub(weights, deducted), own);
  }

  // The mean of what was not chosen: the whole without what was taken out of it. The mass of the
  // cluster becomes that of all its tokens.
  Numbers WeighSketch(int64_t cluster, const EstimateParts::SketchCluster& sketch) {
    const Tag d;
    const int64_t size = index_.cluster_size(cluster);
    const int64_t num_left = size - (sketch.end_taken - sketch.first_taken);
    Numbers mass = hn::Zero(d), taken = hn::Zero(d);
    int64_t token = sketch.first_token;
    for (int64_t i = sketch.first_taken; i < sketch.end_taken; ++i, ++token) {
      mass = hn::Add(mass, TokenMasses(token, parts_.taken_tokens[i].sketch_token));
      token = parts_.taken_tokens[i].sketch_token;
      taken = hn::Add(taken, TokenMass(token));
      hn::StoreU(hn::Zero(d), d, taken_weights_ + i * kBatch);
    }
    mass = hn::Add(mass, TokenMasses(token, sketch.end_token));
    hn::StoreU(hn::Add(mass, taken), d, parts_.cluster_masses.data() + cluster * kBatch);
    if (num_left == 0) return mass;
    mass_ = hn::Add(mass_, mass);
    if (num_left == size) return mass;

    const Numbers rest = hn::Div(mass, Number(num_left));
    Numbers left = Number(size);
    for (int64_t i = sketch.first_taken; i < sketch.end_taken; ++i) {
      const Numbers part = Deduction(rest, TokenMass(parts_.taken_tokens[i].sketch_token));
      hn::StoreU(part, d, taken_weights_ + i * kBatch);
      left = hn::Sub(left, part);
    }
    const Numbers per_token = hn::Div(mass, left);
    for (int64_t i = sketch.first_taken; i < sketch.end_taken; ++i) {
      float* weight = taken_weights_ + i * kBatch;
      hn::StoreU(hn::Neg(hn::Mul(per_token, hn::LoadU(d, weight))), d, weight);
    }
    return hn::Mul(per_token, Number(size));
  }

  const EstimateClustersTask& task_;
  const ClusterIndex& index_;
  EstimateParts& parts_;
  const int first_query_;
  float* cluster_weights_;
  float* super_weights_;
  float* taken_weights_;
  Numbers mass_;
};

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
