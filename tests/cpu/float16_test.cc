#include "storage/float16.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::Random;

// A binary format of `mantissa_bits` stored bits whose smallest normal number is 2^min_exponent.
struct Format {
  int mantissa_bits;
  int min_exponent;
  double largest;
};
constexpr Format kFloat16Format = {10, -14, 65504.0};
constexpr Format kBFloat16Format = {7, -126, 0x1.fep127};

// To nearest, ties to even, from the definition.
double RoundTo(const Format& format, double value) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double rounded = std::nearbyint(value / unit) * unit;
  return std::fabs(rounded) > format.largest
             ? std::copysign(std::numeric_limits<double>::infinity(), value)
             : rounded;
}

TEST(Float16Test, EveryFloat16PatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = Float16ToFloat32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Float16ToFloat32(Float32ToFloat16(value)))) << bits;
    } else {
      ASSERT_EQ(Float32ToFloat16(value), bits);
    }
  }
}

TEST(Float16Test, EveryBFloat16PatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = BFloat16ToFloat32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BFloat16ToFloat32(Float32ToBFloat16(value)))) << bits;
    } else {
      ASSERT_EQ(Float32ToBFloat16(value), bits);
    }
  }
}

TEST(Float16Test, Float16PatternsHaveTheValuesOfTheFormat) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const int exponent = static_cast<int>(bits >> 10);
    const double mantissa = static_cast<double>(bits & 0x3ff);
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
    ASSERT_EQ(Float16ToFloat32(static_cast<uint16_t>(bits)), expected);
    ASSERT_EQ(Float16ToFloat32(static_cast<uint16_t>(bits | 0x8000)), -expected);
  }
  EXPECT_EQ(Float16ToFloat32(0x7c00), std::numeric_limits<float>::infinity());
}

void ExpectRoundsLikeTheDefinition(float value) {
  ASSERT_EQ(Float16ToFloat32(Float32ToFloat16(value)), RoundTo(kFloat16Format, value)) << value;
  ASSERT_EQ(BFloat16ToFloat32(Float32ToBFloat16(value)), RoundTo(kBFloat16Format, value)) << value;
}

TEST(Float16Test, RoundsToNearestEvenAroundEveryFloat16) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float here = Float16ToFloat32(static_cast<uint16_t>(bits));
    const double next =
        bits == 0x7bff ? 65536.0 : Float16ToFloat32(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((here + next) / 2);
    for (float value : {std::nextafterf(middle, 0.0f), middle, std::nextafterf(middle, 1e9f)}) {
      ExpectRoundsLikeTheDefinition(value);
      ExpectRoundsLikeTheDefinition(-value);
    }
  }
}

TEST(Float16Test, RoundsRandomPatternsToNearestEven) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (int i = 0; i < 2000000; ++i) {
    const auto bits = static_cast<uint32_t>(random.engine()());
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(Float16ToFloat32(Float32ToFloat16(value))));
      ASSERT_TRUE(std::isnan(BFloat16ToFloat32(Float32ToBFloat16(value))));
    } else {
      ExpectRoundsLikeTheDefinition(value);
    }
  }
}

}  // namespace
}  // namespace wavekv
