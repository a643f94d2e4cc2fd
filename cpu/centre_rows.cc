#include "cpu/centre_rows.h"

#include <algorithm>
#include <cstdint>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/centre_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_sums-inl.h"
#include "hwy/highway.h"

// Results are the same on all machines, so this file is compiled without contraction of products
// and sums, and has no fused ones of its own.
HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Of a row's largest magnitude as an integer.
constexpr float kLargest = 4096.0f;
// Rows of which no element is larger are zero.
constexpr float kLeast = 1e-30f;

using Floats = Tag<float>;

// Raises `largest` where x is greater. Not where x is NaN.
HWY_INLINE hn::Vec<Floats> Raise(hn::Vec<Floats> largest, hn::Vec<Floats> x) {
  const auto magnitude = hn::Abs(x);
  return hn::IfThenElse(hn::Gt(magnitude, largest), magnitude, largest);
}

void SumRowsOf(const SumRowsTask& task) {
  const Floats d;
  auto largest = hn::Zero(d);
  for (int64_t i = 0; i < task.num_rows; ++i) {
    const float* const row = task.rows + i * task.dim;
    for (int j = 0; j < task.dim; j += kLanes<float>) {
      largest = Raise(largest, hn::LoadU(d, row + j));
    }
  }
  *task.largest = std::max(*task.largest, hn::GetLane(hn::MaxOfLanes(d, largest)));
  const Tag<double> dd;
  const hn::Rebind<float, Tag<double>> df;
  const auto load = [&](int64_t i, int j) HWY_ATTR {
    return hn::PromoteTo(dd, hn::LoadU(df, task.rows + i * task.dim + j));
  };
  AddRows(task.dim, task.num_rows, load, {task.sums});
}

// row = row * scale - mean. Returns its squared length, and its largest magnitude.
HWY_INLINE float CentreRow(const CentreRowsTask& task, float* row, float* largest) {
  const Floats d;
  const auto scale = hn::Set(d, task.scale);
  auto magnitudes = hn::Zero(d);
  const float squared_length = SumOverRow<float>(task.dim, [&](int64_t j) HWY_ATTR {
    const auto x = hn::Sub(hn::Mul(hn::LoadU(d, row + j), scale), hn::LoadU(d, task.mean + j));
    hn::StoreU(x, d, row + j);
    magnitudes = Raise(magnitudes, x);
    return hn::Mul(x, x);
  });
  *largest = hn::GetLane(hn::MaxOfLanes(d, magnitudes));
  return squared_length;
}

HWY_INLINE void RoundRow(const float* row, int dim, float unit, int16_t* to) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const hn::Rebind<int16_t, Floats> d16;
  constexpr int kShift = 1 << 15;  // what is converted is positive, where truncation rounds down
  const auto scale = hn::Set(d, unit), shift = hn::Set(d, kShift + 0.5f);
  for (int j = 0; j < dim; j += kLanes<float>) {
    const auto shifted = hn::Add(hn::Mul(hn::LoadU(d, row + j), scale), shift);
    const auto integer = hn::Sub(hn::ConvertTo(di, shifted), hn::Set(di, kShift));
    hn::StoreU(hn::DemoteTo(d16, integer), d16, to + j);
  }
}

void CentreRowsOf(const CentreRowsTask& task) {
  for (int64_t i = 0; i < task.num_rows; ++i) {
    float* const row = task.rows + i * task.dim;
    float largest;
    task.squared_lengths[i] = CentreRow(task, row, &largest);
    const float unit = largest > kLeast ? kLargest / largest : 0.0f;
    RoundRow(row, task.dim, unit, task.rounded + i * task.dim);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(SumRowsOf);
HWY_EXPORT(CentreRowsOf);

void SumRows(const SumRowsTask& task) { HWY_DYNAMIC_DISPATCH(SumRowsOf)(task); }
void CentreRows(const CentreRowsTask& task) { HWY_DYNAMIC_DISPATCH(CentreRowsOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
