#include "cuda/attend_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/naive_attention.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kRounding = 0x1p-24;  // the relative error of one fp32 operation
constexpr int64_t kRowsBetween = 3;    // of NaN, before each range and each listed row
constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

// A task's tokens on the host: those of ranges, then those of listed rows.
struct Tokens {
  KvShape shape;
  std::vector<float> keys, values;  // rounded to the dtype
  std::vector<int64_t> positions;
  std::vector<int64_t> sizes;  // of ranges
  int64_t num_rows = 0;
  std::vector<std::vector<uint16_t>> listed;  // positions of every other range
  int64_t num_tokens() const { return static_cast<int64_t>(positions.size()); }
};

Tokens MakeTokens(Random& random, KvShape shape, std::vector<int64_t> sizes, int64_t num_rows,
                  float key_deviation = 1.0f) {
  Tokens tokens = {.shape = shape, .sizes = std::move(sizes), .num_rows = num_rows};
  tokens.listed.resize(tokens.sizes.size());
  for (size_t r = 0; r < tokens.sizes.size(); ++r) {
    const auto begin = static_cast<int64_t>(tokens.positions.size());
    std::vector<uint16_t> order;
    for (int64_t i = 0; i < tokens.sizes[r]; ++i) order.push_back(static_cast<uint16_t>(i));
    if (r % 2 == 1) {
      std::shuffle(order.begin(), order.end(), random.engine());
      tokens.listed[r] = order;
    }
    for (uint16_t i : order) tokens.positions.push_back(begin + i);
  }
  // Below what any query sees.
  for (int64_t i = 0; i < num_rows; ++i) {
    tokens.positions.push_back(std::numeric_limits<int64_t>::min());
  }
  const int64_t n = tokens.num_tokens();
  tokens.keys = Rounded(random.Gaussians(n * shape.head_dim_k, key_deviation), shape.dtype);
  tokens.values = Rounded(random.Gaussians(n * shape.head_dim_v), shape.dtype);
  return tokens;
}

std::vector<float> RandomQueries(Random& random, int num_queries, int dim) {
  return random.Gaussians(int64_t{num_queries} * dim, 1.0f / std::sqrt(static_cast<float>(dim)));
}

struct Question {
  const Tokens* tokens = nullptr;
  std::vector<float> queries;
  std::vector<int64_t> visible_end;  // empty: no mask
  int num_queries() const { return static_cast<int>(queries.size()) / tokens->shape.head_dim_k; }
};

struct Answer {
  std::vector<float> output, lse;  // of each split

  friend bool operator==(const Answer&, const Answer&) = default;
};

class AttendRowsOnGpu : public GpuFixture {
 protected:
  // All questions in one launch, with tasks that are to be skipped among them.
  std::vector<Answer> Attend(const std::vector<Question>& questions, int num_splits) {
    std::vector<GpuAttendTask> tasks;
    TaskBounds bounds;
    bounds.shape = questions[0].tokens->shape;
    for (const Question& question : questions) {
      tasks.push_back(Upload(question, num_splits));
      tasks.emplace_back();
      bounds.num_queries = std::max(bounds.num_queries, question.num_queries());
    }
    Expect(operations().attend_rows({GpuFixture::Upload(tasks), static_cast<int64_t>(tasks.size())},
                                    bounds, num_splits, stream()));
    std::vector<Answer> answers;
    for (size_t i = 0; i < questions.size(); ++i) {
      const GpuAttendTask& task = tasks[2 * i];
      const int64_t states = int64_t{num_splits} * task.num_queries;
      answers.push_back(
          {Download(task.output, states * bounds.shape.head_dim_v), Download(task.lse, states)});
    }
    return answers;
  }

  // Merged over the splits, compared with the definition.
  void ExpectRight(const std::vector<Question>& questions, int num_splits) {
    const std::vector<Answer> answers = Attend(questions, num_splits);
    for (size_t i = 0; i < questions.size(); ++i) {
      const Question& question = questions[i];
      const Tokens& tokens = *question.tokens;
      SCOPED_TRACE(::testing::Message()
                   << "dims " << tokens.shape.head_dim_k << " " << tokens.shape.head_dim_v << " "
                   << DTypeName(tokens.shape.dtype) << " tokens " << tokens.num_tokens() << " rows "
                   << tokens.num_rows << " queries " << question.num_queries()
                   << (question.visible_end.empty() ? "" : " masked") << " splits " << num_splits);
      ExpectNear(answers[i], question, num_splits);
      if (num_splits == 1 && tokens.num_rows == 0) ExpectNearCpu(answers[i], question);
      if (HasFatalFailure()) return;
    }
  }

