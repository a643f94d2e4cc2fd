// Growth() of compute/estimate_clusters.h in vectors.
#if defined(WAVEKV_CPU_GROWTH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_GROWTH_INL_H_
#undef WAVEKV_CPU_GROWTH_INL_H_
#else
#define WAVEKV_CPU_GROWTH_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> GrowthOf(D d, hn::Vec<D> x) {
  auto growth =
      hn::MulAdd(hn::Min(x, hn::Set(d, 16.0f)), hn::Set(d, 1.0f / 256.0f), hn::Set(d, 1.0f));
  for (int i = 0; i < 8; ++i) growth = hn::Mul(growth, growth);
  return growth;
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
