#include "compute/centre_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

constexpr int64_t kRows = 37;

class CentreRowsTest : public BackendFixture {};

template <typename T>
void ExpectSameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)), 0);
}

TEST_F(CentreRowsTest, SumsAndTheLargestMagnitudeGoOnFromRowsBefore) {
  Random random(61);
  WAVEKV_TRACE_SEED(random);
  for (const int dim : kHeadDims) {
    const std::vector<float> rows = random.Gaussians(kRows * dim);
    ForEachTarget([&] {
      std::vector<double> sums(dim, 3.0), expected(dim, 3.0);
      float largest = 0.5f, expected_largest = 0.5f;
      for (int64_t i = 0; i < kRows * dim; ++i) {
        expected[i % dim] += rows[i];
        expected_largest = std::max(expected_largest, std::abs(rows[i]));
      }
      const SumRowsTask task = {rows.data(), kRows, dim, sums.data(), &largest};
      ASSERT_TRUE(backend().SumRows({&task, 1}).ok());
      ExpectSameBytes(sums, expected);
      EXPECT_EQ(largest, expected_largest);
    });
  }
}

TEST_F(CentreRowsTest, WhatIsNoNumberShowsInTheSums) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> rows(kRows * 16, 1.0f);
    rows[5 * 16 + 3] = value;
    ForEachTarget([&] {
      std::vector<double> sums(16, 0.0);
      float largest = 0.0f;
      const SumRowsTask task = {rows.data(), kRows, 16, sums.data(), &largest};
      ASSERT_TRUE(backend().SumRows({&task, 1}).ok());
      for (int j = 0; j < 16; ++j) EXPECT_EQ(std::isfinite(sums[j]), j != 3);
      EXPECT_EQ(largest, std::isnan(value) ? 1.0f : value);
    });
  }
}

TEST_F(CentreRowsTest, RowsLengthsAndIntegersAreTheSameOnEveryInstructionSet) {
  Random random(62);
  WAVEKV_TRACE_SEED(random);
  for (const int dim : kHeadDims) {
    std::vector<float> given = random.Gaussians(kRows * dim);
    const std::vector<float> mean = random.Gaussians(dim);
    constexpr float kScale = 0.25f;
    for (int j = 0; j < dim; ++j) given[4 * dim + j] = mean[j] / kScale;  // becomes zero
    std::vector<float> first_rows, first_lengths;
    std::vector<int16_t> first_rounded;
    ForEachTarget([&] {
      std::vector<float> rows = given, lengths = Poison(kRows);
      std::vector<int16_t> rounded(kRows * dim, -1);
      const CentreRowsTask task = {rows.data(), kRows,          dim,           kScale,
                                   mean.data(), lengths.data(), rounded.data()};
      ASSERT_TRUE(backend().CentreRows({&task, 1}).ok());
      for (int64_t i = 0; i < kRows; ++i) {
        double squared_length = 0.0;
        float largest = 0.0f;
        for (int j = 0; j < dim; ++j) {
          const float x = rows[i * dim + j];
          ASSERT_EQ(x, given[i * dim + j] * kScale - mean[j]);
          squared_length += static_cast<double>(x) * x;
          largest = std::max(largest, std::abs(x));
        }
        EXPECT_NEAR(lengths[i], squared_length, 1e-5 * squared_length);
        for (int j = 0; j < dim; ++j) {
          const double exact = largest == 0.0f ? 0.0 : 4096.0 * rows[i * dim + j] / largest;
          ASSERT_NEAR(rounded[i * dim + j], exact, 0.5 + 0.01) << i << ", " << j;
        }
      }
      if (first_rows.empty()) {
        first_rows = rows;
        first_lengths = lengths;
        first_rounded = rounded;
      }
      ExpectSameBytes(rows, first_rows);
      ExpectSameBytes(lengths, first_lengths);
      ExpectSameBytes(rounded, first_rounded);
    });
  }
}

}  // namespace
}  // namespace wavekv::testing