 private:
  GpuAttendTask Upload(const Question& question, int num_splits) {
    const Tokens& tokens = *question.tokens;
    const KvShape& shape = tokens.shape;
    const int64_t key_bytes = shape.head_dim_k * DTypeBytes(shape.dtype);
    const int64_t value_bytes = shape.head_dim_v * DTypeBytes(shape.dtype);
    const std::vector<std::byte> keys = Encode(tokens.keys, shape.dtype);
    const std::vector<std::byte> values = Encode(tokens.values, shape.dtype);
    const auto num_ranges = static_cast<int64_t>(tokens.sizes.size());
    const int64_t room = tokens.num_tokens() + kRowsBetween * (num_ranges + tokens.num_rows + 1);
    std::vector<std::byte> spread_keys(room * key_bytes, std::byte{0xff});
    std::vector<std::byte> spread_values(room * value_bytes, std::byte{0xff});
    auto* const device_keys = Poison<std::byte>(room * key_bytes);
    auto* const device_values = Poison<std::byte>(room * value_bytes);

    int64_t token = 0, at = 0;
    const auto place = [&](int64_t count) {
      at += kRowsBetween;
      std::copy_n(&keys[token * key_bytes], count * key_bytes, &spread_keys[at * key_bytes]);
      std::copy_n(&values[token * value_bytes], count * value_bytes,
                  &spread_values[at * value_bytes]);
      const TokenRow row = {device_keys + at * key_bytes, device_values + at * value_bytes};
      token += count;
      at += count;
      return row;
    };
    std::vector<KvRange> ranges;
    std::vector<int64_t> range_begins = {0};
    for (int64_t r = 0; r < num_ranges; ++r) {
      KvRange range;
      range.num_tokens = tokens.sizes[r];
      range.position_begin = token;
      if (range.num_tokens > 0) {
        const TokenRow row = place(range.num_tokens);
        range.keys = row.key;
        range.values = row.value;
        if (!tokens.listed[r].empty()) range.positions = GpuFixture::Upload(tokens.listed[r]);
      }
      ranges.push_back(range);
      range_begins.push_back(token);
    }
    std::vector<TokenRow> rows;
    for (int64_t i = 0; i < tokens.num_rows; ++i) rows.push_back(place(1));
    Expect(gpu().Copy(device_keys, spread_keys.data(), room * key_bytes, stream()));
    Expect(gpu().Copy(device_values, spread_values.data(), room * value_bytes, stream()));
    Synchronize();

    GpuAttendTask task;
    task.queries = GpuFixture::Upload(question.queries);
    task.num_queries = question.num_queries();
    if (!question.visible_end.empty()) {
      task.visible_end = GpuFixture::Upload(question.visible_end);
    }
    if (num_ranges > 0) {
      task.ranges = GpuFixture::Upload(ranges);
      task.range_begins = GpuFixture::Upload(range_begins);
      task.num_ranges = num_ranges;
    }
    if (!rows.empty()) {
      task.rows = GpuFixture::Upload(rows);
      task.num_rows = GpuFixture::Upload(std::vector<int64_t>{tokens.num_rows});
    }
    task.output = Poison<float>(int64_t{num_splits} * task.num_queries * shape.head_dim_v);
    task.lse = Poison<float>(int64_t{num_splits} * task.num_queries);
    return task;
  }

  // The relative error that a weight may have: dim_k roundings of a logit's terms multiply it by
  // e^error, a sum adds one rounding a token, and weights are rounded to two 16-bit numbers.
  static double RelativeError(const Question& question, int query) {
    const Tokens& tokens = *question.tokens;
    const int dim = tokens.shape.head_dim_k;
    double magnitude = 0.0;
    for (int64_t t = 0; t < tokens.num_tokens(); ++t) {
      double sum = 0.0;
      for (int d = 0; d < dim; ++d) {
        sum += std::fabs(static_cast<double>(question.queries[query * dim + d]) *
                         tokens.keys[t * dim + d]);
      }
      magnitude = std::max(magnitude, sum);
    }
    const double of_weights = tokens.shape.dtype == DType::kBFloat16  ? 0x1p-17
                              : tokens.shape.dtype == DType::kFloat16 ? 0x1p-21
                                                                      : 0.0;
    return std::expm1(2 * (dim + 8) * kRounding * magnitude) +
           (static_cast<double>(tokens.num_tokens()) + 32) * 2 * kRounding + of_weights;
  }

