#include "cuda/convert_rows.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "storage/float16.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

class ConvertRowsOnGpu : public GpuFixture {
 protected:
  // A task whose source, and whose target's place in device memory, this object owns.
  void AddTask(ConvertRowsTask task, std::vector<std::byte> source, int64_t first_element) {
    sources_.push_back(std::move(source));
    const int64_t target_bytes =
        (first_element + task.num_rows * task.target_stride) * DTypeBytes(task.target_dtype);
    targets_.push_back(Poison<std::byte>(target_bytes));
    target_bytes_.push_back(target_bytes);
    task.source = sources_.back().data();
    tasks_.push_back(task);
    first_elements_.push_back(first_element);
  }

  // All of them in one launch; whole targets are those of the CPU, but for the bits of a NaN.
  void ExpectWhatTheCpuGives() {
    const auto count = static_cast<int64_t>(tasks_.size());
    auto* const all_finite = reinterpret_cast<bool*>(Upload(std::vector<uint8_t>(count, 1)));
    std::vector<ConvertRowsTask> on_device = tasks_;
    TaskBounds bounds;
    for (int64_t i = 0; i < count; ++i) {
      ConvertRowsTask& task = on_device[i];
      const int64_t shift = first_elements_[i];
      task.source = Upload(sources_[i]) + shift * DTypeBytes(task.source_dtype);
      task.target = targets_[i] + shift * DTypeBytes(task.target_dtype);
      task.all_finite = i % 7 == 6 ? nullptr : all_finite + i;
      if (task.num_rows == 0) task.source = task.target = nullptr;
      bounds.num_items = std::max(bounds.num_items, task.num_rows);
    }
    Expect(operations().convert_rows({Upload(on_device), count}, bounds, stream()));
    const std::vector<uint8_t> got_finite =
        Download(reinterpret_cast<const uint8_t*>(all_finite), count);
    for (int64_t i = 0; i < count; ++i) {
      ConvertRowsTask task = tasks_[i];
      SCOPED_TRACE(::testing::Message()
                   << i << ": " << DTypeName(task.source_dtype) << " to "
                   << DTypeName(task.target_dtype) << ", row elements " << task.row_elements);
      std::vector<std::byte> expected(target_bytes_[i], std::byte{0xff});
      bool finite = true;
      task.source = sources_[i].data() + first_elements_[i] * DTypeBytes(task.source_dtype);
      task.target = expected.data() + first_elements_[i] * DTypeBytes(task.target_dtype);
      task.all_finite = &finite;
      if (task.num_rows > 0) Expect(cpu().ConvertRows({&task, 1}));
      EXPECT_EQ(got_finite[i] != 0, finite || i % 7 == 6);
      const std::vector<std::byte> got = Download(targets_[i], target_bytes_[i]);
      const bool copy = task.source_dtype == task.target_dtype && task.scale == 1.0f;
      const int64_t bytes = DTypeBytes(task.target_dtype);
      for (int64_t e = 0; e < target_bytes_[i] / bytes; ++e) {
        if (std::equal(&got[e * bytes], &got[e * bytes] + bytes, &expected[e * bytes])) continue;
        ASSERT_FALSE(copy) << e;
        ASSERT_TRUE(std::isnan(LoadElement(got.data(), task.target_dtype, e)) &&
                    std::isnan(LoadElement(expected.data(), task.target_dtype, e)))
            << e << " is " << LoadElement(got.data(), task.target_dtype, e) << ", not "
            << LoadElement(expected.data(), task.target_dtype, e);
      }
    }
  }

 private:
  std::vector<ConvertRowsTask> tasks_;
  std::vector<std::vector<std::byte>> sources_;
  std::vector<std::byte*> targets_;
  std::vector<int64_t> target_bytes_;
  std::vector<int64_t> first_elements_;
};

struct Layout {
  int64_t num_rows, row_elements, source_stride, target_stride;
  int64_t first_element;  // of both buffers, which are aligned
};

// Dense and strided, rows shorter and longer than a warp's, aligned and not.
constexpr Layout kLayouts[] = {
    {3, 128, 128, 128, 0}, {70, 40, 43, 51, 1}, {4, 8, 8, 24, 2},         {1, 1, 1, 1, 2},
    {7, 3, 5, 3, 0},       {2, 71, 71, 71, 3},  {40, 256, 1024, 256, 0},  {0, 64, 64, 64, 0},
    {5, 64, 72, 80, 8},    {33, 16, 24, 16, 0}, {1, 4000, 4000, 4000, 0}, {5, 24, 28, 32, 4},
};

