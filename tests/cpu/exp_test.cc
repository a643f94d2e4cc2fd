#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/cpu/exp_test.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// In place; the size is a multiple of every vector's lanes.
void ExpAll(std::vector<float>& x) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < x.size(); i += hn::Lanes(d)) {
    hn::StoreU(Exp(d, hn::LoadU(d, &x[i])), d, &x[i]);
  }
}

void EstimateExp2All(std::vector<float>& x) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < x.size(); i += hn::Lanes(d)) {
    hn::StoreU(EstimateExp2(d, hn::LoadU(d, &x[i])), d, &x[i]);
  }
}

void ExpMinusOneAll(std::vector<float>& x) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < x.size(); i += hn::Lanes(d)) {
    hn::StoreU(ExpMinusOne(d, hn::LoadU(d, &x[i])), d, &x[i]);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "gtest/gtest.h"
#include "tests/cpu/each_target.h"

namespace wavekv::cpu {
namespace {

HWY_EXPORT(ExpAll);
HWY_EXPORT(EstimateExp2All);
HWY_EXPORT(ExpMinusOneAll);

// A million numbers from `low` to `high`, evenly.
std::vector<float> Range(double low, double high) {
  constexpr int kCount = 1 << 20;
  std::vector<float> x(kCount);
  for (int i = 0; i < kCount; ++i) x[i] = static_cast<float>(low + (high - low) * i / (kCount - 1));
  return x;
}

// The greatest relative error of `actual` against f(x) in double precision.
template <typename F>
double WorstError(const std::vector<float>& x, const std::vector<float>& actual, F f) {
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = f(static_cast<double>(x[i]));
    if (expected == 0.0) {
      EXPECT_EQ(actual[i], 0.0f);
    } else {
      worst = std::max(worst, std::fabs(actual[i] / expected - 1.0));
    }
  }
  return worst;
}

TEST(ExpTest, RelativeErrorIsBelowTheStatedBound) {
  testing::ForEachTarget([] {
    for (auto [low, high] : {std::pair{-87.3, 0.0}, {-1.0, 0.0}, {-1e-3, 0.0}, {0.0, 88.0}}) {
      const std::vector<float> x = Range(low, high);
      std::vector<float> y = x;
      HWY_DYNAMIC_DISPATCH(ExpAll)(y);
      EXPECT_LT(WorstError(x, y, [](double v) { return std::exp(v); }), 1.5e-7) << low;
    }
  });
}

TEST(ExpTest, VanishesFromMinusInfinityToTheSmallestNormalNumber) {
  testing::ForEachTarget([] {
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> x = {-infinity, -3e38f,  -1e30f, -1e10f, -1e6f,  -1000.0f, -200.0f, -150.0f,
                            -110.0f,   -104.0f, -90.0f, -89.0f, -88.5f, -88.0f,   -87.5f,  -87.34f};
    HWY_DYNAMIC_DISPATCH(ExpAll)(x);
    EXPECT_EQ(x, std::vector<float>(16, 0.0f));
  });
}

TEST(ExpTest, OfZeroIsOne) {
  testing::ForEachTarget([] {
    std::vector<float> x(16, 0.0f);
    HWY_DYNAMIC_DISPATCH(ExpAll)(x);
    EXPECT_EQ(x, std::vector<float>(16, 1.0f));
  });
}

TEST(ExpTest, EstimatedPowerOfTwoIsAsNearAsStated) {
  testing::ForEachTarget([] {
    for (auto [low, high] : {std::pair{-125.9, 0.0}, {-1.0, 1.0}, {-1e-3, 1e-3}, {0.0, 126.9}}) {
      const std::vector<float> x = Range(low, high);
      std::vector<float> y = x;
      HWY_DYNAMIC_DISPATCH(EstimateExp2All)(y);
      EXPECT_LT(WorstError(x, y, [](double v) { return std::exp2(v); }), 3e-6) << low;
    }
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> x = {-infinity, -3e38f,  -1e30f,  -1e10f,  -1e6f,   -1e4f,
                            -1000.0f,  -500.0f, -200.0f, -160.0f, -150.0f, -149.0f,
                            -140.0f,   -130.0f, -127.0f, -126.1f};
    HWY_DYNAMIC_DISPATCH(EstimateExp2All)(x);
    EXPECT_EQ(x, std::vector<float>(16, 0.0f));
  });
}

TEST(ExpTest, MinusOneKeepsItsPrecisionNearZero) {
  testing::ForEachTarget([] {
    for (double high : {80.0, 3.0, 0.4, 1e-3, 1e-9}) {
      const std::vector<float> x = Range(0.0, high);
      std::vector<float> y = x;
      HWY_DYNAMIC_DISPATCH(ExpMinusOneAll)(y);
      EXPECT_LT(WorstError(x, y, [](double v) { return std::expm1(v); }), 3e-7) << high;
    }
  });
}

}  // namespace
}  // namespace wavekv::cpu
#endif  // HWY_ONCE
