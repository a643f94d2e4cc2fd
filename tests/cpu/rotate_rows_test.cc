#include "compute/rotate_rows.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "compute/rotation.h"
#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class RotateRowsTest : public BackendFixture {};

TEST_F(RotateRowsTest, ProductsAreKeptAndTheInverseRestores) {
  Random random(91);
  WAVEKV_TRACE_SEED(random);
  for (const int dim : {8, 24, 40, 64, 72, 80, 96, 128, 192, 256, 576}) {
    SCOPED_TRACE(dim);
    constexpr int kRows = 5;
    const std::vector<float> rows = random.Gaussians(kRows * dim);
    std::vector<float> rotated = Poison(kRows * dim);
    const RotateRowsTask task = {rows.data(), rotated.data(), kRows, dim};
    ASSERT_TRUE(backend().RotateRows({&task, 1}).ok());
    const auto dot = [&](const std::vector<float>& of, int a, int b) {
      double sum = 0.0;
      for (int d = 0; d < dim; ++d) sum += static_cast<double>(of[a * dim + d]) * of[b * dim + d];
      return sum;
    };
    for (int a = 0; a < kRows; ++a) {
      for (int b = 0; b <= a; ++b) EXPECT_NEAR(dot(rotated, a, b), dot(rows, a, b), 2e-5 * dim);
    }
    const Rotation rotation(dim);
    for (int a = 0; a < kRows; ++a) rotation.ApplyInverse(rotated.data() + a * dim);
    for (int i = 0; i < kRows * dim; ++i) EXPECT_NEAR(rotated[i], rows[i], 1e-5);
  }
}

TEST_F(RotateRowsTest, ElementsAreThoseOfTheSumsInDouble) {
  Random random(92);
  WAVEKV_TRACE_SEED(random);
  for (const int dim : {1, 2, 3, 4, 7, 8, 13, 16, 24, 32, 40, 64, 72, 80, 96, 128, 192, 256, 576}) {
    SCOPED_TRACE(dim);
    // At an address of no more than a float's alignment, between numbers that must stay.
    std::vector<float> rows = random.Gaussians(dim + 2);
    const std::vector<float> before = rows;
    std::vector<double> expected(rows.begin() + 1, rows.end() - 1);
    Rotation(dim).Apply(expected.data());
    const RotateRowsTask task = {rows.data() + 1, rows.data() + 1, 1, dim};
    ASSERT_TRUE(backend().RotateRows({&task, 1}).ok());
    for (int i = 0; i < dim; ++i) EXPECT_NEAR(rows[i + 1], expected[i], 3e-6) << i;
    EXPECT_EQ(rows.front(), before.front());
    EXPECT_EQ(rows.back(), before.back());
  }
}

TEST_F(RotateRowsTest, NoElementOfARotatedUnitVectorIsLarge) {
  for (const int dim : {64, 80, 96, 128, 192}) {
    for (int d = 0; d < dim; ++d) {
      std::vector<float> row(dim, 0.0f);
      row[d] = 1.0f;
      const RotateRowsTask task = {row.data(), row.data(), 1, dim};
      ASSERT_TRUE(backend().RotateRows({&task, 1}).ok());
      // A power of two in dim is at least half of it, and a second round may add two up.
      for (const float x : row) EXPECT_LE(std::fabs(x), 4.0f / std::sqrt(static_cast<float>(dim)));
    }
  }
}

}  // namespace
}  // namespace wavekv::testing
