#include "cpu/estimate_errors.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/estimate_errors.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

using Full = hn::ScalableTag<float>;
using V = hn::Vec<Full>;

// What the error terms read of a vector of consecutive clusters.
struct Clusters {
  V log_masses, key_spreads, value_spreads, sizes;
  hn::Mask<Full> estimated;
};

// The same as arrays: the end of an index, filled up with retrieved clusters.
struct Tail {
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(Full()));
  float log_masses[kLanes] = {}, key_spreads[kLanes] = {}, value_spreads[kLanes] = {};
  uint32_t offsets[kLanes + 1] = {};
  Zone zones[kLanes] = {};
};

HWY_INLINE Clusters Load(const float* log_masses, const float* key_spreads,
                         const float* value_spreads, const uint32_t* offsets, const Zone* zones) {
  const Full d;
  const hn::RebindToSigned<Full> di;
  const hn::Rebind<uint8_t, Full> d8;
  const auto* begins = reinterpret_cast<const int32_t*>(offsets);
  const auto zone = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(zones)));
  const auto is = [&](Zone which)
                      HWY_ATTR { return hn::Eq(zone, hn::Set(di, static_cast<int32_t>(which))); };
  return {hn::LoadU(d, log_masses), hn::LoadU(d, key_spreads), hn::LoadU(d, value_spreads),
          hn::ConvertTo(d, hn::Sub(hn::LoadU(di, begins + 1), hn::LoadU(di, begins))),
          hn::RebindMask(d, hn::Or(is(Zone::kEstimation), is(Zone::kRemainder)))};
}

// Loads the clusters from `first` on.
HWY_INLINE Clusters LoadClusters(const ClusterIndex& index, const float* log_masses,
                                 const Zone* zones, int64_t first) {
  const int64_t left = index.num_clusters - first;
  if (left >= Tail::kLanes) {
    return Load(log_masses + first, index.key_spreads + first, index.value_spreads + first,
                index.offsets + first, zones + first);
  }
  Tail tail;
  std::copy_n(log_masses + first, left, tail.log_masses);
  std::copy_n(index.key_spreads + first, left, tail.key_spreads);
  std::copy_n(index.value_spreads + first, left, tail.value_spreads);
  std::copy_n(index.offsets + first, left + 1, tail.offsets);
  std::copy_n(zones + first, left, tail.zones);
  return Load(tail.log_masses, tail.key_spreads, tail.value_spreads, tail.offsets, tail.zones);
}

struct Errors {
  float missing_mass = 0.0f;
  float value_variance = 0.0f;
};

// `logit_spread` is |q|^2 / head_dim_k: times a key spread, the variance of the logit.
Errors SumErrors(const ClusterIndex& index, const float* log_masses, MassEstimate mass,
                 const Zone* zones, float lse, float logit_spread) {
  const Full d;
  const V cap = hn::Set(d, kLogMassGainMax), one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
  V missing = hn::Zero(d), variance = hn::Zero(d);
  for (int64_t i = 0; i < index.num_clusters; i += Tail::kLanes) {
    const Clusters c = LoadClusters(index, log_masses, zones, i);
    const V s = hn::Mul(hn::Set(d, logit_spread), c.key_spreads);
    const V gain = ExpMinusOne(d, hn::Min(hn::Mul(s, half), cap));
    const V spread = hn::MulAdd(c.value_spreads, ExpMinusOne(d, hn::Min(s, cap)),
                                hn::Div(c.value_spreads, hn::Max(c.sizes, one)));
    const V log_share = hn::Min(hn::Sub(c.log_masses, hn::Set(d, lse)), hn::Set(d, 0.0f));
    const V w = hn::IfThenElseZero(c.estimated, Exp(d, log_share));
    missing = hn::MulAdd(
        w,
        mass == MassEstimate::kLowerBound ? gain : hn::Div(hn::Mul(half, gain), hn::Add(gain, one)),
        missing);
    variance = hn::MulAdd(hn::Mul(w, w), spread, variance);
  }
  return {hn::GetLane(hn::SumOfLanes(d, missing)), hn::GetLane(hn::SumOfLanes(d, variance))};
}

float SquaredLength(const float* x, int dim) {
  float squared = 0.0f;
  for (int i = 0; i < dim; ++i) squared += x[i] * x[i];
  return squared;
}

void EstimateErrorsOf(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_k;
  for (int q = 0; q < task.num_queries; ++q) {
    Errors errors;
    if (task.lse[q] != -std::numeric_limits<float>::infinity()) {
      const float squared = SquaredLength(task.queries + static_cast<int64_t>(q) * dim, dim);
      errors = SumErrors(index, task.log_masses + q * task.log_masses_stride, task.mass, task.zones,
                         task.lse[q], squared / static_cast<float>(dim));
    }
    if (task.missing_mass != nullptr) task.missing_mass[q] = errors.missing_mass;
    if (task.value_variance != nullptr) task.value_variance[q] = errors.value_variance;
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(EstimateErrorsOf);

void EstimateErrors(const EstimateClustersTask& task) {
  if (task.missing_mass == nullptr && task.value_variance == nullptr) return;
  HWY_DYNAMIC_DISPATCH(EstimateErrorsOf)(task);
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
