// Merging attention states of disjoint parts, against attention over the whole.
#include "wavekv/merge_states.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/naive_attention.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using ::testing::HasSubstr;
using testing::NaiveAttention;
using testing::NaiveAttentionInput;
using testing::NaiveAttentionState;
using testing::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// States of parts of a row of tokens, as tensors of one dtype in one layout, and the state of all.
struct Parts {
  int64_t num_rows;
  int64_t num_heads;
  int64_t head_dim;
  DType dtype;
  LseBase base;

  std::vector<std::vector<std::byte>> outputs;
  std::vector<std::vector<float>> lses;
  std::vector<TensorView> output_views;
  std::vector<PerHeadView> lse_views;
  NaiveAttentionState whole;  // lse natural

  double LogBase() const { return base == LseBase::k2 ? std::log(2.0) : 1.0; }
};

// token_ends: where each part ends; equal ends make an empty part.
Parts MakeParts(Random& random, int64_t num_rows, int64_t num_heads, int64_t head_dim, DType dtype,
                LseBase base, const std::vector<int64_t>& token_ends) {
  Parts parts{num_rows, num_heads, head_dim, dtype, base, {}, {}, {}, {}, {}};
  const int64_t num_tokens = token_ends.back();
  const int64_t queries = num_rows * num_heads;
  NaiveAttentionInput input;
  input.head_dim_k = 16;
  input.head_dim_v = static_cast<int>(head_dim);
  input.queries = random.Gaussians(queries * 16, 2.0f);
  input.keys = random.Gaussians(num_tokens * 16);
  input.values = random.Gaussians(num_tokens * head_dim);
  input.scale = 0.25;
  parts.whole = NaiveAttention(input);

  int64_t begin = 0;
  for (const int64_t end : token_ends) {
    NaiveAttentionInput part = input;
    part.keys.assign(input.keys.begin() + begin * 16, input.keys.begin() + end * 16);
    part.values.assign(input.values.begin() + begin * head_dim,
                       input.values.begin() + end * head_dim);
    const NaiveAttentionState state = NaiveAttention(part);
    std::vector<float> output(state.output.begin(), state.output.end());
    // What an empty state holds must not matter.
    if (begin == end) output.assign(output.size(), kNan);
    parts.outputs.push_back(testing::Encode(output, dtype));
    parts.lses.emplace_back();
    for (const double lse : state.lse) {
      parts.lses.back().push_back(static_cast<float>(lse / parts.LogBase()));
    }
    begin = end;
  }
  for (size_t s = 0; s < parts.outputs.size(); ++s) {
    parts.output_views.push_back(
        TensorView::Dense(parts.outputs[s].data(), dtype, num_rows, num_heads, head_dim));
    parts.lse_views.push_back(PerHeadView::Dense(parts.lses[s].data(), num_rows, num_heads));
  }
  return parts;
}

double Rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-22 : dtype == DType::kFloat16 ? 0x1p-10 : 0x1p-7;
}

void ExpectWhole(const Parts& parts, const std::vector<float>& output,
                 const std::vector<float>& lse, DType output_dtype) {
  // Outputs are convex combinations of values of a few units.
  const double tolerance = 5 * (Rounding(parts.dtype) + Rounding(output_dtype));
  for (size_t i = 0; i < output.size(); ++i) {
    ASSERT_NEAR(output[i], parts.whole.output[i], tolerance) << "element " << i;
  }
  for (size_t i = 0; i < lse.size(); ++i) {
    ASSERT_NEAR(lse[i], parts.whole.lse[i] / parts.LogBase(), 1e-5) << "state " << i;
  }
}