  static float LargestValue(const Tokens& tokens) {
    float largest = 0.0f;
    for (float value : tokens.values) largest = std::max(largest, std::fabs(value));
    return largest;
  }

  static void ExpectNear(const Answer& answer, const Question& question, int num_splits) {
    const Tokens& tokens = *question.tokens;
    const int dim = tokens.shape.head_dim_v, num_queries = question.num_queries();
    const NaiveAttentionState expected = NaiveAttention({.queries = question.queries,
                                                         .keys = tokens.keys,
                                                         .values = tokens.values,
                                                         .head_dim_k = tokens.shape.head_dim_k,
                                                         .head_dim_v = dim,
                                                         .positions = tokens.positions,
                                                         .visible_end = question.visible_end});
    const float value_max = LargestValue(tokens);
    for (int q = 0; q < num_queries; ++q) {
      const double relative = RelativeError(question, q);
      double most = -kInfinity, mass = 0.0;
      for (int s = 0; s < num_splits; ++s) {
        most = std::max(most, double{answer.lse[s * num_queries + q]});
      }
      std::vector<double> output(dim, 0.0);
      for (int s = 0; s < num_splits; ++s) {
        const int64_t state = int64_t{s} * num_queries + q;
        const bool is_empty = answer.lse[state] == -kInfinity;
        const double weight = is_empty ? 0.0 : std::exp(answer.lse[state] - most);
        mass += weight;
        for (int d = 0; d < dim; ++d) {
          const float part = answer.output[state * dim + d];
          if (is_empty) {
            ASSERT_EQ(part, 0.0f);
          }
          output[d] += weight * part;
        }
      }
      if (std::isinf(expected.lse[q])) {
        ASSERT_EQ(most, -kInfinity);
        continue;
      }
      ASSERT_NEAR(most + std::log(mass), expected.lse[q],
                  relative + 4 * kRounding * std::fabs(expected.lse[q]));
      for (int d = 0; d < dim; ++d) {
        ASSERT_NEAR(output[d] / mass, expected.output[q * dim + d], relative * value_max)
            << "query " << q << " feature " << d;
      }
    }
  }

  void ExpectNearCpu(const Answer& answer, const Question& question) {
    const Tokens& tokens = *question.tokens;
    const KvShape& shape = tokens.shape;
    const std::vector<std::byte> keys = Encode(tokens.keys, shape.dtype);
    const std::vector<std::byte> values = Encode(tokens.values, shape.dtype);
    std::vector<KvRange> ranges;
    int64_t begin = 0;
    for (size_t r = 0; r < tokens.sizes.size(); ++r) {
      ranges.push_back({keys.data() + begin * shape.head_dim_k * DTypeBytes(shape.dtype),
                        values.data() + begin * shape.head_dim_v * DTypeBytes(shape.dtype),
                        tokens.sizes[r], begin,
                        tokens.listed[r].empty() ? nullptr : tokens.listed[r].data()});
      begin += tokens.sizes[r];
    }
    std::vector<float> output(answer.output.size()), lse(answer.lse.size());
    const AttendRowsTask task = {
        .queries = question.queries.data(),
        .num_queries = question.num_queries(),
        .visible_end = question.visible_end.empty() ? nullptr : question.visible_end.data(),
        .shape = shape,
        .ranges = ranges,
        .output = output.data(),
        .lse = lse.data()};
    Expect(cpu().AttendRows({&task, 1}));
    const float value_max = LargestValue(tokens);
    for (int q = 0; q < question.num_queries(); ++q) {
      const double relative = 2 * RelativeError(question, q);
      if (std::isinf(lse[q])) {
        ASSERT_EQ(answer.lse[q], -kInfinity);
      } else {
        ASSERT_NEAR(answer.lse[q], lse[q], relative + 8 * kRounding * std::fabs(lse[q]));
      }
      for (int d = 0; d < shape.head_dim_v; ++d) {
        ASSERT_NEAR(answer.output[q * shape.head_dim_v + d], output[q * shape.head_dim_v + d],
                    relative * value_max);
      }
    }
  }
};

const std::vector<int64_t> kMixedSizes = {1, 70, 0, 16, 3, 89, 1, 0, 0, 1, 5};

