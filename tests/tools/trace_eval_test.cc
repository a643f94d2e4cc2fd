#include "tools/trace/trace_eval.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "api/engine_test_peer.h"
#include "cuda/emulator/emulated_gpu.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/naive_attention.h"
#include "tests/testing/random.h"
#include "tools/trace/trace_truth.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::testing::Each;
using testing::Encode;
using ::testing::HasSubstr;
using testing::NaiveAttention;
using testing::NaiveAttentionInput;
using testing::Random;
using testing::Rounded;

// A head in memory, at odd addresses as a mapped file may have it.
struct Recorded {
  int64_t tokens = 700;
  int64_t dim_k = 16;
  int64_t dim_v = 16;
  int64_t group = 2;
  DType dtype = DType::kFloat16;
  std::vector<int32_t> positions = {600, 605, 640, 699};
  uint64_t seed = 1;

  std::vector<float> keys, values, queries;  // as rounded to dtype
  std::vector<std::byte> bytes[3];

  void Make() {
    Random random(seed);
    // Neighbours are alike, as in a text; queries look like a key.
    keys.resize(tokens * dim_k);
    for (int64_t i = 0; i < tokens * dim_k; ++i) {
      keys[i] = (i < dim_k ? 0.0f : 0.7f * keys[i - dim_k]) + random.Gaussian();
    }
    values = random.Gaussians(tokens * dim_v);
    for (size_t query = 0; query < positions.size(); ++query) {
      for (int64_t head = 0; head < group; ++head) {
        const int64_t token = random.Integer(0, positions[query]);
        for (int64_t d = 0; d < dim_k; ++d) {
          queries.push_back(keys[token * dim_k + d] + random.Gaussian(0.5f));
        }
      }
    }
    for (std::vector<float>* rows : {&keys, &values, &queries}) *rows = Rounded(*rows, dtype);
    const std::vector<float>* const rows[] = {&keys, &values, &queries};
    for (int i = 0; i < 3; ++i) {
      bytes[i] = Encode(*rows[i], dtype);
      bytes[i].insert(bytes[i].begin(), std::byte{0});
    }
  }

  TraceHead Head() const {
    const auto queries_count = static_cast<int64_t>(positions.size());
    TraceHead head;
    head.keys = {"k", bytes[0].data() + 1, dtype, tokens, dim_k};
    head.values = {"v", bytes[1].data() + 1, dtype, tokens, dim_v};
    head.queries = {"q", bytes[2].data() + 1, dtype, queries_count, group * dim_k};
    head.head_dim_k = dim_k;
    head.positions = positions;
    head.softmax_scale = 0.3;
    return head;
  }
};

Recorded MakeRecorded(Recorded recorded = {}) {
  recorded.Make();
  return recorded;
}

AttendOptions WithRetrieval(double ratio) {
  AttendOptions options;
  options.retrieval = Budget::Ratio(ratio);
  return options;
}

std::vector<TraceSamples> Evaluate(const Recorded& recorded, const TraceEvalOptions& options) {
  auto results = EvaluateHead(recorded.Head(), options);
  EXPECT_TRUE(results.ok()) << results.status();
  return results.ok() ? *std::move(results) : std::vector<TraceSamples>(options.budgets.size());
}

