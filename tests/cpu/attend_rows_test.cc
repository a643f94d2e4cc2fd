#include "compute/attend_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "tests/cpu/backend_fixture.h"
#include "tests/testing/naive_attention.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ranges over one copy of rows, as plain vectors and as stored.
struct Rows {
  int dim_k, dim_v;
  DType dtype;
  std::vector<float> keys, values;  // rounded to dtype
  std::vector<std::byte> key_bytes, value_bytes;
  std::vector<int64_t> positions;
  std::vector<std::vector<uint16_t>> listed;
  std::vector<KvRange> ranges;

  KvShape shape() const { return {dim_k, dim_v, dtype}; }
};

// `sizes`: tokens of each range. Every other range lists its positions, in random order.
Rows MakeRows(Random& random, int dim_k, int dim_v, DType dtype,
              const std::vector<int64_t>& sizes) {
  int64_t num_tokens = 0;
  for (int64_t size : sizes) num_tokens += size;
  Rows rows = {dim_k, dim_v, dtype, Rounded(random.Gaussians(num_tokens * dim_k), dtype),
               Rounded(random.Gaussians(num_tokens * dim_v), dtype)};
  rows.key_bytes = Encode(rows.keys, dtype);
  rows.value_bytes = Encode(rows.values, dtype);
  rows.listed.resize(sizes.size());
  int64_t begin = 0;
  for (size_t r = 0; r < sizes.size(); ++r) {
    KvRange range = {rows.key_bytes.data() + begin * dim_k * DTypeBytes(dtype),
                     rows.value_bytes.data() + begin * dim_v * DTypeBytes(dtype), sizes[r], begin};
    std::vector<uint16_t>& listed = rows.listed[r];
    for (int64_t i = 0; i < sizes[r]; ++i) listed.push_back(static_cast<uint16_t>(i));
    if (r % 2 == 1) {
      std::shuffle(listed.begin(), listed.end(), random.engine());
      range.positions = listed.data();
    }
    for (uint16_t position : listed) rows.positions.push_back(begin + position);
    rows.ranges.push_back(range);
    begin += sizes[r];
  }
  return rows;
}

struct State {
  std::vector<float> output, lse;
};

class AttendRowsTest : public BackendFixture {
 protected:
  State Attend(const Rows& rows, const std::vector<float>& queries,
               const std::vector<int64_t>& visible_end = {}) {
    return AttendOn(backend(), rows, queries, visible_end, query_scale_);
  }

  static State AttendOn(Backend& backend, const Rows& rows, const std::vector<float>& queries,
                        const std::vector<int64_t>& visible_end, float query_scale = 1.0f) {
    const int num_queries = static_cast<int>(queries.size()) / rows.dim_k;
    State state = {Poison(num_queries * rows.dim_v), Poison(num_queries)};
    const AttendRowsTask task = {.queries = queries.data(),
                                 .num_queries = num_queries,
                                 .query_scale = query_scale,
                                 .visible_end = visible_end.empty() ? nullptr : visible_end.data(),
                                 .shape = rows.shape(),
                                 .ranges = rows.ranges,
                                 .output = state.output.data(),
                                 .lse = state.lse.data()};
    EXPECT_TRUE(backend.AttendRows({&task, 1}).ok());
    return state;
  }

  // Attends with every target and compares with the definition.
  void ExpectRight(const Rows& rows, const std::vector<float>& queries,
                   const std::vector<int64_t>& visible_end = {}) {
    SCOPED_TRACE(::testing::Message()
                 << "dims " << rows.dim_k << " " << rows.dim_v << " " << DTypeName(rows.dtype)
                 << " tokens " << rows.positions.size() << " queries "
                 << queries.size() / rows.dim_k << (visible_end.empty() ? "" : " masked"));
    const NaiveAttentionState expected = NaiveAttention({.queries = queries,
                                                         .keys = rows.keys,
                                                         .values = rows.values,
                                                         .head_dim_k = rows.dim_k,
                                                         .head_dim_v = rows.dim_v,
                                                         .positions = rows.positions,
                                                         .visible_end = visible_end});
    ForEachTarget([&] { ExpectNear(Attend(rows, queries, visible_end), expected, rows, queries); });
  }

