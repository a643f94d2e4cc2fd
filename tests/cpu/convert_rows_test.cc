#include "compute/convert_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class ConvertRowsTest : public BackendFixture {
 protected:
  // Converts and returns all_finite.
  bool Convert(ConvertRowsTask task) {
    bool all_finite = false;
    task.all_finite = &all_finite;
    EXPECT_TRUE(backend().ConvertRows({&task, 1}).ok());
    return all_finite;
  }
};

struct Layout {
  int64_t num_rows, row_elements, source_stride, target_stride;
  int64_t first_element;  // of both buffers, which are aligned
};

// Dense and strided, rows shorter and longer than any vector, aligned and not.
constexpr Layout kLayouts[] = {
    {3, 128, 128, 128, 0}, {5, 40, 43, 51, 1}, {4, 8, 8, 24, 2},       {1, 1, 1, 1, 2},
    {7, 3, 5, 3, 0},       {2, 71, 71, 71, 3}, {9, 256, 1024, 256, 0},
};

void ExpectSameBits(const std::vector<std::byte>& actual, const std::vector<std::byte>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), actual.size()), 0);
}

TEST_F(ConvertRowsTest, RoundsLikeTheScalarDefinitionAndTouchesNothingElse) {
  Random random(11);
  WAVEKV_TRACE_SEED(random);
  for (DType source_dtype : kAllDTypes) {
    for (DType target_dtype : kAllDTypes) {
      for (const Layout& layout : kLayouts) {
        for (float scale : {1.0f, 0.088388346f}) {
          SCOPED_TRACE(::testing::Message()
                       << DTypeName(source_dtype) << " to " << DTypeName(target_dtype)
                       << ", row elements " << layout.row_elements << ", scale " << scale);
          const int64_t source_count = layout.num_rows * layout.source_stride;
          const int64_t target_count = layout.num_rows * layout.target_stride;
          const int64_t source_shift = layout.first_element * DTypeBytes(source_dtype);
          const int64_t target_shift = layout.first_element * DTypeBytes(target_dtype);
          const std::vector<std::byte> encoded =
              Encode(random.Gaussians(source_count), source_dtype);
          std::vector<std::byte> source(source_shift);
          source.insert(source.end(), encoded.begin(), encoded.end());
          const std::vector<std::byte> before(
              target_shift + target_count * DTypeBytes(target_dtype), std::byte{0x5a});
          std::vector<std::byte> expected = before;
          for (int64_t row = 0; row < layout.num_rows; ++row) {
            for (int64_t i = 0; i < layout.row_elements; ++i) {
              const float value =
                  LoadElement(encoded.data(), source_dtype, row * layout.source_stride + i);
              StoreElement(expected.data() + target_shift, target_dtype,
                           row * layout.target_stride + i, value * scale);
            }
          }
          ForEachTarget([&] {
            std::vector<std::byte> target = before;
            EXPECT_TRUE(Convert({.source = source.data() + source_shift,
                                 .source_dtype = source_dtype,
                                 .source_stride = layout.source_stride,
                                 .target = target.data() + target_shift,
                                 .target_dtype = target_dtype,
                                 .target_stride = layout.target_stride,
                                 .num_rows = layout.num_rows,
                                 .row_elements = layout.row_elements,
                                 .scale = scale}));
            ExpectSameBits(target, expected);
          });
        }
      }
    }
  }
}

struct HeadsLayout {
  int64_t num_rows, row_elements;
  int num_heads;
  int64_t source_stride, source_head_stride, target_stride, target_head_stride;
  int64_t first_element;  // of the target, which is aligned to whole vectors
};

// Rows of a tensor into chunks and back, heads before rows, dense on both sides, odd lengths.
constexpr HeadsLayout kHeadsLayouts[] = {
    {5, 128, 4, 512, 128, 128, 8192, 0}, {5, 128, 4, 128, 8192, 512, 128, 0},
    {3, 64, 8, 512, 64, 512, 64, 0},     {1, 64, 8, 512, 64, 64, 64, 0},
    {4, 128, 2, 300, 140, 128, 1024, 0}, {4, 40, 3, 120, 40, 40, 320, 1},
    {2, 7, 2, 14, 7, 7, 14, 0},          {6, 576, 1, 576, 0, 576, 0, 0},
};

