// Where a ranking by probability is cut, without sorting it.
#ifndef WAVEKV_CPU_RANK_CUT_H_
#define WAVEKV_CPU_RANK_CUT_H_

#include <bit>
#include <cstdint>
#include <limits>
#include <utility>

namespace wavekv::cpu {

// The bits of numbers that are not negative are ordered as the numbers are.
inline uint32_t RankBits(float probability) { return std::bit_cast<uint32_t>(probability); }

// Cuts the ranking: before the cut stand the items of greater bits, and of those with equal bits,
// in index order, as many as it takes to use up `left`. Weights are of type T and none is negative.
template <typename T>
class RankCut {
 public:
  // The shortest prefix of the ranking whose weights reach `target`, all when they never do.
  // rank(i), of which the upper bit is 0, orders the items of [0, count).
  template <typename Rank, typename Weight>
  RankCut(const Rank& rank, int64_t count, T target, const Weight& weight) : left_(target) {
    if (target <= T{0}) {
      bits_ = std::numeric_limits<uint32_t>::max();
      return;
    }
    // The sign bit is 0, so 31 bits: 11, then 10, then 10, each time among those that agree so far.
    for (auto [shift, width] : {std::pair{20, 11}, {10, 10}, {0, 10}}) {
      T weights[1 << 11] = {};
      const uint32_t mask = (1u << width) - 1;
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = rank(i);
        // 64 bits, for the first shift is by 31.
        if (uint64_t{bits ^ bits_} >> (shift + width) != 0) continue;
        weights[bits >> shift & mask] += weight(i);
      }
      uint32_t digit = mask;
      for (; digit > 0 && weights[digit] < left_; --digit) left_ -= weights[digit];
      bits_ |= digit << shift;
    }
  }

  // Of the last item before the cut.
  uint32_t rank() const { return bits_; }

  // To be asked once for every item, in index order.
  bool Includes(uint32_t bits, T weight) {
    if (bits != bits_) return bits > bits_;
    if (left_ <= T{0}) return false;
    left_ -= weight;
    return true;
  }

 private:
  uint32_t bits_ = 0;
  T left_;
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_RANK_CUT_H_