  // The error that fp32 arithmetic may make: a logit's is dim_k roundings of its terms' magnitudes,
  // it multiplies a weight by e^error, and every sum adds one rounding a token.
  static void ExpectNear(const State& actual, const NaiveAttentionState& expected, const Rows& rows,
                         const std::vector<float>& queries) {
    float value_max = 0.0f;
    for (float value : rows.values) value_max = std::max(value_max, std::fabs(value));
    const double num_tokens = static_cast<double>(rows.positions.size());
    for (size_t i = 0; i < expected.lse.size(); ++i) {
      const double logit_error =
          (rows.dim_k + 2) * kRounding * LogitMagnitude(rows, &queries[i * rows.dim_k]);
      const double relative = std::expm1(2 * logit_error) + (num_tokens + 16) * 2 * kRounding;
      if (std::isinf(expected.lse[i])) {
        EXPECT_EQ(actual.lse[i], -kInfinity);
      } else {
        ASSERT_NEAR(actual.lse[i], expected.lse[i],
                    relative + 2 * kRounding * std::fabs(expected.lse[i]));
      }
      for (int d = 0; d < rows.dim_v; ++d) {
        ASSERT_NEAR(actual.output[i * rows.dim_v + d], expected.output[i * rows.dim_v + d],
                    relative * value_max)
            << "query " << i << " feature " << d;
      }
    }
  }

  static double LogitMagnitude(const Rows& rows, const float* query) {
    double largest = 0.0;
    for (size_t t = 0; t < rows.positions.size(); ++t) {
      double magnitude = 0.0;
      for (int d = 0; d < rows.dim_k; ++d) {
        magnitude += std::fabs(static_cast<double>(query[d]) * rows.keys[t * rows.dim_k + d]);
      }
      largest = std::max(largest, magnitude);
    }
    return largest;
  }

  float query_scale_ = 1.0f;
};

// Queries as a model's after scaling: logits of deviation about 1.
std::vector<float> RandomQueries(Random& random, int num_queries, int dim) {
  return random.Gaussians(num_queries * dim, 1.0f / std::sqrt(static_cast<float>(dim)));
}

const std::vector<int64_t> kMixedSizes = {1, 70, 0, 16, 3, 129, 1, 1, 5};

TEST_F(AttendRowsTest, EveryTypeAndHeadDim) {
  Random random(81);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (int dim : kHeadDims) {
      const Rows rows = MakeRows(random, dim, dim, dtype, kMixedSizes);
      for (int num_queries : {4, 33}) ExpectRight(rows, RandomQueries(random, num_queries, dim));
    }
  }
}

TEST_F(AttendRowsTest, KeysAndValuesOfDifferentDims) {
  Random random(82);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (auto [dim_k, dim_v] : {std::pair{192, 128}, {40, 256}, {128, 8}, {72, 104}}) {
      const Rows rows = MakeRows(random, dim_k, dim_v, dtype, kMixedSizes);
      for (int num_queries : {3, 40}) ExpectRight(rows, RandomQueries(random, num_queries, dim_k));
    }
  }
}

TEST_F(AttendRowsTest, EveryNumberOfQueriesMaskedAndNot) {
  Random random(83);
  WAVEKV_TRACE_SEED(random);
  for (int num_queries : kQueryCounts) {
    for (int dim : {64, 80}) {
      const Rows rows = MakeRows(random, dim, dim, DType::kBFloat16, kMixedSizes);
      const std::vector<float> queries = RandomQueries(random, num_queries, dim);
      ExpectRight(rows, queries);
      std::vector<int64_t> visible_end(num_queries);
      for (int64_t& end : visible_end) end = random.Integer(-1, rows.positions.size() + 1);
      ExpectRight(rows, queries, visible_end);
    }
  }
}

// Numbers of `dtype`, times a scale.
std::vector<float> ScaledQueries(Random& random, int num_queries, int dim, DType dtype,
                                 float scale) {
  std::vector<float> queries = Rounded(random.Gaussians(num_queries * dim), dtype);
  for (float& query : queries) query *= scale;
  return queries;
}

