#include "storage/statistics_row.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

// What is read back of a row.
std::vector<float> Stored(const std::vector<float>& row, StatisticsFormat format,
                          float* scale_out = nullptr) {
  const auto dim = static_cast<int64_t>(row.size());
  std::vector<std::byte> bytes(StatisticsRowBytes(format, dim));
  std::vector<float> read(dim);
  float scale = -1.0f;
  StoreStatisticsRow(row.data(), dim, format, bytes.data(), &scale);
  LoadStatisticsRow(bytes.data(), dim, format, scale, read.data());
  if (scale_out != nullptr) *scale_out = scale;
  return read;
}

double RelativeError(const std::vector<float>& row, const std::vector<float>& read) {
  double error = 0.0, length = 0.0;
  for (size_t i = 0; i < row.size(); ++i) {
    error += std::pow(static_cast<double>(read[i]) - row[i], 2);
    length += std::pow(static_cast<double>(row[i]), 2);
  }
  return std::sqrt(error / length);
}

TEST(StatisticsRowTest, NormalRowsLoseLittle) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t dim : {8, 40, 64, 128, 576}) {
    for (const float magnitude : {1e-20f, 1.0f, 1e20f}) {
      const std::vector<float> row = random.Gaussians(dim, magnitude);
      EXPECT_EQ(Stored(row, StatisticsFormat::kFloat32), row);
      EXPECT_LT(RelativeError(row, Stored(row, StatisticsFormat::kInt8)), 0.012);
      EXPECT_LT(RelativeError(row, Stored(row, StatisticsFormat::kInt4)), 0.16);
    }
  }
}

TEST(StatisticsRowTest, IntegersTimesAScaleAreKept) {
  for (const StatisticsFormat format : {StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    const int greatest = format == StatisticsFormat::kInt4 ? 7 : 127;
    std::vector<float> row(64);
    for (int i = 0; i < 64; ++i) row[i] = 0.25f * static_cast<float>(i % (greatest + 1));
    row[7] = 0.25f * static_cast<float>(greatest);
    row[60] = -0.25f * static_cast<float>(greatest);
    EXPECT_EQ(Stored(row, format), row) << StatisticsFormatName(format);
  }
}

TEST(StatisticsRowTest, ZeroAndTheSmallestNumbersAreZero) {
  for (const StatisticsFormat format : {StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    EXPECT_EQ(Stored(std::vector<float>(16, 0.0f), format), std::vector<float>(16, 0.0f));
    EXPECT_EQ(Stored(std::vector<float>(16, 1e-44f), format), std::vector<float>(16, 0.0f));
  }
}

TEST(StatisticsRowTest, TheLargestNumbersStayFinite) {
  for (const StatisticsFormat format : {StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    std::vector<float> row(16, 3e38f);
    row[3] = -3e38f;
    for (const float x : Stored(row, format)) EXPECT_TRUE(std::isfinite(x));
  }
}

}  // namespace
}  // namespace wavekv
