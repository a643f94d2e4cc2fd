// e^x and e^x - 1 on vectors of fp32. Compiled once per instruction set.
#if defined(WAVEKV_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_EXP_INL_H_
#undef WAVEKV_CPU_EXP_INL_H_
#else
#define WAVEKV_CPU_EXP_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kLog2E = 0x1.715476p+0f;

// x = n ln 2 + r with |r| <= ln(2) / 2, and e^r - 1.
template <class V, class VI>
struct ReducedExp {
  VI exponent;  // n, where the exponent of a number has its bits
  V expm1;
};

template <class D, class V = hn::Vec<D>, class VI = hn::Vec<hn::RebindToSigned<D>>>
HWY_INLINE ReducedExp<V, VI> ReduceExp(D d, V x) {
  const hn::RebindToSigned<D> di;
  // The high part of ln 2 has 16 bits, so n times it is exact with and without fused arithmetic.
  const V ln2_high = hn::Set(d, 0x1.62e4p-1f);
  const V ln2_low = hn::Set(d, 0x1.7f7d1cp-20f);
  // Added to a number below 2^22, this leaves it rounded in the low bits of the sum.
  const V shift = hn::Set(d, 0x1.8p23f);
  const V shifted = hn::MulAdd(x, hn::Set(d, kLog2E), shift);
  const V n = hn::Sub(shifted, shift);
  const V r = hn::NegMulAdd(n, ln2_low, hn::NegMulAdd(n, ln2_high, x));
  // Minimax polynomial of (e^r - 1 - r) / r^2; its share of the relative error is 3.1e-9.
  V p = hn::Set(d, 0x1.6a2350p-10f);
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.123a6cp-7f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.5558f4p-5f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.555490p-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.fffffcp-2f));
  return {hn::ShiftLeft<23>(hn::BitCast(di, shifted)), hn::MulAdd(p, hn::Mul(r, r), r)};
}

// e^x for x <= 88, -infinity included, with a relative error below 1.5e-7. Results that are not
// normal numbers (x < -87.33) are 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  const auto reduced = ReduceExp(d, x);
  const V e_r = hn::Add(reduced.expm1, hn::Set(d, 1.0f));
  // Adding n to the exponent field multiplies by 2^n.
  const V result = hn::BitCast(d, hn::Add(hn::BitCast(di, e_r), reduced.exponent));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -87.33f)), result);
}

// 2^x for x <= 127, -infinity included, with a relative error below 3e-6: for numbers that are
// estimates anyway. 0 for x < -126.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V EstimateExp2(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V shift = hn::Set(d, 0x1.8p23f);  // as above
  const V shifted = hn::Add(x, shift);
  const V r = hn::Sub(x, hn::Sub(shifted, shift));
  // Minimax polynomial of 2^r for |r| <= 1 / 2.
  V p = hn::Set(d, 0x1.3997d6p-7f);
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.ca1440p-5f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.ec06dap-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.62e0dcp-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.ffffe8p-1f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const V result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -126.0f)), result);
}

// e^x - 1 for 0 <= x <= 80 with a relative error below 3e-7, near 0 too.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpMinusOne(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V one = hn::Set(d, 1.0f);
  const auto reduced = ReduceExp(d, x);
  const V two_to_n = hn::BitCast(d, hn::Add(hn::BitCast(di, one), reduced.exponent));
  return hn::MulAdd(two_to_n, reduced.expm1, hn::Sub(two_to_n, one));
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