TEST(MergeStatesTest, PartsMergeToTheWholeInEveryDTypeAndBase) {
  Random random(11);
  WAVEKV_TRACE_SEED(random);
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType dtype : kDTypes) {
    for (const DType output_dtype : kDTypes) {
      for (const LseBase base : {LseBase::kE, LseBase::k2}) {
        for (const std::vector<int64_t>& ends :
             std::vector<std::vector<int64_t>>{{9}, {5, 9}, {1, 2, 3, 4, 40}, {30, 31}}) {
          const Parts parts = MakeParts(random, 3, 4, 24, dtype, base, ends);
          std::vector<std::byte> bytes(3 * 4 * 24 * DTypeBytes(output_dtype));
          std::vector<float> lse(3 * 4, kNan);
          const absl::Status status =
              MergeStates(parts.output_views, parts.lse_views, base,
                          MutableTensorView::Dense(bytes.data(), output_dtype, 3, 4, 24),
                          PerHeadView::Dense(lse.data(), 3, 4));
          ASSERT_TRUE(status.ok()) << status;
          ExpectWhole(parts, testing::Decode(bytes.data(), output_dtype, 3 * 4 * 24), lse,
                      output_dtype);
        }
      }
    }
  }
}

TEST(MergeStatesTest, EmptyStatesDoNotCountWhateverTheyHold) {
  Random random(12);
  const Parts parts = MakeParts(random, 2, 2, 8, DType::kFloat32, LseBase::kE, {0, 4, 4, 7, 7});
  std::vector<float> output(2 * 2 * 8, kNan);
  std::vector<float> lse(2 * 2, kNan);
  ASSERT_TRUE(MergeStates(parts.output_views, parts.lse_views, LseBase::kE,
                          MutableTensorView::Dense(output.data(), DType::kFloat32, 2, 2, 8),
                          PerHeadView::Dense(lse.data(), 2, 2))
                  .ok());
  ExpectWhole(parts, output, lse, DType::kFloat32);
}

TEST(MergeStatesTest, NothingButEmptyStatesIsTheEmptyState) {
  for (const LseBase base : {LseBase::kE, LseBase::k2}) {
    const std::vector<float> garbage(16, kNan);
    std::vector<float> empty(2, -kInf);
    std::vector<float> output(16, 5.0f);
    std::vector<float> lse(2, 5.0f);
    const TensorView state = TensorView::Dense(garbage.data(), DType::kFloat32, 1, 2, 8);
    const PerHeadView state_lse = PerHeadView::Dense(empty.data(), 1, 2);
    ASSERT_TRUE(MergeStates({state, state}, {state_lse, state_lse}, base,
                            MutableTensorView::Dense(output.data(), DType::kFloat32, 1, 2, 8),
                            PerHeadView::Dense(lse.data(), 1, 2))
                    .ok());
    EXPECT_EQ(output, std::vector<float>(16, 0.0f));
    EXPECT_EQ(lse, std::vector<float>(2, -kInf));
  }
}

TEST(MergeStatesTest, LargeLogSumExpsDoNotOverflow) {
  const std::vector<float> ones(8, 1.0f);
  const std::vector<float> threes(8, 3.0f);
  for (const float at : {1e30f, 80000.0f, -80000.0f, -1e30f}) {
    std::vector<float> lse_in(1, at);
    std::vector<float> output(8);
    std::vector<float> lse(1);
    ASSERT_TRUE(
        MergeStates(
            {TensorView::Dense(ones.data(), DType::kFloat32, 1, 1, 8),
             TensorView::Dense(threes.data(), DType::kFloat32, 1, 1, 8)},
            {PerHeadView::Dense(lse_in.data(), 1, 1), PerHeadView::Dense(lse_in.data(), 1, 1)},
            LseBase::kE, MutableTensorView::Dense(output.data(), DType::kFloat32, 1, 1, 8),
            PerHeadView::Dense(lse.data(), 1, 1))
            .ok());
    EXPECT_EQ(output, std::vector<float>(8, 2.0f));
    EXPECT_FLOAT_EQ(lse[0], at + std::log(2.0f));
  }
}

TEST(MergeStatesTest, ResultMayReplaceTheFirstState) {
  Random random(13);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Parts parts = MakeParts(random, 2, 3, 16, dtype, LseBase::k2, {5, 12, 20});
    ASSERT_TRUE(MergeStates(parts.output_views, parts.lse_views, LseBase::k2,
                            MutableTensorView::Dense(parts.outputs[0].data(), dtype, 2, 3, 16),
                            PerHeadView::Dense(parts.lses[0].data(), 2, 3))
                    .ok());
    ExpectWhole(parts, testing::Decode(parts.outputs[0].data(), dtype, 2 * 3 * 16), parts.lses[0],
                dtype);
  }
}

