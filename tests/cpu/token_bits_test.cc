#include "compute/token_bits.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

TEST(TokenBitsTest, HaveABitForEachToken) {
  Random random(103);
  WAVEKV_TRACE_SEED(random);
  TokenBits bits;
  for (int trial = 0; trial < 500; ++trial) {
    // No larger than what may be read.
    std::vector<uint8_t> chosen(random.Integer(1, 300));
    for (uint8_t& token : chosen) token = random.Integer(0, 5) == 0 ? 1 : 0;
    const auto size = static_cast<int64_t>(chosen.size());
    bits.Load(chosen.data(), size);
    for (int range = 0; range < 50; ++range) {
      const int64_t first = random.Integer(0, size - 1);
      const int64_t count = random.Integer(1, size - first);
      const auto begin = chosen.begin() + first, end = begin + count;
      if (range % 10 == 9) {
        std::fill(begin, end, uint8_t{1});
        bits.Insert(first, count);
      }
      const auto num_chosen = std::count(begin, end, 1);
      ASSERT_EQ(bits.Count(first, count), num_chosen) << first << " " << count;
      ASSERT_EQ(bits.Intersects(first, count), num_chosen > 0) << first << " " << count;
      const int64_t few = std::min(count, TokenBits::kBits);
      const uint64_t word = bits.Get(first, few);
      for (int64_t i = 0; i < TokenBits::kBits; ++i) {
        ASSERT_EQ(word >> i & 1, i < few ? chosen[first + i] : 0) << first << " " << few;
      }
    }
  }
}

}  // namespace
}  // namespace wavekv::testing
