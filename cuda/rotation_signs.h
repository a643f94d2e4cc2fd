// The signs of compute/rotation.h as bits, for kernels.
#ifndef WAVEKV_CUDA_ROTATION_SIGNS_H_
#define WAVEKV_CUDA_ROTATION_SIGNS_H_

#include <cstdint>

#include "wavekv/types.h"

namespace wavekv {

// The generator's draws, the same whatever the dim: draws [0, dim) are the first round's signs,
// draws [dim, 2 dim) the second's. Bit k % 32 of word k / 32 is 1 where draw k is negative. Small
// enough to be handed to a kernel by value.
struct RotationSigns {
  uint32_t words[2 * kHeadDimMax / 32];
};
static_assert(2 * kHeadDimMax % 32 == 0);

constexpr RotationSigns MakeRotationSigns() {
  RotationSigns signs = {};
  uint64_t state = 0x9e3779b97f4a7c15;
  for (int k = 0; k < 2 * kHeadDimMax; ++k) {
    state = state * 6364136223846793005 + 1442695040888963407;
    signs.words[k / 32] |= static_cast<uint32_t>(state >> 63) << (k % 32);
  }
  return signs;
}
inline constexpr RotationSigns kRotationSigns = MakeRotationSigns();

}  // namespace wavekv

#endif  // WAVEKV_CUDA_ROTATION_SIGNS_H_