TEST(MergeStatesTest, StridesReachHeadsFirstAndPaddedTensorsAndNothingElse) {
  Random random(14);
  constexpr int64_t kRows = 3, kHeads = 2, kDim = 8;
  Parts parts = MakeParts(random, kRows, kHeads, kDim, DType::kFloat32, LseBase::kE, {4, 9});
  // State 1 in [heads, rows, dim], its lse in [heads, rows].
  std::vector<float> heads_first(kRows * kHeads * kDim);
  std::vector<float> lse_heads_first(kRows * kHeads);
  const std::vector<float> dense =
      testing::Decode(parts.outputs[1].data(), DType::kFloat32, kRows * kHeads * kDim);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t h = 0; h < kHeads; ++h) {
      lse_heads_first[h * kRows + r] = parts.lses[1][r * kHeads + h];
      std::memcpy(&heads_first[(h * kRows + r) * kDim], &dense[(r * kHeads + h) * kDim],
                  kDim * sizeof(float));
    }
  }
  parts.output_views[1] = {heads_first.data(), DType::kFloat32, kRows, kHeads, kDim, kDim,
                           kRows * kDim};
  parts.lse_views[1] = {lse_heads_first.data(), kRows, kHeads, 1, kRows};

  // The result in rows of 40 with 3 elements between heads, its lse in rows of 7.
  constexpr int64_t kRowStride = 40, kHeadStride = kDim + 3;
  std::vector<float> output(kRows * kRowStride, 77.0f);
  std::vector<float> lse(kRows * 7, 77.0f);
  const absl::Status status =
      MergeStates(parts.output_views, parts.lse_views, LseBase::kE,
                  {output.data(), DType::kFloat32, kRows, kHeads, kDim, kRowStride, kHeadStride},
                  {lse.data(), kRows, kHeads, 7, 2});
  ASSERT_TRUE(status.ok()) << status;
  std::vector<float> output_dense, lse_dense;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t h = 0; h < kHeads; ++h) {
      lse_dense.push_back(std::exchange(lse[r * 7 + h * 2], 77.0f));
      for (int64_t d = 0; d < kDim; ++d) {
        output_dense.push_back(std::exchange(output[r * kRowStride + h * kHeadStride + d], 77.0f));
      }
    }
  }
  ExpectWhole(parts, output_dense, lse_dense, DType::kFloat32);
  EXPECT_EQ(output, std::vector<float>(output.size(), 77.0f)) << "it wrote between the rows";
  EXPECT_EQ(lse, std::vector<float>(lse.size(), 77.0f));
}

TEST(MergeStatesTest, LogSumExpNeedNotBeAskedFor) {
  Random random(15);
  const Parts parts = MakeParts(random, 1, 1, 8, DType::kFloat32, LseBase::kE, {2, 5});
  std::vector<float> output(8);
  ASSERT_TRUE(MergeStates(parts.output_views, parts.lse_views, LseBase::kE,
                          MutableTensorView::Dense(output.data(), DType::kFloat32, 1, 1, 8), {})
                  .ok());
  ExpectWhole(parts, output, {}, DType::kFloat32);
}

TEST(MergeStatesTest, NoRowsIsFine) {
  const TensorView none = TensorView::Dense(nullptr, DType::kFloat32, 0, 2, 8);
  const PerHeadView no_lse = PerHeadView::Dense(nullptr, 0, 2);
  EXPECT_TRUE(MergeStates({none}, {no_lse}, LseBase::kE,
                          MutableTensorView::Dense(nullptr, DType::kFloat32, 0, 2, 8), {})
                  .ok());
}