TEST_F(AttendRowsTest, QueriesOfEveryTypeScaledAfterwards) {
  Random random(89);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (int dim : {8, 40, 128, 576}) {
      const Rows rows = MakeRows(random, dim, 32, DType::kBFloat16, kMixedSizes);
      query_scale_ = 1.0f / std::sqrt(static_cast<float>(dim));
      for (int num_queries : {5, 6, 7, 8, 9, 10, 11, 12, 13, 16}) {
        if (dtype != DType::kBFloat16 && num_queries != 8) continue;
        ExpectRight(rows, ScaledQueries(random, num_queries, dim, dtype, query_scale_));
      }
    }
  }
}

TEST_F(AttendRowsTest, ScaledQueriesMayBeMixedAndMasked) {
  Random random(90);
  WAVEKV_TRACE_SEED(random);
  const Rows rows = MakeRows(random, 128, 64, DType::kBFloat16, kMixedSizes);
  for (float scale : {0.1f, 1.0f, 3e-30f, 3e30f}) {
    query_scale_ = scale;
    std::vector<float> queries = ScaledQueries(random, 8, 128, DType::kBFloat16, 0.1f);
    std::vector<int64_t> visible_end(8);
    for (int64_t& end : visible_end) end = random.Integer(-1, rows.positions.size() + 1);
    ExpectRight(rows, queries, visible_end);
    queries[200] *= 1.001f;
    ExpectRight(rows, queries, visible_end);
  }
}

TEST_F(AttendRowsTest, CausalPrefillOfGroupedHeads) {
  Random random(84);
  WAVEKV_TRACE_SEED(random);
  constexpr int kGroup = 4, kRows = 96;
  const Rows rows = MakeRows(random, 64, 64, DType::kFloat16, {200, 96});
  std::vector<int64_t> visible_end;
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < kGroup; ++head) visible_end.push_back(200 + row + 1);
  }
  ExpectRight(rows, RandomQueries(random, kRows * kGroup, 64), visible_end);
}

TEST_F(AttendRowsTest, ManyTinyRanges) {
  Random random(85);
  WAVEKV_TRACE_SEED(random);
  std::vector<int64_t> sizes(150);
  for (int64_t& size : sizes) size = random.Integer(0, 6);
  const Rows rows = MakeRows(random, 128, 128, DType::kBFloat16, sizes);
  for (int num_queries : {1, 4, 50}) ExpectRight(rows, RandomQueries(random, num_queries, 128));
}

TEST_F(AttendRowsTest, NothingVisibleGivesTheEmptyState) {
  Random random(86);
  WAVEKV_TRACE_SEED(random);
  for (int num_queries : {2, 50}) {
    const std::vector<float> queries = RandomQueries(random, num_queries, 40);
    const Rows rows = MakeRows(random, 40, 40, DType::kFloat32, {30, 40});
    ExpectRight(rows, queries, std::vector<int64_t>(num_queries, 0));
    ExpectRight(MakeRows(random, 40, 40, DType::kFloat32, {}), queries);
    ExpectRight(MakeRows(random, 40, 40, DType::kFloat32, {0, 0}), queries);
  }
}

// One key per token, so that logits are exact: token t has logit query * key_t.
Rows ScalarKeys(const std::vector<float>& keys) {
  const auto n = static_cast<int64_t>(keys.size());
  Rows rows = {8, 8, DType::kFloat32};
  rows.keys.assign(n * 8, 0.0f);
  rows.values.resize(n * 8);
  for (int64_t t = 0; t < n; ++t) {
    rows.keys[t * 8] = keys[t];
    for (int d = 0; d < 8; ++d) rows.values[t * 8 + d] = static_cast<float>(t + 1);
    rows.positions.push_back(t);
  }
  rows.key_bytes = Encode(rows.keys, rows.dtype);
  rows.value_bytes = Encode(rows.values, rows.dtype);
  rows.ranges = {{rows.key_bytes.data(), rows.value_bytes.data(), n, 0}};
  return rows;
}

