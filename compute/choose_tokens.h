#ifndef WAVEKV_COMPUTE_CHOOSE_TOKENS_H_
#define WAVEKV_COMPUTE_CHOOSE_TOKENS_H_

#include <cstdint>
#include <cstring>

namespace wavekv {

// Chooses the tokens of the sketch zone that are attended exactly, for one GQA group: the first
// token_budget by share or, where risks are given, fewer: until those of the others add up to at
// most risk_limit. Ties go to the lower number.
//
// Shapes: shares and risks [num_tokens], as ScoreTokens leaves them, no share NaN or negative;
// risks == nullptr: there is no limit; chosen [num_tokens], 1 or 0. Deterministic.
struct ChooseTokensTask {
  const float* shares = nullptr;
  const float* risks = nullptr;
  double risk_limit = 0.0;
  int64_t num_tokens = 0;
  int64_t token_budget = 0;
  uint8_t* chosen = nullptr;
  int64_t* num_chosen = nullptr;
};

// A bit for each of chosen [first, first + count), count at most 64. Reads nothing past those.
inline uint64_t ChosenBits(const uint8_t* chosen, int64_t first, int64_t count) {
  uint64_t bits = 0;
  const auto add = [&](uint64_t bytes, int64_t at) {
    // Moves byte j to bit 56 + j.
    bits |= (bytes * 0x0102040810204080u >> 56) << at;
  };
  int64_t i = 0;
  uint64_t bytes;
  for (; i + 8 <= count; i += 8) {
    std::memcpy(&bytes, chosen + first + i, 8);
    add(bytes, i);
  }
  if (i == count) return bits;
  if (const int64_t end = first + count; end >= 8) {
    std::memcpy(&bytes, chosen + end - 8, 8);
    add(bytes >> (8 * (8 - (count - i))), i);
  } else {
    for (; i < count; ++i) bits |= uint64_t{chosen[first + i]} << i;
  }
  return bits;
}

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_CHOOSE_TOKENS_H_