TEST(TraceTruthTest, IsNaiveAttention) {
  Random random(7);
  WAVEKV_TRACE_SEED(random);
  NaiveAttentionInput input;
  constexpr int64_t kTokens = 20011;  // several stripes, and an odd rest
  input.head_dim_k = 6;
  input.head_dim_v = 3;
  input.keys = random.Gaussians(kTokens * 6);
  input.values = random.Gaussians(kTokens * 3);
  input.queries = random.Gaussians(4 * 6, 2.0f);
  input.visible_end = {1, 300, 15000, kTokens};
  const auto naive = NaiveAttention(input);

  const RowsView keys = {"k", input.keys.data(), DType::kFloat32, kTokens, 6};
  const RowsView values = {"v", input.values.data(), DType::kFloat32, kTokens, 3};
  const std::vector<double> queries(input.queries.begin(), input.queries.end());
  const std::vector<TruthQuery> asked = {
      {1, 4, 4}, {300, 4, 100}, {15000, 4, 14000}, {kTokens, 0, kTokens}};
  const std::vector<int64_t> ks = {1, 1000};
  const auto truth = ComputeTruth(keys, values, queries, asked, ks, 2);
  ASSERT_TRUE(truth.ok()) << truth.status();
  for (int64_t query = 0; query < 4; ++query) {
    EXPECT_NEAR(truth->lses[query], naive.lse[query], 1e-12);
    for (int64_t d = 0; d < 3; ++d) {
      EXPECT_NEAR(truth->outputs[query * 3 + d], naive.output[query * 3 + d], 1e-12);
    }
    std::vector<double> logits;
    double mass = 0.0;
    for (int64_t at = asked[query].indexed_begin; at < asked[query].indexed_end; ++at) {
      logits.push_back(std::inner_product(queries.begin() + query * 6,
                                          queries.begin() + (query + 1) * 6,
                                          input.keys.begin() + at * 6, 0.0));
      mass += std::exp(logits.back() - naive.lse[query]);
    }
    EXPECT_NEAR(truth->indexed_masses[query], mass, 1e-12);
    EXPECT_NEAR(truth->steady_masses[query], 1.0 - mass, 1e-12);
    std::sort(logits.begin(), logits.end(), std::greater<>());
    for (size_t k = 0; k < ks.size(); ++k) {
      const double threshold = truth->thresholds[query * 2 + k];
      if (logits.empty()) {
        EXPECT_EQ(threshold, std::numeric_limits<double>::infinity());
      } else {
        EXPECT_NEAR(threshold, logits[std::min<size_t>(ks[k], logits.size()) - 1], 1e-12);
      }
    }
  }
}

TEST(TraceEvalTest, TheWholeBudgetIsExactAttention) {
  TraceEvalOptions options;
  options.budgets = {AttendOptions::Exact()};
  const Recorded recorded = MakeRecorded();
  const TraceSamples samples = Evaluate(recorded, options)[0];
  EXPECT_EQ(samples.rel_errors.size(), recorded.positions.size() * recorded.group);
  EXPECT_THAT(samples.rel_errors, Each(::testing::Lt(1e-5)));
  EXPECT_THAT(samples.recalls[0], Each(1.0));
  EXPECT_THAT(samples.masses, Each(::testing::DoubleNear(1.0, 1e-12)));
  EXPECT_THAT(samples.indexed_masses, Each(1.0));
  EXPECT_EQ(samples.tokens_exact, samples.tokens_visible);
  EXPECT_EQ(samples.bytes_read, samples.bytes_dense);
}

