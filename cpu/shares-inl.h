// Long rows in vectors. Compiled once per instruction set.
#if defined(WAVEKV_CPU_SHARES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_SHARES_INL_H_
#undef WAVEKV_CPU_SHARES_INL_H_
#else
#define WAVEKV_CPU_SHARES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

using Full = hn::ScalableTag<float>;
using V = hn::Vec<Full>;

// Elements [i, i + N) of `count`; those past the end are `filler`.
HWY_INLINE V LoadSome(const float* from, int64_t i, int64_t count, float filler = 0.0f) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  if (i + n <= count) return hn::LoadU(d, from + i);
  alignas(64) float rest[hn::MaxLanes(Full())];
  std::fill_n(rest, n, filler);
  std::copy(from + i, from + count, rest);
  return hn::Load(d, rest);
}

// Calls visit(i, vector of scores[i, i + N)); the last vector is filled up with -infinity.
template <class Visit>
HWY_INLINE void ForEachVector(const float* scores, int64_t count, const Visit& visit) {
  const Full d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + n <= count; i += n) visit(i, hn::LoadU(d, scores + i));
  if (i == count) return;
  visit(i, LoadSome(scores, i, count, -std::numeric_limits<float>::infinity()));
}

// The greatest score; -infinity of none.
HWY_INLINE float Greatest(const float* scores, int64_t count) {
  const Full d;
  V greatest = hn::Set(d, -std::numeric_limits<float>::infinity());
  ForEachVector(scores, count,
                [&](int64_t, V score) HWY_ATTR { greatest = hn::Max(greatest, score); });
  return hn::GetLane(hn::MaxOfLanes(d, greatest));
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
