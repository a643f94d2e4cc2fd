#include "cpu/convert_rows.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/targets.h"
#include "hwy/cache_control.h"
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

// The bits of an element, and those of infinity.
template <DType kType>
using Bits = std::conditional_t<kType == DType::kFloat32, int32_t, int16_t>;
template <DType kType>
constexpr Bits<kType> kInfinity = kType == DType::kFloat32   ? Bits<kType>(0x7f800000)
                                  : kType == DType::kFloat16 ? Bits<kType>(0x7c00)
                                                             : Bits<kType>(0x7f80);

// Copies rows bit for bit. Elements are finite whose magnitude, as an integer, is below that of
// infinity: of all that pass by, the greatest says it. kPastCaches: REQUIRES rows of whole vectors
// in aligned targets.
template <DType kType, bool kPastCaches>
bool CopyRows(const ConvertRowsTask& task) {
  using Int = Bits<kType>;
  const hn::ScalableTag<Int> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const auto magnitude_bits = hn::Set(d, std::numeric_limits<Int>::max());
  const int64_t count = task.row_elements;
  auto greatest = hn::Zero(d);
  Int greatest_of_tails = 0;
  for (int64_t row = 0; row < task.num_rows; ++row) {
    const Int* source = static_cast<const Int*>(task.source) + row * task.source_stride;
    Int* target = static_cast<Int*>(task.target) + row * task.target_stride;
    for (int head = 0; head < task.num_heads; ++head) {
      int64_t i = 0;
      for (; i + n <= count; i += n) {
        const auto bits = hn::LoadU(d, source + i);
        greatest = hn::Max(greatest, hn::And(bits, magnitude_bits));
        if constexpr (kPastCaches) {
          hn::Stream(bits, d, target + i);
        } else {
          hn::StoreU(bits, d, target + i);
        }
      }
      for (; i < count; ++i) {
        Int bits;
        std::memcpy(&bits, source + i, sizeof(bits));
        const auto magnitude = static_cast<Int>(bits & std::numeric_limits<Int>::max());
        greatest_of_tails = std::max(greatest_of_tails, magnitude);
        std::memcpy(target + i, &bits, sizeof(bits));
      }
      source += task.source_head_stride;
      target += task.target_head_stride;
    }
  }
  if constexpr (kPastCaches) hwy::FlushStream();  // before anybody is told that the rows are there
  return hn::AllTrue(d, hn::Lt(greatest, hn::Set(d, kInfinity<kType>))) &&
         greatest_of_tails < kInfinity<kType>;
}

// Whether all runs of the target begin and end at whole vectors.
template <DType kType>
bool IsTargetOfVectors(const ConvertRowsTask& task) {
  const auto vector_bytes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<uint8_t>()));
  const auto is_whole = [&](int64_t elements) {
    return elements * DTypeBytes(kType) % vector_bytes == 0;
  };
  return reinterpret_cast<uintptr_t>(task.target) % vector_bytes == 0 &&
         is_whole(task.row_elements) && is_whole(task.target_stride) &&
         is_whole(task.target_head_stride);
}

// Rows that follow one another without a gap, as one row.
ConvertRowsTask Joined(ConvertRowsTask task) {
  if (task.num_heads > 1 && task.source_head_stride == task.row_elements &&
      task.target_head_stride == task.row_elements) {
    task.row_elements *= task.num_heads;
    task.num_heads = 1;
  }
  if (task.num_heads == 1 && task.source_stride == task.row_elements &&
      task.target_stride == task.row_elements) {
    task.row_elements *= task.num_rows;
    task.num_rows = 1;
  }
  return task;
}

template <DType kSource, DType kTarget>
bool Convert(const ConvertRowsTask& given) {
  const ConvertRowsTask task = Joined(given);
  if constexpr (kSource == kTarget) {
    if (task.scale == 1.0f) {
      return task.past_caches && IsTargetOfVectors<kSource>(task) ? CopyRows<kSource, true>(task)
                                                                  : CopyRows<kSource, false>(task);
    }
  }
  bool all_finite = true;
  for (int64_t row = 0; row < task.num_rows; ++row) {
    for (int head = 0; head < task.num_heads; ++head) {
      const int64_t from = row * task.source_stride + head * task.source_head_stride;
      const int64_t to = row * task.target_stride + head * task.target_head_stride;
      all_finite &= ConvertRun<kSource, kTarget>(
          static_cast<const std::byte*>(task.source) + from * DTypeBytes(kSource),
          task.row_elements, task.scale,
          static_cast<std::byte*>(task.target) + to * DTypeBytes(kTarget));
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