TEST_P(ConvertRowsOnGpu, GivesWhatTheCpuGivesForEveryLayout) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (const DType source_dtype : kDTypes) {
    for (const DType target_dtype : kDTypes) {
      for (const Layout& layout : kLayouts) {
        const int64_t count = layout.first_element + layout.num_rows * layout.source_stride;
        AddTask({.source_dtype = source_dtype,
                 .source_stride = layout.source_stride,
                 .target_dtype = target_dtype,
                 .target_stride = layout.target_stride,
                 .num_rows = layout.num_rows,
                 .row_elements = layout.row_elements,
                 .scale = random.Integer(0, 1) == 0 ? 1.0f : 0.088388346f},
                Encode(random.Gaussians(count), source_dtype), layout.first_element);
      }
    }
  }
  ExpectWhatTheCpuGives();
}

TEST_P(ConvertRowsOnGpu, GivesWhatTheCpuGivesForEveryKindOfNumber) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  for (const DType source_dtype : kDTypes) {
    for (const DType target_dtype : kDTypes) {
      for (const float scale : {1.0f, 3.0f, 0.0f}) {
        constexpr int64_t kRows = 64, kElements = 64;
        std::vector<std::byte> source(kRows * kElements * DTypeBytes(source_dtype));
        for (std::byte& byte : source) byte = static_cast<std::byte>(random.Integer(0, 255));
        AddTask({.source_dtype = source_dtype,
                 .source_stride = kElements,
                 .target_dtype = target_dtype,
                 .target_stride = kElements,
                 .num_rows = kRows,
                 .row_elements = kElements,
                 .scale = scale},
                source, 0);
      }
    }
  }
  ExpectWhatTheCpuGives();
}

// One element of many, at the edge of what the target holds or past it.
TEST_P(ConvertRowsOnGpu, SaysWhetherAllIsFinite) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float extreme : {65519.9f, 65520.0f, 0x1.fep127f, 0x1.ffp127f, 0x1.fffffep127f,
                              kInfinity, -kInfinity, std::nanf("")}) {
    for (const DType target_dtype : kDTypes) {
      for (const float scale : {1.0f, 0.5f}) {
        for (const int64_t elements : {9, 64}) {
          std::vector<float> rows = random.Gaussians(50 * elements);
          rows[random.Integer(0, 50 * elements - 1)] = extreme;
          AddTask({.source_dtype = DType::kFloat32,
                   .source_stride = elements,
                   .target_dtype = target_dtype,
                   .target_stride = elements,
                   .num_rows = 50,
                   .row_elements = elements,
                   .scale = scale},
                  Encode(rows, DType::kFloat32), 0);
        }
      }
    }
  }
  ExpectWhatTheCpuGives();
}

class RotateRowsOnGpu : public GpuFixture {};

// Bit for bit: stored rows are compared with rows that another machine rotated.
TEST_P(RotateRowsOnGpu, GivesTheNumbersOfTheCpu) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  std::vector<RotateRowsTask> tasks;
  std::vector<std::vector<float>> sources;
  TaskBounds bounds;
  for (const int dim :
       {1, 2, 3, 7, 8, 13, 16, 24, 32, 40, 64, 72, 80, 96, 128, 192, 256, 264, 512, 568, 576}) {
    for (const bool in_place : {false, true}) {
      const int64_t num_rows = random.Integer(0, 40);
      sources.push_back(random.Gaussians(num_rows * dim));
      float* const source = Upload(sources.back());
      tasks.push_back({num_rows == 0 ? nullptr : source,
                       in_place ? source : Poison<float>(num_rows * dim), num_rows, dim});
      bounds.num_items = std::max(bounds.num_items, num_rows);
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  Expect(operations().rotate_rows({Upload(tasks), count}, bounds, stream()));
  for (int64_t i = 0; i < count; ++i) {
    RotateRowsTask task = tasks[i];
    SCOPED_TRACE(task.dim);
    const int64_t size = task.num_rows * task.dim;
    const std::vector<float> got = Download(task.target, size);
    std::vector<float> expected(size);
    task.source = sources[i].data();
    task.target = expected.data();
    Expect(cpu().RotateRows({&task, 1}));
    for (int64_t j = 0; j < size; ++j) ASSERT_EQ(got[j], expected[j]) << j;
  }
}

WAVEKV_ON_EACH_GPU(ConvertRowsOnGpu);
WAVEKV_ON_EACH_GPU(RotateRowsOnGpu);

}  // namespace
}  // namespace wavekv::testing
