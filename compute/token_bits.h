// Sets of tokens as bits, of which those of a cluster take a few instructions, however many it has.
#ifndef WAVEKV_COMPUTE_TOKEN_BITS_H_
#define WAVEKV_COMPUTE_TOKEN_BITS_H_

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace wavekv {

// Threads: as a std::vector.
class TokenBits {
 public:
  static constexpr int64_t kBits = 64;

  // Tokens [0, count), of which those are in the set whose byte of `chosen` is 1; others are 0.
  // Keeps its memory.
  void Load(const uint8_t* chosen, int64_t count) {
    // One more: a read may begin in the last word with tokens.
    words_.resize(static_cast<size_t>(count / kBits + 2));
    int64_t first = 0;
    size_t word = 0;
    for (; first + kBits <= count; first += kBits) words_[word++] = WholeWord(chosen + first);
    uint8_t rest[kBits] = {};
    std::copy(chosen + first, chosen + count, rest);
    words_[word] = WholeWord(rest);
    words_[word + 1] = 0;
  }

  // A bit for each of tokens [first, first + count), the first one's the lowest. REQUIRES: they are
  // among those loaded; 0 < count <= kBits.
  uint64_t Get(int64_t first, int64_t count) const {
    const int64_t word = first / kBits, shift = first % kBits;
    const uint64_t bits = words_[word] >> shift | words_[word + 1] << 1 << (kBits - 1 - shift);
    return bits & (~uint64_t{0} >> (kBits - count));
  }

  // Calls visit(i, bits) for tokens [first + i, first + i + kBits) of [first, first + count) and so
  // on: for a cluster of up to kBits tokens once.
  template <typename Visit>
  void ForEachWord(int64_t first, int64_t count, const Visit& visit) const {
    for (int64_t i = 0; i < count; i += kBits) {
      visit(i, Get(first + i, std::min(kBits, count - i)));
    }
  }

  bool Intersects(int64_t first, int64_t count) const {
    uint64_t any = 0;
    ForEachWord(first, count, [&](int64_t, uint64_t bits) { any |= bits; });
    return any != 0;
  }
  int64_t Count(int64_t first, int64_t count) const {
    int64_t sum = 0;
    ForEachWord(first, count, [&](int64_t, uint64_t bits) { sum += std::popcount(bits); });
    return sum;
  }
  void Insert(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      words_[i / kBits] |= uint64_t{1} << (i % kBits);
    }
  }

 private:
  static uint64_t WholeWord(const uint8_t* bytes) {
    uint64_t bits = 0;
    for (int i = 0; i < kBits; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, bytes + i, sizeof(eight));
      // Moves byte j to bit 56 + j.
      bits |= (eight * 0x0102040810204080u >> 56) << i;
    }
    return bits;
  }

  std::vector<uint64_t> words_;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_TOKEN_BITS_H_