class MergeStatesErrorTest : public ::testing::Test {
 protected:
  // Expects INVALID_ARGUMENT with the fragment and that nothing was written.
  void ExpectRefused(const char* fragment) {
    const absl::Status status = MergeStates(outputs_, lses_, base_, output_, lse_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fragment;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fragment));
    EXPECT_EQ(written_, std::vector<float>(16, 7.0f));
    EXPECT_EQ(written_lse_, std::vector<float>(2, 7.0f));
  }

  std::vector<float> values_ = std::vector<float>(16, 1.0f);
  std::vector<float> finite_ = std::vector<float>(2, 0.5f);
  std::vector<float> written_ = std::vector<float>(16, 7.0f);
  std::vector<float> written_lse_ = std::vector<float>(2, 7.0f);
  const TensorView state_ = TensorView::Dense(values_.data(), DType::kFloat32, 1, 2, 8);
  const PerHeadView state_lse_ = PerHeadView::Dense(finite_.data(), 1, 2);
  std::vector<TensorView> outputs_ = {state_, state_};
  std::vector<PerHeadView> lses_ = {state_lse_, state_lse_};
  LseBase base_ = LseBase::kE;
  MutableTensorView output_ = MutableTensorView::Dense(written_.data(), DType::kFloat32, 1, 2, 8);
  PerHeadView lse_ = PerHeadView::Dense(written_lse_.data(), 1, 2);
};

TEST_F(MergeStatesErrorTest, NoStates) {
  outputs_.clear();
  lses_.clear();
  ExpectRefused("at least one, got 0 and 0");
}

TEST_F(MergeStatesErrorTest, MoreOutputsThanLogSumExps) {
  lses_.pop_back();
  ExpectRefused("got 2 and 1");
}

TEST_F(MergeStatesErrorTest, BaseThatIsNone) {
  base_ = LseBase{10};
  ExpectRefused("base must be kE or k2, got 10");
}

TEST_F(MergeStatesErrorTest, StateOfAnotherShape) {
  outputs_[1].num_heads = 1;
  ExpectRefused("outputs[] must have shape [1, 2, 8]");
}

TEST_F(MergeStatesErrorTest, LogSumExpOfAnotherShape) {
  lses_[1].num_rows = 2;
  ExpectRefused("lses[] must have shape [1, 2]");
}

TEST_F(MergeStatesErrorTest, NullState) {
  outputs_[1].data = nullptr;
  ExpectRefused("outputs[].data must not be null");
}

TEST_F(MergeStatesErrorTest, NullLogSumExp) {
  lses_[1].data = nullptr;
  ExpectRefused("lses[1].data must not be null");
}

TEST_F(MergeStatesErrorTest, NullOutput) {
  output_.data = nullptr;
  ExpectRefused("output.data must not be null");
}

TEST_F(MergeStatesErrorTest, NanOrInfiniteLogSumExp) {
  for (const float bad : {kNan, kInf}) {
    std::vector<float> lse = {0.5f, bad};
    lses_[1] = PerHeadView::Dense(lse.data(), 1, 2);
    ExpectRefused("lses[1] must be finite or -infinity");
  }
}

TEST_F(MergeStatesErrorTest, UnknownDType) {
  outputs_[0].dtype = DType{8};
  ExpectRefused("outputs[].dtype must be fp32, fp16 or bf16, got 8");
}

TEST_F(MergeStatesErrorTest, HeadsThatOverlap) {
  output_.head_stride = 4;
  ExpectRefused("output.head_stride must be at least 8");
}

TEST_F(MergeStatesErrorTest, NegativeSizes) {
  for (auto* const size : {&output_.num_rows, &output_.num_heads, &output_.head_dim}) {
    const int64_t right = *size;
    *size = -1;
    for (TensorView& state : outputs_) {
      state.num_rows = output_.num_rows;
      state.num_heads = output_.num_heads;
      state.head_dim = output_.head_dim;
    }
    for (PerHeadView& lse : lses_) {
      lse.num_rows = output_.num_rows;
      lse.num_heads = output_.num_heads;
    }
    lse_.num_rows = output_.num_rows;
    lse_.num_heads = output_.num_heads;
    ExpectRefused("output");
    *size = right;
  }
}

}  // namespace
}  // namespace wavekv
