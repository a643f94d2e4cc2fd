#include "cpu/candidates.h"

#include <bit>
#include <cstddef>

#include "cpu/rank_cut.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/candidates.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Lists the items whose rank is at least `least`, and their ranks, in their order; returns how
// many. Lists have room for `count` and one vector.
int64_t ListItems(const float* shares, int64_t count, uint32_t least, uint32_t* items,
                  uint32_t* ranks) {
  const hn::ScalableTag<uint32_t> d;
  const auto n = static_cast<int64_t>(hn::Lanes(d));
  const hn::RebindToSigned<decltype(d)> di;
  const auto below = hn::Set(di, static_cast<int32_t>(least) - 1);
  const auto sign = hn::Set(d, 0x7fffffffu);
  const auto* bits = reinterpret_cast<const uint32_t*>(shares);
  int64_t size = 0, i = 0;
  // Compressed in registers: some machines take long to compress to memory.
  for (; i + n <= count; i += n) {
    const auto rank = hn::And(hn::LoadU(d, bits + i), sign);
    const auto is_candidate = hn::RebindMask(d, hn::Gt(hn::BitCast(di, rank), below));
    hn::StoreU(hn::Compress(rank, is_candidate), d, ranks + size);
    hn::StoreU(hn::Compress(hn::Iota(d, static_cast<uint32_t>(i)), is_candidate), d, items + size);
    size += static_cast<int64_t>(hn::CountTrue(d, is_candidate));
  }
  for (; i < count; ++i) {
    ranks[size] = bits[i] & 0x7fffffffu;
    items[size] = static_cast<uint32_t>(i);
    size += ranks[size] >= least ? 1 : 0;
  }
  return size;
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {
namespace {

HWY_EXPORT(ListItems);

// A rank that, by a sample, half as many again as `wanted` items reach; 0 where a sample says
// little.
uint32_t LikelyRank(const float* shares, int64_t count, int64_t wanted) {
  constexpr int64_t kSample = 1024;
  const int64_t step = count / kSample;
  if (step < 4) return 0;
  const int64_t size = count / step;
  const int64_t at = size * wanted * 3 / (2 * count) + 16;
  if (at >= size) return 0;
  const auto rank = [&](int64_t i) {
    return std::bit_cast<uint32_t>(shares[i * step]) & 0x7fffffffu;
  };
  return RankCut<int32_t>(rank, size, static_cast<int32_t>(at + 1), [](int64_t) { return 1; })
      .rank();
}

}  // namespace

void Candidates::List(const float* shares, int64_t count, int64_t wanted) {
  ListFrom(shares, count, LikelyRank(shares, count, wanted));
}

void Candidates::ListFrom(const float* shares, int64_t count, uint32_t least) {
  constexpr int64_t kVectorMax = 64;
  if (const auto room = static_cast<size_t>(count + kVectorMax); items_.size() < room) {
    items_.resize(room);
    ranks_.resize(room);
  }
  size_ = HWY_DYNAMIC_DISPATCH(ListItems)(shares, count, least, items_.data(), ranks_.data());
}

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