TEST_F(AttendRowsTest, HugeLogitsPickTheirMaximum) {
  for (int num_queries : {1, 4, 40}) {
    std::vector<float> queries(num_queries * 8, 0.0f);
    for (int i = 0; i < num_queries; ++i) queries[i * 8] = i % 2 == 0 ? 1e3f : -1e3f;
    std::vector<float> keys(300);
    for (int t = 0; t < 300; ++t) keys[t] = static_cast<float>((t * 7919) % 1999 - 1000);
    const Rows rows = ScalarKeys(keys);
    ExpectRight(rows, {queries.begin(), queries.begin() + 8});
    ForEachTarget([&] {
      const State state = Attend(rows, queries);
      for (int i = 0; i < num_queries; ++i) {
        const auto best = i % 2 == 0 ? std::max_element(keys.begin(), keys.end())
                                     : std::min_element(keys.begin(), keys.end());
        EXPECT_EQ(state.lse[i], 1e3f * std::fabs(*best));
        EXPECT_EQ(state.output[i * 8], static_cast<float>(best - keys.begin() + 1));
      }
    });
  }
}

TEST_F(AttendRowsTest, OverflowingLogitsGiveNumbers) {
  for (int num_queries : {1, 40}) {
    std::vector<float> queries(num_queries * 8, 0.0f);
    for (int i = 0; i < num_queries; ++i) queries[i * 8] = 1e30f;
    for (const std::vector<float>& keys :
         {std::vector<float>{1e30f, -1e30f, 1.0f}, {-1e30f, -1e30f}, {1e30f, 1e30f}}) {
      const Rows rows = ScalarKeys(keys);
      ForEachTarget([&] {
        const State state = Attend(rows, queries);
        for (float x : state.output) EXPECT_TRUE(std::isfinite(x)) << x;
        for (float x : state.lse) EXPECT_TRUE(std::isfinite(x)) << x;
      });
    }
  }
}

TEST_F(AttendRowsTest, SameBytesForAnyNumberOfThreads) {
  Random random(87);
  WAVEKV_TRACE_SEED(random);
  const Rows rows = MakeRows(random, 64, 96, DType::kBFloat16, {500, 300});
  for (int num_queries : {4, 700}) {
    const std::vector<float> queries = RandomQueries(random, num_queries, 64);
    std::vector<int64_t> visible_end(num_queries);
    for (int i = 0; i < num_queries; ++i) visible_end[i] = 100 + i;
    const State expected = Attend(rows, queries, visible_end);
    for (int num_threads : {1, 5}) {
      const std::unique_ptr<Executor> pool = MakeThreadPool(num_threads);
      const State state = AttendOn(*MakeCpuBackend(pool.get()), rows, queries, visible_end);
      EXPECT_EQ(state.output, expected.output);
      EXPECT_EQ(state.lse, expected.lse);
    }
  }
}

TEST_F(AttendRowsTest, TasksOfOneCallAreIndependent) {
  Random random(88);
  WAVEKV_TRACE_SEED(random);
  const Rows rows = MakeRows(random, 64, 64, DType::kBFloat16, kMixedSizes);
  std::vector<std::vector<float>> queries;
  std::vector<State> alone, together;
  std::vector<AttendRowsTask> tasks;
  for (int num_queries : {4, 1, 60, 2, 200, 8}) {
    queries.push_back(RandomQueries(random, num_queries, 64));
    alone.push_back(Attend(rows, queries.back()));
    together.push_back({Poison(num_queries * 64), Poison(num_queries)});
  }
  for (size_t i = 0; i < queries.size(); ++i) {
    tasks.push_back({.queries = queries[i].data(),
                     .num_queries = static_cast<int>(together[i].lse.size()),
                     .shape = rows.shape(),
                     .ranges = rows.ranges,
                     .output = together[i].output.data(),
                     .lse = together[i].lse.data()});
  }
  ASSERT_TRUE(backend().AttendRows(tasks).ok());
  for (size_t i = 0; i < queries.size(); ++i) {
    EXPECT_EQ(together[i].output, alone[i].output);
    EXPECT_EQ(together[i].lse, alone[i].lse);
  }
}

}  // namespace
}  // namespace wavekv::testing
