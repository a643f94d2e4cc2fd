#include "cpu/convert_rows.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/targets.h"
#include "storage/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/convert_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// Stores fp32 numbers as kType, rounded to nearest even like storage/float16.h.
template <DType kType, class D>
HWY_INLINE void StoreRounded(D d, hn::Vec<D> value, std::byte* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> du16;
  auto* to16 = reinterpret_cast<uint16_t*>(to);
  if constexpr (kType == DType::kFloat32) {
    hn::StoreU(value, d, reinterpret_cast<float*>(to));
  } else if constexpr (kType == DType::kBFloat16) {
    const auto bits = hn::BitCast(du, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto number = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
    const auto nan = hn::Or(bits, hn::Set(du, 0x00400000));  // stays NaN when its tail is cut off
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
    const auto rounded = hn::ShiftRight<16>(hn::IfThenElse(is_nan, nan, number));
    hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, rounded)), du16, to16);
  } else {
#if HWY_TARGET == HWY_SSE4
    // No instruction for it, see Float32ToFloat16().
    const auto bits = hn::BitCast(du, value);
    const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffff));
    const auto absolute = hn::BitCast(d, magnitude);
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
    const auto normal =
        hn::ShiftRight<13>(hn::Add(hn::Sub(magnitude, hn::Set(du, 0x38000000 - 0xfff)), odd));
    const auto subnormal =
        hn::Sub(hn::BitCast(du, hn::Add(absolute, hn::Set(d, 0.5f))), hn::Set(du, 0x3f000000));
    auto half = hn::IfThenElse(hn::RebindMask(du, hn::Lt(absolute, hn::Set(d, 0x1p-14f))),
                               subnormal, normal);
    half = hn::IfThenElse(hn::RebindMask(du, hn::Ge(absolute, hn::Set(d, 65520.0f))),
                          hn::Set(du, 0x7c00), half);
    half = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), hn::Set(du, 0x7e00), half);
    hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, hn::Or(sign, half))), du16, to16);
#else
    const hn::Rebind<hwy::float16_t, D> dh;
    hn::StoreU(hn::DemoteTo(dh, value), dh, reinterpret_cast<hwy::float16_t*>(to));
#endif
  }
}

// The least magnitude that kType rounds to infinity.
constexpr float Overflow(DType type) {
  switch (type) {
    case DType::kFloat16:
      return 65520.0f;
    case DType::kBFloat16:
      return 0x1.ffp127f;
    case DType::kFloat32:
      break;
  }
  return std::numeric_limits<float>::infinity();
}

// Converts `count` consecutive elements; false if one is not finite before or after.
template <DType kSource, DType kTarget>
bool ConvertRun(const std::byte* source, int64_t count, float scale, std::byte* target) {
  const hn::ScalableTag<float> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, scale), overflow = hn::Set(d, Overflow(kTarget));
  auto finite = hn::Eq(factor, factor);
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    // What is infinite or NaN stays so when multiplied, so looking at the product is enough.
    const auto value = hn::Mul(LoadInOrder<kSource>(d, source + i * DTypeBytes(kSource)), factor);
    finite = hn::And(finite, hn::Lt(hn::Abs(value), overflow));
    StoreRounded<kTarget>(d, value, target + i * DTypeBytes(kTarget));
  }
  bool all_finite = hn::AllTrue(d, finite);
  for (; i < count; ++i) {
    const float value = LoadElement(source, kSource, i) * scale;
    all_finite = all_finite && std::fabs(value) < Overflow(kTarget);
    StoreElement(target, kTarget, i, value);
  }
  return all_finite;
}

// Whether all elements, given as their bits, have a magnitude below that of infinity.
template <typename Int>
bool AllBelow(const Int* bits, int64_t count, Int infinity) {
  constexpr Int kMagnitude = std::numeric_limits<Int>::max();
  const hn::ScalableTag<Int> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  auto greatest = hn::Zero(d);
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    greatest = hn::Max(greatest, hn::And(hn::LoadU(d, bits + i), hn::Set(d, kMagnitude)));
  }
  bool below = hn::AllTrue(d, hn::Lt(greatest, hn::Set(d, infinity)));
  for (; i < count; ++i) below = below && (bits[i] & kMagnitude) < infinity;
  return below;
}

// Copies bit for bit.
template <DType kType>
bool CopyRun(const std::byte* source, int64_t count, std::byte* target) {
  if (count == 0) return true;
  std::memcpy(target, source, count * DTypeBytes(kType));
  if constexpr (kType == DType::kFloat32) {
    return AllBelow(reinterpret_cast<const int32_t*>(source), count, int32_t{0x7f800000});
  } else {
    constexpr int16_t kInfinityBits = kType == DType::kFloat16 ? 0x7c00 : 0x7f80;
    return AllBelow(reinterpret_cast<const int16_t*>(source), count, kInfinityBits);
  }
}

template <DType kSource, DType kTarget>
bool Convert(const ConvertRowsTask& task) {
  const bool dense =
      task.source_stride == task.row_elements && task.target_stride == task.row_elements;
  const int64_t num_runs = dense ? 1 : task.num_rows;
  const int64_t count = dense ? task.num_rows * task.row_elements : task.row_elements;
  const auto* source = static_cast<const std::byte*>(task.source);
  auto* target = static_cast<std::byte*>(task.target);
  bool all_finite = true;
  for (int64_t run = 0; run < num_runs; ++run) {
    const std::byte* from = source + run * task.source_stride * DTypeBytes(kSource);
    std::byte* to = target + run * task.target_stride * DTypeBytes(kTarget);
    if (kSource == kTarget && task.scale == 1.0f) {
      all_finite &= CopyRun<kSource>(from, count, to);
    } else {
      all_finite &= ConvertRun<kSource, kTarget>(from, count, task.scale, to);
    }
  }
  return all_finite;
}

template <DType kSource>
bool ConvertFrom(const ConvertRowsTask& task) {
  switch (task.target_dtype) {
    case DType::kFloat32:
      return Convert<kSource, DType::kFloat32>(task);
    case DType::kFloat16:
      return Convert<kSource, DType::kFloat16>(task);
    case DType::kBFloat16:
      return Convert<kSource, DType::kBFloat16>(task);
  }
  return false;
}

bool ConvertRowsOf(const ConvertRowsTask& task) {
  switch (task.source_dtype) {
    case DType::kFloat32:
      return ConvertFrom<DType::kFloat32>(task);
    case DType::kFloat16:
      return ConvertFrom<DType::kFloat16>(task);
    case DType::kBFloat16:
      return ConvertFrom<DType::kBFloat16>(task);
  }
  return false;
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(ConvertRowsOf);

void ConvertRows(const ConvertRowsTask& task) {
  const bool all_finite = HWY_DYNAMIC_DISPATCH(ConvertRowsOf)(task);
  if (task.all_finite != nullptr) *task.all_finite = all_finite;
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