TEST_P(AttendRowsOnGpu, EveryTypeAndHeadDim) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (int dim : {8, 40, 64, 80, 96, 128, 256, 576}) {
      const KvShape shape = {dim, dim, dtype};
      const Tokens ranges = MakeTokens(random, shape, kMixedSizes, 0);
      const Tokens both = MakeTokens(random, shape, {20, 30}, 41);
      const Tokens rows = MakeTokens(random, shape, {}, 77);
      ExpectRight({{&ranges, RandomQueries(random, 4, dim)}}, 1);
      ExpectRight({{&both, RandomQueries(random, 5, dim)}, {&rows, RandomQueries(random, 1, dim)}},
                  2);
    }
  }
}

TEST_P(AttendRowsOnGpu, KeysAndValuesOfDifferentDims) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (auto [dim_k, dim_v] : {std::pair{192, 128}, {40, 256}, {128, 8}, {576, 512}}) {
      const Tokens tokens = MakeTokens(random, {dim_k, dim_v, dtype}, {150}, 9);
      ExpectRight({{&tokens, RandomQueries(random, 9, dim_k)}}, 2);
    }
  }
}

TEST_P(AttendRowsOnGpu, EveryNumberOfQueriesMaskedAndNot) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  for (auto [dim, dtype] : {std::pair{64, DType::kFloat16},
                            {128, DType::kBFloat16},
                            {256, DType::kBFloat16},
                            {72, DType::kFloat32}}) {
    const Tokens tokens = MakeTokens(random, {dim, dim, dtype}, kMixedSizes, 0);
    const Tokens with_rows = MakeTokens(random, {dim, dim, dtype}, {90, 20}, 40);
    for (int num_queries : {1, 2, 7, 8, 9, 16, 17, 32, 70}) {
      Question plain = {&tokens, RandomQueries(random, num_queries, dim)};
      Question masked = {&with_rows, RandomQueries(random, num_queries, dim)};
      for (int i = 0; i < num_queries; ++i) {
        masked.visible_end.push_back(random.Integer(-1, with_rows.num_tokens() + 1));
      }
      ExpectRight({plain}, 1);
      ExpectRight({masked, plain}, static_cast<int>(random.Integer(1, 3)));
    }
  }
}

TEST_P(AttendRowsOnGpu, TasksOfManySizesInOneLaunch) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  for (auto [dim, dtype] : {std::pair{128, DType::kBFloat16}, {80, DType::kFloat16}}) {
    std::vector<Tokens> tokens;
    for (int64_t size : {0, 1, 15, 16, 17, 63, 64, 65, 129, 500}) {
      const int64_t of_ranges = random.Integer(0, size);
      tokens.push_back(MakeTokens(random, {dim, dim, dtype},
                                  {of_ranges / 2, of_ranges - of_ranges / 2}, size - of_ranges));
    }
    std::vector<Question> questions;
    for (const Tokens& one : tokens) {
      questions.push_back(
          {&one, RandomQueries(random, static_cast<int>(random.Integer(1, 8)), dim)});
    }
    for (int num_splits : {1, 3, 7}) ExpectRight(questions, num_splits);
  }
}

TEST_P(AttendRowsOnGpu, CausalPrefillOfGroupedHeads) {
  Random random(5);
  WAVEKV_TRACE_SEED(random);
  constexpr int kGroup = 4, kRows = 40;
  const Tokens tokens = MakeTokens(random, {64, 64, DType::kBFloat16}, {100, kRows}, 0);
  Question question = {&tokens, RandomQueries(random, kRows * kGroup, 64)};
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < kGroup; ++head) question.visible_end.push_back(100 + row + 1);
  }
  ExpectRight({question}, 1);
  ExpectRight({question}, 3);
}

TEST_P(AttendRowsOnGpu, ManyTinyRanges) {
  Random random(6);
  WAVEKV_TRACE_SEED(random);
  std::vector<int64_t> sizes(300);
  for (int64_t& size : sizes) size = random.Integer(0, 4);
  for (DType dtype : kAllDTypes) {
    const Tokens tokens = MakeTokens(random, {128, 128, dtype}, sizes, 30);
    Question question = {&tokens, RandomQueries(random, 4, 128)};
    ExpectRight({question}, 1);
    question.visible_end = {100, 0, 1000, 250};
    ExpectRight({question}, 3);
  }
}

