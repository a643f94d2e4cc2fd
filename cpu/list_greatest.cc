#include "cpu/list_greatest.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <utility>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/list_greatest.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<int32_t>;
constexpr int kLanes = hn::MaxLanes(Tag());

// One of values [num_values].
struct Row {
  const int32_t* values;
  int64_t num_values;
};

int64_t CountAtLeast(const Row& row, int32_t least) {
  const Tag d;
  const auto one = hn::Set(d, 1), below = hn::Set(d, least - 1);
  auto counts = hn::Zero(d);
  int64_t i = 0;
  for (; i + kLanes <= row.num_values; i += kLanes) {
    const auto at_least = hn::Gt(hn::LoadU(d, row.values + i), below);
    counts = hn::Add(counts, hn::IfThenElseZero(at_least, one));
  }
  int64_t count = hn::GetLane(hn::SumOfLanes(d, counts));
  for (; i < row.num_values; ++i) count += row.values[i] >= least ? 1 : 0;
  return count;
}

// The least value, and one more than the greatest.
std::pair<int32_t, int32_t> Range(const Row& row) {
  const Tag d;
  int32_t least = row.values[0], greatest = row.values[0];
  int64_t i = 0;
  if (row.num_values >= kLanes) {
    auto low = hn::LoadU(d, row.values), high = low;
    for (i = kLanes; i + kLanes <= row.num_values; i += kLanes) {
      const auto x = hn::LoadU(d, row.values + i);
      low = hn::Min(low, x);
      high = hn::Max(high, x);
    }
    least = hn::GetLane(hn::MinOfLanes(d, low));
    greatest = hn::GetLane(hn::MaxOfLanes(d, high));
  }
  for (; i < row.num_values; ++i) {
    least = std::min(least, row.values[i]);
    greatest = std::max(greatest, row.values[i]);
  }
  return {least, greatest + 1};
}

// What is listed: all values of at least `all_from`, and the first `num_equal` of those that are
// one less.
struct Cut {
  int32_t all_from;
  int64_t num_equal;
};

// Halves the interval of where the cut may be: a pass over a row takes less than a step of a
// selection that moves elements, and few passes end between two values.
Cut FindCut(const Row& row, int64_t num_listed) {
  auto [low, high] = Range(row);  // at least as many as are listed reach `low`, fewer `high`
  int64_t num_above = 0;          // reach `high`
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const int64_t count = CountAtLeast(row, middle);
    if (count == num_listed) return {middle, 0};
    if (count > num_listed) {
      low = middle;
    } else {
      high = middle;
      num_above = count;
    }
  }
  return {high, num_listed - num_above};
}

void ListRow(const Row& row, int64_t num_listed, uint32_t* list) {
  Cut cut = FindCut(row, num_listed);
  const auto add = [&](int64_t i) {
    const bool equal = row.values[i] == cut.all_from - 1 && cut.num_equal > 0;
    if (equal) --cut.num_equal;
    if (equal || row.values[i] >= cut.all_from) *list++ = static_cast<uint32_t>(i);
  };
  const Tag d;
  const auto below = hn::Set(d, cut.all_from - (cut.num_equal > 0 ? 2 : 1));
  int64_t i = 0;
  for (; i + kLanes <= row.num_values; i += kLanes) {
    const auto reaches = hn::Gt(hn::LoadU(d, row.values + i), below);
    uint64_t bits = 0;
    static_assert(kLanes <= 64);
    hn::StoreMaskBits(d, reaches, reinterpret_cast<uint8_t*>(&bits));
    for (; bits != 0; bits &= bits - 1) add(i + std::countr_zero(bits));
  }
  for (; i < row.num_values; ++i) add(i);
}

void ListGreatestOf(const ListGreatestTask& task) {
  for (int64_t r = 0; r < task.num_rows; ++r) {
    uint32_t* const list = task.lists + r * task.num_listed;
    if (task.num_listed == task.num_values) {
      std::iota(list, list + task.num_listed, 0u);
    } else {
      ListRow({task.values + r * task.num_values, task.num_values}, task.num_listed, list);
    }
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(ListGreatestOf);

void ListGreatest(const ListGreatestTask& task) { HWY_DYNAMIC_DISPATCH(ListGreatestOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
