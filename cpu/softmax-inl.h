// The running softmax of one query over tiles of logits. Compiled once per instruction set.
#if defined(WAVEKV_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_SOFTMAX_INL_H_
#undef WAVEKV_CPU_SOFTMAX_INL_H_
#else
#define WAVEKV_CPU_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/exp-inl.h"
#include "cpu/row_tiles.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// row *= factor.
HWY_INLINE void ScaleRow(float* row, int dim, float factor) {
  const hn::CappedTag<float, 8> d;  // divides every dim
  const auto scale = hn::Set(d, factor);
  for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
    hn::StoreU(hn::Mul(hn::LoadU(d, row + i), scale), d, row + i);
  }
}

// Logits at or beyond `visible_end` become -infinity.
HWY_INLINE void MaskRow(const RowTile& tile, int64_t visible_end, float* logits) {
  if (tile.last_position < visible_end) return;
  for (int r = 0; r < tile.num_rows; ++r) {
    if (tile.positions[r] >= visible_end) logits[r] = kMinusInfinity;
  }
}

class OnlineSoftmax {
 public:
  // What a tile changed.
  struct Change {
    float shrink;  // of all earlier weights, now that the maximum has grown: a factor
    float mass;    // sum of the tile's weights
  };

  // Replaces a tile's logits, room for whole vectors of them, by their weights e^{logit - max}.
  HWY_INLINE Change Weigh(float* logits, int num_rows) {
    const hn::ScalableTag<float> d;
    const int n = static_cast<int>(hn::Lanes(d));
    int padded = num_rows;
    while (padded % n != 0) logits[padded++] = kMinusInfinity;

    auto greatest = hn::Set(d, max_);
    for (int r = 0; r < padded; r += n) greatest = hn::Max(greatest, hn::LoadU(d, logits + r));
    const float max = hn::GetLane(hn::MaxOfLanes(d, greatest));
    if (max == kMinusInfinity) {
      std::fill_n(logits, num_rows, 0.0f);
      return {1.0f, 0.0f};
    }
    const float shrink = max == max_ ? 1.0f : std::exp(max_ - max);
    max_ = max;

    const auto offset = hn::Set(d, max);
    auto mass = hn::Zero(d);
    for (int r = 0; r < padded; r += n) {
      const auto weight = Exp(d, hn::Sub(hn::LoadU(d, logits + r), offset));
      mass = hn::Add(mass, weight);
      hn::StoreU(weight, d, logits + r);
    }
    const float tile_mass = hn::GetLane(hn::SumOfLanes(d, mass));
    mass_ = mass_ * shrink + tile_mass;
    return {shrink, tile_mass};
  }

  // Natural log of the mass seen; -infinity if nothing was.
  float lse() const { return mass_ > 0.0f ? max_ + std::log(mass_) : kMinusInfinity; }
  // What normalises the sum of weighted values.
  float inverse_mass() const { return mass_ > 0.0f ? 1.0f / mass_ : 0.0f; }

 private:
  float max_ = kMinusInfinity;
  float mass_ = 0.0f;
};

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