TEST_F(ConvertRowsTest, TakesEachRowsHeadsWhereverTheyLie) {
  Random random(13);
  WAVEKV_TRACE_SEED(random);
  for (const DType source_dtype : kAllDTypes) {
    for (const DType target_dtype : kAllDTypes) {
      for (const HeadsLayout& layout : kHeadsLayouts) {
        for (const bool past_caches : {false, true}) {
          SCOPED_TRACE(::testing::Message()
                       << DTypeName(source_dtype) << " to " << DTypeName(target_dtype)
                       << ", row elements " << layout.row_elements << ", heads " << layout.num_heads
                       << ", past caches " << past_caches);
          const auto count = [&](int64_t stride, int64_t head_stride) {
            return (layout.num_rows - 1) * stride + (layout.num_heads - 1) * head_stride +
                   layout.row_elements;
          };
          const std::vector<std::byte> source =
              Encode(random.Gaussians(count(layout.source_stride, layout.source_head_stride)),
                     source_dtype);
          // From a whole line on.
          constexpr int64_t kLine = 64;
          const int64_t target_count = count(layout.target_stride, layout.target_head_stride);
          std::vector<std::byte> memory(kLine + (layout.first_element + target_count) *
                                                    DTypeBytes(target_dtype));
          const auto start = reinterpret_cast<uintptr_t>(memory.data());
          std::byte* const target = memory.data() + ((start + kLine - 1) / kLine * kLine - start) +
                                    layout.first_element * DTypeBytes(target_dtype);
          const std::vector<std::byte> before(target_count * DTypeBytes(target_dtype),
                                              std::byte{0x5a});
          std::vector<std::byte> expected = before;
          for (int64_t row = 0; row < layout.num_rows; ++row) {
            for (int64_t head = 0; head < layout.num_heads; ++head) {
              for (int64_t i = 0; i < layout.row_elements; ++i) {
                const int64_t from =
                    row * layout.source_stride + head * layout.source_head_stride + i;
                StoreElement(expected.data(), target_dtype,
                             row * layout.target_stride + head * layout.target_head_stride + i,
                             LoadElement(source.data(), source_dtype, from));
              }
            }
          }
          ConvertRowsTask task;
          task.source = source.data();
          task.source_dtype = source_dtype;
          task.source_stride = layout.source_stride;
          task.source_head_stride = layout.source_head_stride;
          task.target = target;
          task.target_dtype = target_dtype;
          task.target_stride = layout.target_stride;
          task.target_head_stride = layout.target_head_stride;
          task.num_rows = layout.num_rows;
          task.num_heads = layout.num_heads;
          task.row_elements = layout.row_elements;
          task.past_caches = past_caches;
          ForEachTarget([&] {
            std::copy(before.begin(), before.end(), target);
            EXPECT_TRUE(Convert(task));
            ExpectSameBits({target, target + before.size()}, expected);
          });
          // One number of the last head of the last row.
          std::vector<std::byte> infinite = source;
          StoreElement(infinite.data(), source_dtype,
                       count(layout.source_stride, layout.source_head_stride) - 1,
                       std::numeric_limits<float>::infinity());
          task.source = infinite.data();
          ForEachTarget([&] { EXPECT_FALSE(Convert(task)); });
        }
      }
    }
  }
}

// Every 16-bit pattern, so subnormals, infinities and NaN payloads too.
TEST_F(ConvertRowsTest, CopiesEveryPatternBitExactlyWithinOneType) {
  std::vector<uint16_t> source(65536);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(i);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    ForEachTarget([&] {
      std::vector<uint16_t> target(source.size());
      EXPECT_FALSE(Convert({.source = source.data(),
                            .source_dtype = dtype,
                            .source_stride = 256,
                            .target = target.data(),
                            .target_dtype = dtype,
                            .target_stride = 256,
                            .num_rows = 256,
                            .row_elements = 256}));
      EXPECT_EQ(target, source);
    });
  }
}

TEST_F(ConvertRowsTest, WidensEveryPatternExactly) {
  std::vector<uint16_t> source(65536);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(i);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    ForEachTarget([&] {
      std::vector<float> target(source.size());
      EXPECT_FALSE(Convert({.source = source.data(),
                            .source_dtype = dtype,
                            .source_stride = 256,
                            .target = target.data(),
                            .target_dtype = DType::kFloat32,
                            .target_stride = 256,
                            .num_rows = 256,
                            .row_elements = 256}));
      for (size_t i = 0; i < source.size(); ++i) {
        const float expected = LoadElement(source.data(), dtype, i);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(target[i])) << i;
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(target[i]), std::bit_cast<uint32_t>(expected)) << i;
        }
      }
    });
  }
}