TEST(TraceEvalTest, AGpuGivesNearlyTheSameNumbers) {
  const Recorded recorded = MakeRecorded();
  TraceEvalOptions options;
  options.budgets = {AttendOptions(), AttendOptions::Exact()};
  const std::vector<TraceSamples> on_cpu = Evaluate(recorded, options);
  EngineTestPeer::UseGpu(MakeEmulatedGpu());
  options.device = Device::kCuda;
  const std::vector<TraceSamples> on_gpu = Evaluate(recorded, options);
  EngineTestPeer::UseGpu(nullptr);
  EXPECT_THAT(on_gpu[1].rel_errors, Each(::testing::Lt(1e-5)));
  EXPECT_EQ(on_gpu[0].tokens_visible, on_cpu[0].tokens_visible);
  EXPECT_EQ(on_gpu[0].tokens_indexed, on_cpu[0].tokens_indexed);
  EXPECT_NEAR(static_cast<double>(on_gpu[0].bytes_read), static_cast<double>(on_cpu[0].bytes_read),
              0.1 * static_cast<double>(on_cpu[0].bytes_read));
  const auto mean = [](const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  EXPECT_NEAR(mean(on_gpu[0].rel_errors), mean(on_cpu[0].rel_errors),
              0.3 * mean(on_cpu[0].rel_errors));
}

TEST(TraceEvalTest, AMissingDeviceIsSaid) {
  const Recorded recorded = MakeRecorded();
  TraceEvalOptions options;
  options.device = Device::kCuda;
  const auto results = EvaluateHead(recorded.Head(), options);
  if (results.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_THAT(std::string(results.status().message()), ::testing::StartsWith("CUDA: "));
}

// The index rule and every metric, recomputed the straightforward way: a sequence of as many tokens
// as the first query sees is sealed, then tokens are appended one by one. The next cut would come
// 64 tokens later, behind the last query.
TEST(TraceEvalTest, AgreesWithAnEngineDrivenStepByStep) {
  Recorded recorded;
  recorded.positions = {579, 600, 640};
  recorded.Make();
  const int64_t dim = recorded.dim_k;
  TraceEvalOptions evaluation;
  evaluation.budgets = {AttendOptions(), WithRetrieval(0.2)};
  evaluation.recall_ks = {5, 100};
  const std::vector<TraceSamples> samples = Evaluate(recorded, evaluation);

  EngineOptions options;
  options.model = {.num_layers = 1, .num_q_heads = 2, .num_kv_heads = 1, .head_dim_k = 16};
  options.model.kv_dtype = recorded.dtype;
  options.model.softmax_scale = 0.3f;
  options.index.update_tokens = 64;
  options.arena_bytes = 64 << 20;
  auto engine = Engine::Open(options).value();
  auto tenant = engine->OpenTenant("t").value();
  auto sequence = tenant.CreateSequence().value();
  const auto view = [&](const std::vector<float>& rows, int64_t first, int64_t count, int heads) {
    return TensorView::Dense(rows.data() + first * heads * dim, DType::kFloat32, count, heads, dim);
  };
  const auto append = [&](int64_t count) {
    const int64_t first = sequence.length();
    const std::vector<int32_t> cu = {0, static_cast<int32_t>(count)};
    ASSERT_TRUE(engine
                    ->Append({{&sequence, 1}, cu}, 0, view(recorded.keys, first, count, 1),
                             view(recorded.values, first, count, 1))
                    .ok());
  };
  append(recorded.positions[0] + 1);
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  ASSERT_TRUE(engine->WaitForBuilds(sequence).ok());
  // [4, 579 - 63), a multiple of 64.
  constexpr int64_t kIndexedEnd = 4 + 8 * 64;

  for (size_t budget = 0; budget < samples.size(); ++budget) {
    int64_t tokens_exact = 0;
    int64_t bytes_read = 0;
    for (size_t query = 0; query < recorded.positions.size(); ++query) {
      const int64_t length = recorded.positions[query] + 1;
      while (sequence.length() < length) append(1);
      auto fork = tenant.Fork(sequence, length).value();
      const std::vector<int32_t> cu = {0, 1};
      const auto plan = engine->MakePlan({{&fork, 1}, cu}, evaluation.budgets[budget]).value();
      const TensorView asked = view(recorded.queries, query, 1, 2);
      std::vector<float> output(2 * dim);
      const auto stats = engine->Attend(
          plan, 0, asked, MutableTensorView::Dense(output.data(), DType::kFloat32, 1, 2, dim));
      ASSERT_TRUE(stats.ok()) << stats.status();
      tokens_exact += stats->tokens_exact;
      bytes_read += stats->bytes_read;
      const auto retrieved = engine->Retrieve(plan, 0, asked).value()[0].positions;
      for (const int64_t at : retrieved) ASSERT_TRUE(at >= 4 && at < kIndexedEnd) << at;

      NaiveAttentionInput input;
      input.queries = {recorded.queries.begin() + query * 2 * dim,
                       recorded.queries.begin() + (query + 1) * 2 * dim};
      input.keys = recorded.keys;
      input.values = recorded.values;
      input.head_dim_k = input.head_dim_v = static_cast<int>(dim);
      input.scale = 0.3;
      input.visible_end = {length, length};
      const auto exact = NaiveAttention(input);
      for (int64_t head = 0; head < 2; ++head) {
        const size_t sample = query * 2 + head;
        double error2 = 0.0;
        double norm2 = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
          const double truth = exact.output[head * dim + d];
          error2 += std::pow(output[head * dim + d] - truth, 2);
          norm2 += truth * truth;
        }
        EXPECT_NEAR(samples[budget].rel_errors[sample], std::sqrt(error2 / norm2), 1e-5);

        std::vector<double> logits(length);
        for (int64_t at = 0; at < length; ++at) {
          for (int64_t d = 0; d < dim; ++d) {
            logits[at] += 0.3 * input.queries[head * dim + d] * recorded.keys[at * dim + d];
          }
        }
        const std::set<int64_t> in_zone(retrieved.begin(), retrieved.end());
        const auto is_read = [&](int64_t at) {
          return at < 4 || at >= kIndexedEnd || in_zone.contains(at);
        };
        double mass = 0.0;
        for (int64_t at = 0; at < length; ++at) {
          if (is_read(at)) mass += std::exp(logits[at] - exact.lse[head]);
        }
        EXPECT_NEAR(samples[budget].masses[sample], mass, 1e-9);
        std::vector<int64_t> order(kIndexedEnd - 4);
        std::iota(order.begin(), order.end(), 4);
        std::sort(order.begin(), order.end(),
                  [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
        for (size_t k = 0; k < evaluation.recall_ks.size(); ++k) {
          const int64_t num_top = evaluation.recall_ks[k];
          const auto found = std::count_if(order.begin(), order.begin() + num_top, is_read);
          EXPECT_DOUBLE_EQ(samples[budget].recalls[k][sample],
                           static_cast<double>(found) / static_cast<double>(num_top));
        }
      }
    }
    EXPECT_EQ(samples[budget].tokens_exact, tokens_exact);
    EXPECT_EQ(samples[budget].bytes_read, bytes_read);
    EXPECT_EQ(samples[budget].tokens_indexed, 3 * (kIndexedEnd - 4));
    // The next budget starts over.
    ASSERT_TRUE(tenant.Truncate(sequence, recorded.positions[0] + 1).ok());
  }
}

TEST(TraceEvalTest, TheOrderOfQueriesDoesNotMatter) {
  Recorded ordered;
  ordered.positions = {600, 600, 630, 650, 699};
  ordered.Make();
  Recorded shuffled = ordered;
  const std::vector<size_t> order = {3, 1, 4, 0, 2};
  const int64_t row = ordered.group * ordered.dim_k;
  for (size_t i = 0; i < order.size(); ++i) {
    shuffled.positions[i] = ordered.positions[order[i]];
    std::copy_n(ordered.bytes[2].begin() + 1 + order[i] * row * 2, row * 2,
                shuffled.bytes[2].begin() + 1 + i * row * 2);
  }
  const TraceSummary a = Summarize(Evaluate(ordered, {})[0]);
  const TraceSummary b = Summarize(Evaluate(shuffled, {})[0]);
  EXPECT_EQ(a.num_samples, b.num_samples);
  EXPECT_EQ(a.rel_err_mean, b.rel_err_mean);
  EXPECT_EQ(a.rel_err_p95, b.rel_err_p95);
  EXPECT_EQ(a.mass, b.mass);
  EXPECT_EQ(a.recalls, b.recalls);
  EXPECT_EQ(a.bytes_read, b.bytes_read);
}

TEST(TraceEvalTest, SelectedQueriesAreAnsweredAsAmongAll) {
  const Recorded recorded = MakeRecorded();
  TraceEvalOptions options;
  const TraceSamples all = Evaluate(recorded, options)[0];
  options.queries = {{3, 1}};
  const TraceSamples two = Evaluate(recorded, options)[0];
  EXPECT_THAT(two.rel_errors, ::testing::ElementsAre(all.rel_errors[2], all.rel_errors[3],
                                                     all.rel_errors[6], all.rel_errors[7]));
  options.queries = std::vector<int64_t>();
  EXPECT_EQ(Summarize(Evaluate(recorded, options)[0]).num_samples, 0);
}

TEST(TraceEvalTest, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const bool grow : {false, true}) {
    Recorded recorded;
    recorded.tokens = 3000;
    recorded.positions.resize(70);  // more than a batch
    for (int i = 0; i < 70; ++i) recorded.positions[i] = 1500 + 20 * i;
    recorded.Make();
    TraceEvalOptions options;
    options.grow = grow;
    options.num_threads = 1;
    const TraceSamples one = Evaluate(recorded, options)[0];
    for (const int threads : {2, 5}) {
      options.num_threads = threads;
      const TraceSamples more = Evaluate(recorded, options)[0];
      EXPECT_EQ(one.rel_errors, more.rel_errors);
      EXPECT_EQ(one.masses, more.masses);
      EXPECT_EQ(one.recalls, more.recalls);
      EXPECT_EQ(one.bytes_read, more.bytes_read);
    }
  }
}

TEST(TraceEvalTest, GrowingSealsWhatFollowsTheFirstQuery) {
  Recorded recorded;
  recorded.tokens = 3000;
  recorded.positions = {1500, 2999};
  recorded.Make();
  TraceEvalOptions options;
  const TraceSamples fixed = Evaluate(recorded, options)[0];
  EXPECT_EQ(fixed.tokens_indexed, 2 * (1437 - 4) / 64 * 64);
  options.grow = true;
  const TraceSamples grown = Evaluate(recorded, options)[0];
  EXPECT_EQ(grown.tokens_indexed, 1024 + 2 * 1024);
}

TEST(TraceEvalTest, RoundingOfStoredValuesCounts) {
  TraceEvalOptions options;
  options.budgets = {AttendOptions::Exact()};
  options.kv_dtype = DType::kBFloat16;
  const TraceSummary summary = Summarize(Evaluate(MakeRecorded(), options)[0]);
  EXPECT_GT(summary.rel_err_mean, 1e-4);
  EXPECT_LT(summary.rel_err_mean, 3e-2);
}

TEST(TraceEvalTest, SharperAttentionHasMoreMassInTheRetrievalZone) {
  const Recorded recorded = MakeRecorded();
  TraceEvalOptions options;
  options.budgets = {WithRetrieval(0.1)};
  const double mass = Summarize(Evaluate(recorded, options)[0]).indexed_mass;
  options.scale_factor = 2.0;
  EXPECT_GT(Summarize(Evaluate(recorded, options)[0]).indexed_mass, mass);
}

TEST(TraceEvalTest, AShortTraceHasNothingToIndex) {
  Recorded recorded;
  recorded.tokens = 40;
  recorded.positions = {0, 3, 39};
  recorded.Make();
  const TraceSamples samples = Evaluate(recorded, {})[0];
  const TraceSummary summary = Summarize(samples);
  EXPECT_EQ(samples.tokens_indexed, 0);
  EXPECT_LT(summary.rel_err_max, 1e-5);
  EXPECT_DOUBLE_EQ(summary.mass, 1.0);
  EXPECT_EQ(summary.recalls[0], 1.0);
}

TEST(TraceEvalTest, TokensOfEqualLogitsAreInterchangeable) {
  Recorded recorded = MakeRecorded();
  for (size_t i = 1; i < recorded.bytes[0].size(); ++i) recorded.bytes[0][i] = std::byte{0};
  TraceEvalOptions options;
  options.budgets = {WithRetrieval(0.5)};
  EXPECT_THAT(Evaluate(recorded, options)[0].recalls[0], Each(1.0));
}

struct Shape {
  int64_t dim_k, dim_v, group;
  DType dtype;
};

class TraceShapesTest : public ::testing::TestWithParam<Shape> {};

TEST_P(TraceShapesTest, AreEvaluated) {
  Recorded recorded;
  recorded.dim_k = GetParam().dim_k;
  recorded.dim_v = GetParam().dim_v;
  recorded.group = GetParam().group;
  recorded.dtype = GetParam().dtype;
  recorded.Make();
  TraceEvalOptions options;
  options.budgets = {WithRetrieval(0.05), AttendOptions::Exact()};
  const std::vector<TraceSamples> samples = Evaluate(recorded, options);
  const TraceSummary few = Summarize(samples[0]);
  EXPECT_EQ(few.num_samples, 4 * recorded.group);
  EXPECT_LT(few.rel_err_mean, 1.0);
  EXPECT_LT(few.exact_tokens_ratio, 0.4);
  EXPECT_GT(few.recalls[0], 0.0);
  EXPECT_LT(Summarize(samples[1]).rel_err_max, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    All, TraceShapesTest,
    ::testing::Values(Shape{20, 20, 1, DType::kFloat32}, Shape{100, 100, 3, DType::kBFloat16},
                      Shape{24, 9, 8, DType::kFloat16}, Shape{3, 2, 2, DType::kFloat32},
                      Shape{256, 256, 1, DType::kFloat16}, Shape{64, 128, 4, DType::kBFloat16}),
    [](const auto& test) {
      const Shape& shape = test.param;
      return "K" + std::to_string(shape.dim_k) + "V" + std::to_string(shape.dim_v) + "Group" +
             std::to_string(shape.group) + DTypeName(shape.dtype);
    });

TEST(TraceEvalErrorsTest, NameWhatDoesNotFit) {
  const Recorded recorded = MakeRecorded();
  const auto expect = [](const TraceHead& head, const TraceEvalOptions& options,
                         absl::StatusCode code, const char* message) {
    const absl::Status status = EvaluateHead(head, options).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  TraceHead head = recorded.Head();
  head.keys.row_elements = head.head_dim_k = 577;
  expect(head, {}, absl::StatusCode::kUnimplemented, "k: expected a head_dim of at most 576");
  head = recorded.Head();
  head.values.num_rows = 3;
  expect(head, {}, kInvalid, "v: expected 700 tokens, as the keys, got 3");
  head = recorded.Head();
  head.queries.row_elements = 17;
  expect(head, {}, kInvalid, "q: expected rows of a multiple of head_dim_k = 16 elements, got 17");
  head = recorded.Head();
  head.positions = {};
  expect(head, {}, kInvalid, "q: expected one row for each of 0 positions");
  head = recorded.Head();
  const std::vector<int32_t> far = {1, 2, 3, 700};
  head.positions = far;
  expect(head, {}, kInvalid, "positions: expected positions in [0, 700), got 700");
  head = recorded.Head();
  head.softmax_scale = 0.0;
  expect(head, {}, kInvalid, "softmax_scale: expected a finite number > 0, got 0");
  for (const double extreme : {1e-60, 1e60}) {
    head.softmax_scale = extreme;
    expect(head, {}, kInvalid, "softmax_scale: expected a product with scale_factor that fp32");
  }
  TraceEvalOptions options;
  options.scale_factor = -1.0;
  expect(recorded.Head(), options, kInvalid, "scale_factor: expected");
  options = {};
  options.budgets.clear();
  expect(recorded.Head(), options, kInvalid, "budgets: expected at least one");
  options.budgets = {WithRetrieval(1.5)};
  expect(recorded.Head(), options, kInvalid, "retrieval must be a ratio");
  options = {};
  options.recall_ks = {0};
  expect(recorded.Head(), options, kInvalid, "recall_ks: expected numbers >= 1, got 0");
  options = {};
  options.queries = {{4}};
  expect(recorded.Head(), options, kInvalid, "queries: expected numbers in [0, 4), got 4");
  options = {};
  options.index.segment_tokens = 100;
  expect(recorded.Head(), options, kInvalid, "index.segment_tokens");
}

TEST(TraceEvalErrorsTest, NameTheTensorThatIsNotFinite) {
  for (int tensor = 0; tensor < 3; ++tensor) {
    Recorded recorded = MakeRecorded();
    recorded.bytes[tensor][2] = std::byte{0x7c};  // the first element: infinity
    recorded.bytes[tensor][1] = std::byte{0};
    const absl::Status status = EvaluateHead(recorded.Head(), {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::string(1, "kvq"[tensor]) + ": expected finite numbers"));
  }
}

TEST(TraceEvalErrorsTest, ATypeThatCannotHoldTheNumbersIsRefused) {
  Recorded recorded;
  recorded.dtype = DType::kFloat32;
  recorded.Make();
  const float large = 1e6f;
  std::memcpy(recorded.bytes[0].data() + 1, &large, sizeof(large));
  TraceEvalOptions options;
  options.kv_dtype = DType::kFloat16;
  EXPECT_THAT(std::string(EvaluateHead(recorded.Head(), options).status().message()),
              HasSubstr("k and v, tokens [0, 700): keys must be finite in fp16"));
}

}  // namespace
}  // namespace wavekv