TEST_P(AttendRowsOnGpu, NothingVisibleGivesTheEmptyState) {
  Random random(7);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    const KvShape shape = {64, 64, dtype};
    const Tokens tokens = MakeTokens(random, shape, {90, 60}, 0);
    const Tokens nothing = MakeTokens(random, shape, {}, 0);
    const Tokens empty_ranges = MakeTokens(random, shape, {0, 0}, 0);
    const std::vector<float> queries = RandomQueries(random, 9, 64);
    for (int num_splits : {1, 3}) {
      ExpectRight({{&tokens, queries, std::vector<int64_t>(9, 0)},
                   {&nothing, queries},
                   {&empty_ranges, queries}},
                  num_splits);
    }
  }
}

// Logits far apart, weights far below the greatest, queries and keys of any magnitude.
TEST_P(AttendRowsOnGpu, ExtremeMagnitudes) {
  Random random(8);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    const float key_deviation = dtype == DType::kFloat16 ? 1e3f : 1e10f;
    const Tokens large = MakeTokens(random, {64, 64, dtype}, {100}, 20, key_deviation);
    const Tokens usual = MakeTokens(random, {64, 64, dtype}, {100}, 20);
    std::vector<float> small = RandomQueries(random, 3, 64), tiny = small;
    std::vector<float> wide = RandomQueries(random, 4, 64);
    for (float& x : small) x *= 3.0f / key_deviation;
    for (float& x : tiny) x *= 1e-36f;
    for (size_t i = 0; i < wide.size(); ++i) wide[i] *= i % 64 == 5 ? 30.0f : 1e-4f;
    std::vector<float> zero(64, 0.0f);
    ExpectRight({{&large, small}, {&large, tiny}, {&usual, tiny}, {&usual, wide}, {&usual, zero}},
                1);
  }
}

// A hundred thousand weights of 2^-26 of the greatest count as what they are.
TEST_P(AttendRowsOnGpu, ManySmallWeightsCount) {
  Random random(9);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    Tokens tokens = MakeTokens(random, {64, 64, dtype}, {2000}, 0);
    std::fill(tokens.keys.begin(), tokens.keys.end(), 0.0f);
    std::fill(tokens.values.begin(), tokens.values.end(), 1024.0f);
    tokens.keys[0] = 1.0f;
    std::fill_n(tokens.values.begin(), 64, 0.0f);
    std::vector<float> query(64, 0.0f);
    query[0] = 26.0f * std::log(2.0f);
    const Answer answer = Attend({{&tokens, query}}, 1)[0];
    const double rest = 1999 * 0x1p-26;
    for (float x : answer.output) ASSERT_NEAR(x, rest / (1 + rest) * 1024, 1e-4 * rest * 1024);
  }
}

TEST_P(AttendRowsOnGpu, OverflowingLogitsGiveNumbers) {
  Random random(10);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    Tokens tokens = MakeTokens(random, {64, 64, dtype}, {100}, 0);
    for (size_t i = 0; i < tokens.keys.size(); ++i) {
      tokens.keys[i] = (i % 3 == 0 ? -1.0f : 1.0f) * (dtype == DType::kFloat16 ? 6e4f : 1e30f);
    }
    std::vector<float> queries(3 * 64, 1e37f);
    std::fill_n(queries.begin(), 64, -1e37f);
    std::fill_n(queries.begin() + 64, 32, -1e37f);
    const Answer answer = Attend({{&tokens, queries}}, 2)[0];
    for (float x : answer.output) ASSERT_TRUE(std::isfinite(x)) << x;
    for (float x : answer.lse) ASSERT_FALSE(std::isnan(x));
  }
}

// The same tokens, as ranges and as rows: a split has the same ones. Twice: the same bytes.
TEST_P(AttendRowsOnGpu, SameBytesFromRangesAndFromRows) {
  Random random(11);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    Tokens ranges = MakeTokens(random, {128, 128, dtype}, {50, 170, 31}, 0);
    Tokens rows = ranges;
    rows.sizes = {};
    rows.num_rows = rows.num_tokens();
    const std::vector<float> queries = RandomQueries(random, 6, 128);
    const std::vector<Answer> once = Attend({{&ranges, queries}, {&rows, queries}}, 3);
    const std::vector<Answer> again = Attend({{&ranges, queries}}, 3);
    EXPECT_EQ(once[0], once[1]);
    EXPECT_EQ(once[0], again[0]);
  }
}

WAVEKV_ON_EACH_GPU(AttendRowsOnGpu);

}  // namespace
}  // namespace wavekv::testing
