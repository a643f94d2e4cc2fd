// Those of many items that may be among the best, without ranking all.
#ifndef WAVEKV_CPU_CANDIDATES_H_
#define WAVEKV_CPU_CANDIDATES_H_

#include <cstdint>
#include <vector>

namespace wavekv::cpu {

// Numbers that are not negative are ordered as their bits are; the sign, which says nothing of what
// is no number, is left out.
class Candidates {
 public:
  // Lists, in their order, items of [0, count) that include the best: by what a sample says, about
  // half as many again as `wanted`, but it may be wrong. All of them where a sample says little.
  void List(const float* shares, int64_t count, int64_t wanted);
  void ListAll(const float* shares, int64_t count) { ListFrom(shares, count, /*least=*/0); }

  int64_t size() const { return size_; }
  uint32_t item(int64_t i) const { return items_[i]; }
  uint32_t rank(int64_t i) const { return ranks_[i]; }

 private:
  // Those whose rank is at least `least`.
  void ListFrom(const float* shares, int64_t count, uint32_t least);

  int64_t size_ = 0;
  // Grown to the most items seen.
  std::vector<uint32_t> items_;
  std::vector<uint32_t> ranks_;
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_CANDIDATES_H_