TEST_F(ConvertRowsTest, NarrowsRandomPatternsLikeTheScalarDefinition) {
  Random random(12);
  WAVEKV_TRACE_SEED(random);
  std::vector<float> source(1 << 16);
  for (float& value : source) {
    // Exponents around the range of binary16, where subnormals and overflow lie, and anything else.
    const auto bits = static_cast<uint32_t>(random.engine()());
    const uint32_t exponent = random.Integer(0, 3) == 0
                                  ? bits >> 23 & 0xff
                                  : static_cast<uint32_t>(random.Integer(100, 145));
    value = std::bit_cast<float>((bits & 0x807fffffu) | exponent << 23);
  }
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    ForEachTarget([&] {
      std::vector<uint16_t> target(source.size());
      Convert({.source = source.data(),
               .source_dtype = DType::kFloat32,
               .source_stride = 256,
               .target = target.data(),
               .target_dtype = dtype,
               .target_stride = 256,
               .num_rows = 256,
               .row_elements = 256});
      for (size_t i = 0; i < source.size(); ++i) {
        const uint16_t expected =
            dtype == DType::kFloat16 ? Float32ToFloat16(source[i]) : Float32ToBFloat16(source[i]);
        if (std::isnan(source[i])) {
          ASSERT_TRUE(std::isnan(LoadElement(&target[i], dtype, 0))) << i;
        } else {
          ASSERT_EQ(target[i], expected) << source[i];
        }
      }
    });
  }
}

TEST_F(ConvertRowsTest, ReportsEveryNonFiniteSourceElementWhereverItStands) {
  constexpr int64_t kElements = 77;
  for (DType source_dtype : kAllDTypes) {
    for (DType target_dtype : kAllDTypes) {
      for (float bad :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
            std::numeric_limits<float>::quiet_NaN()}) {
        ForEachTarget([&] {
          for (int64_t at = 0; at < kElements; ++at) {
            std::vector<float> values(kElements, 1.0f);
            values[at] = bad;
            const std::vector<std::byte> source = Encode(values, source_dtype);
            std::vector<std::byte> target(kElements * 4);
            EXPECT_FALSE(Convert({.source = source.data(),
                                  .source_dtype = source_dtype,
                                  .source_stride = kElements,
                                  .target = target.data(),
                                  .target_dtype = target_dtype,
                                  .target_stride = kElements,
                                  .num_rows = 1,
                                  .row_elements = kElements}))
                << at;
          }
        });
      }
    }
  }
}

TEST_F(ConvertRowsTest, ReportsNumbersThatTheTargetTypeCannotHold) {
  const auto finite_as = [&](float value, float scale, DType dtype) {
    float target;
    return Convert({.source = &value,
                    .source_dtype = DType::kFloat32,
                    .source_stride = 1,
                    .target = &target,
                    .target_dtype = dtype,
                    .target_stride = 1,
                    .num_rows = 1,
                    .row_elements = 1,
                    .scale = scale});
  };
  ForEachTarget([&] {
    EXPECT_TRUE(finite_as(65519.0f, 1.0f, DType::kFloat16));
    EXPECT_FALSE(finite_as(65520.0f, 1.0f, DType::kFloat16));
    EXPECT_TRUE(finite_as(65520.0f, 0.5f, DType::kFloat16));
    EXPECT_TRUE(finite_as(65520.0f, 1.0f, DType::kBFloat16));
    EXPECT_FALSE(finite_as(0x1.fffffep127f, 1.0f, DType::kBFloat16));
    EXPECT_TRUE(finite_as(0x1.fffffep127f, 1.0f, DType::kFloat32));
    EXPECT_FALSE(finite_as(0x1.fffffep127f, 2.0f, DType::kFloat32));
  });
}

TEST_F(ConvertRowsTest, AcceptsNoRowsAndNobodyAskingForFiniteness) {
  ConvertRowsTask task;
  EXPECT_TRUE(backend().ConvertRows({&task, 1}).ok());
  EXPECT_TRUE(Convert({}));
}

}  // namespace
}  // namespace wavekv::testing
