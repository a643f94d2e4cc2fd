// The engine against naive double-precision attention.
#include "wavekv/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/engine_stats.pb.h"
#include "proto/metadata.pb.h"
#include "tests/testing/model_sequence.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using ::wavekv::testing::ModelSequence;
using ::wavekv::testing::NaiveAttentionState;
using ::wavekv::testing::Random;

EngineOptions SmallOptions() {
  EngineOptions options;
  options.model.num_layers = 2;
  options.model.num_q_heads = 4;
  options.model.num_kv_heads = 2;
  options.model.head_dim_k = 64;
  options.model.head_dim_v = 64;
  options.model.kv_dtype = DType::kFloat32;
  options.index.segment_tokens = 512;
  options.index.update_tokens = 128;
  options.arena_bytes = int64_t{64} << 20;
  options.worker_threads = 2;
  return options;
}

// One sequence in an engine, and its model.
class EngineTest : public ::testing::Test {
 protected:
  void Open(const EngineOptions& options) {
    auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    model_ = engine_->options().model;
    auto tenant = engine_->OpenTenant("tenant");
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    tenant_ = *tenant;
    auto sequence = tenant_.CreateSequence();
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    sequence_ = *sequence;
    expected_ = std::make_unique<ModelSequence>(model_);
  }

  std::vector<float> RandomKeys(int64_t rows) {
    return random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_k);
  }
  std::vector<float> RandomValues(int64_t rows) {
    return random_.Gaussians(rows * model_.num_kv_heads * model_.head_dim_v);
  }
  std::vector<float> RandomQueries(int64_t rows) {
    return random_.Gaussians(rows * model_.num_q_heads * model_.head_dim_k);
  }

  void Append(int layer, const std::vector<float>& keys, const std::vector<float>& values) {
    const auto rows = static_cast<int32_t>(keys.size() / (model_.num_kv_heads * model_.head_dim_k));
    const int32_t cu_seqlens[] = {0, rows};
    const absl::Status status =
        engine_->Append({{&sequence_, 1}, cu_seqlens}, layer,
                        TensorView::Dense(keys.data(), DType::kFloat32, rows, model_.num_kv_heads,
                                          model_.head_dim_k),
                        TensorView::Dense(values.data(), DType::kFloat32, rows, model_.num_kv_heads,
                                          model_.head_dim_v));
    ASSERT_TRUE(status.ok()) << status;
    expected_->Append(layer, keys, values);
  }

  void AppendRandom(int64_t rows) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      Append(layer, RandomKeys(rows), RandomValues(rows));
    }
  }

  struct Answer {
    std::vector<float> output;
    std::vector<float> lse;
    std::vector<float> errors;  // estimated
    AttendStats stats;
  };

  Answer Attend(int layer, const std::vector<float>& queries, const AttendOptions& options) {
    const auto rows =
        static_cast<int32_t>(queries.size() / (model_.num_q_heads * model_.head_dim_k));
    const int32_t cu_seqlens[] = {0, rows};
    const float poison = std::numeric_limits<float>::quiet_NaN();
    Answer answer;
    answer.output.assign(rows * model_.num_q_heads * model_.head_dim_v, poison);
    answer.lse.assign(rows * model_.num_q_heads, poison);
    answer.errors.assign(rows * model_.num_q_heads, poison);
    auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
    EXPECT_TRUE(plan.ok()) << plan.status();
    auto stats =
        engine_->Attend(*plan, layer,
                        TensorView::Dense(queries.data(), DType::kFloat32, rows, model_.num_q_heads,
                                          model_.head_dim_k),
                        MutableTensorView::Dense(answer.output.data(), DType::kFloat32, rows,
                                                 model_.num_q_heads, model_.head_dim_v),
                        PerHeadView::Dense(answer.lse.data(), rows, model_.num_q_heads),
                        PerHeadView::Dense(answer.errors.data(), rows, model_.num_q_heads));
    EXPECT_TRUE(stats.ok()) << stats.status();
    if (stats.ok()) answer.stats = *stats;
    return answer;
  }

  // fp32 accumulation of up to a few thousand terms of order 1.
  void ExpectExact(int layer, int64_t rows, const AttendOptions& options, double tolerance = 2e-5) {
    const std::vector<float> queries = RandomQueries(rows);
    const Answer got = Attend(layer, queries, options);
    const NaiveAttentionState want = expected_->Attend(layer, queries, rows, options.causal);
    for (size_t i = 0; i < want.lse.size(); ++i) {
      const double base = options.lse_base == LseBase::k2 ? std::log(2.0) : 1.0;
      if (std::isinf(want.lse[i])) {
        EXPECT_EQ(got.lse[i], want.lse[i]) << "lse of query " << i;
      } else {
        EXPECT_NEAR(got.lse[i] * base, want.lse[i], tolerance * (1 + std::abs(want.lse[i])))
            << "lse of query " << i;
      }
    }
    for (size_t i = 0; i < want.output.size(); ++i) {
      ASSERT_NEAR(got.output[i], want.output[i], tolerance) << "output element " << i;
    }
  }

  void WaitForBuilds() {
    const absl::Status status = engine_->WaitForBuilds(sequence_);
    ASSERT_TRUE(status.ok()) << status;
  }

  Random random_{20240711};
  std::unique_ptr<Engine> engine_;
  ModelSpec model_;
  Tenant tenant_;
  Sequence sequence_;
  std::unique_ptr<ModelSequence> expected_;
};

TEST_F(EngineTest, EmptySequenceAnswersNothing) {
  Open(SmallOptions());
  const Answer answer = Attend(0, RandomQueries(1), {});
  EXPECT_EQ(answer.output, std::vector<float>(model_.num_q_heads * model_.head_dim_v, 0.0f));
  for (float lse : answer.lse) EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
}

TEST_F(EngineTest, SequencesShorterThanTheSteadyZoneAreExact) {
  Open(SmallOptions());
  for (int64_t length : {1, 3, 4, 5, 67, 68, 69, 70}) {
    while (expected_->length(0) < length) AppendRandom(1);
    ExpectExact(1, 1, {});
  }
}

TEST_F(EngineTest, UnsealedTokensAreExactAtAnyBudget) {
  EngineOptions options = SmallOptions();
  options.index.segment_tokens = 65536;
  options.index.update_tokens = 65536;
  Open(options);
  AppendRandom(1500);
  ExpectExact(0, 1, {});
}

TEST_F(EngineTest, BudgetOneIsExactOverSealedSegments) {
  Open(SmallOptions());
  AppendRandom(2000);
  AppendRandom(1);
  WaitForBuilds();
  EXPECT_GT(engine_->stats().segments_sealed, 0);
  ExpectExact(0, 1, AttendOptions::Exact());
  AttendOptions by_tokens;
  by_tokens.retrieval = Budget::Tokens(1 << 20);
  ExpectExact(1, 1, by_tokens);
}

TEST_F(EngineTest, CausalRowsOfAChunkSeeTheirOwnPast) {
  Open(SmallOptions());
  AppendRandom(700);
  AppendRandom(650);  // cut into segments while its own rows have yet to be asked about
  WaitForBuilds();
  ExpectExact(0, 650, AttendOptions::Exact());
  AttendOptions all;
  all.retrieval = Budget::All();
  all.causal = false;
  ExpectExact(1, 40, all);
}

TEST_F(EngineTest, RowsInsideASealedSegmentAreAnsweredExactlyWhateverTheBudget) {
  Open(SmallOptions());
  AppendRandom(612);  // positions [4, 516) are one segment, and the first rows stand inside it
  WaitForBuilds();
  ASSERT_GT(engine_->stats().segments_sealed, 0);
  AttendOptions nothing;
  nothing.retrieval = Budget::Tokens(1 << 20);
  ExpectExact(0, 300, nothing);
}

TEST_F(EngineTest, LseComesInTheBaseAskedFor) {
  Open(SmallOptions());
  AppendRandom(100);
  AttendOptions options = AttendOptions::Exact();
  options.lse_base = LseBase::k2;
  ExpectExact(0, 3, options);
}

TEST_F(EngineTest, EveryTokenIsCountedOnce) {
  // With zero queries all masses are token counts: lse = ln(length), output = the mean of the
  // values when each segment is answered by its own means.
  EngineOptions engine_options = SmallOptions();
  engine_options.index.statistics = StatisticsFormat::kFloat32;  // means as they are
  Open(engine_options);
  AppendRandom(2000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> zeros(model_.num_q_heads * model_.head_dim_k, 0.0f);
  const NaiveAttentionState want = expected_->Attend(0, zeros, 1);
  for (double share : {0.0, 0.1, 0.5, 1.0}) {
    for (int64_t retrieval : {0, 1, 100, 1000}) {
      for (const Zones zones : {Zones::kClusters, Zones::kSketch}) {
        AttendOptions options;
        options.zones = zones;
        options.retrieval = Budget::Tokens(retrieval);
        options.estimation = Budget::Ratio(share);
        options.sketch = Budget::Ratio(share);
        SCOPED_TRACE(::testing::Message()
                     << "zones " << static_cast<int>(zones) << ", estimation or sketch " << share
                     << ", retrieval " << retrieval);
        for (const double open : {1.0, 0.4, 0.0}) {
          for (const double target_error : {0.0, 0.3}) {
            SCOPED_TRACE(::testing::Message() << "open " << open << " target " << target_error);
            options.open = Budget::Ratio(open);
            options.target_error = target_error;
            const Answer got = Attend(0, zeros, options);
            for (float lse : got.lse) EXPECT_NEAR(lse, std::log(2001.0), 1e-5);
            for (size_t i = 0; i < want.output.size(); ++i) {
              ASSERT_NEAR(got.output[i], want.output[i], 1e-5) << i;
            }
          }
        }
      }
    }
  }
}

TEST_F(EngineTest, EstimatedMassNeverExceedsTheTrueMass) {
  EngineOptions engine_options = SmallOptions();
  engine_options.index.statistics = StatisticsFormat::kFloat32;  // centroids as they are
  Open(engine_options);
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  for (float scale : {0.01f, 1.0f, 4.0f, 30.0f}) {
    std::vector<float> queries = RandomQueries(1);
    for (float& q : queries) q *= scale;
    AttendOptions options = AttendOptions::Clusters();
    options.mass = MassEstimate::kLowerBound;
    for (double retrieval : {0.0, 0.018, 0.3}) {
      options.retrieval = Budget::Ratio(retrieval);
      const Answer got = Attend(1, queries, options);
      const NaiveAttentionState want = expected_->Attend(1, queries, 1);
      for (size_t i = 0; i < want.lse.size(); ++i) {
        EXPECT_LE(got.lse[i], want.lse[i] + 2e-5 * (1 + std::abs(want.lse[i]))) << scale;
      }
    }
  }
}

TEST_F(EngineTest, TheIndexTakesAtMostEightPercent) {
  // Of the bytes of K and V with default options, at the head_dim of most models.
  EngineOptions options;
  options.model = {.num_layers = 1, .num_q_heads = 2, .num_kv_heads = 1, .head_dim_k = 128};
  options.arena_bytes = int64_t{64} << 20;
  Open(options);
  AppendRandom(4 + 2 * 8192 + 64);
  WaitForBuilds();
  v1::SequenceMetadata metadata;
  const auto text = engine_->Describe(sequence_);
  ASSERT_TRUE(text.ok()) << text.status();
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(*text, &metadata));
  int64_t index_bytes = 0, kv_bytes = 0;
  for (const v1::SegmentMetadata& segment : metadata.layers(0).segments()) {
    index_bytes += segment.index_bytes();
    kv_bytes += (segment.token_end() - segment.token_begin()) * model_.token_bytes();
  }
  EXPECT_EQ(kv_bytes, 2 * 8192 * 512);
  EXPECT_GT(index_bytes, 0);
  EXPECT_LE(static_cast<double>(index_bytes), 0.08 * static_cast<double>(kv_bytes));
}

TEST_F(EngineTest, SecondOrderMassesAreNearerToTheTruthThanTheBound) {
  Open(SmallOptions());
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const NaiveAttentionState want = expected_->Attend(0, queries, 1);
  AttendOptions options;
  const Answer second_order = Attend(0, queries, options);
  options.mass = MassEstimate::kLowerBound;
  const Answer bound = Attend(0, queries, options);
  for (size_t i = 0; i < want.lse.size(); ++i) {
    EXPECT_LT(std::abs(second_order.lse[i] - want.lse[i]), 0.5 * (want.lse[i] - bound.lse[i]));
  }
}

TEST_F(EngineTest, ErrorFallsAsTheBudgetGrows) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const NaiveAttentionState want = expected_->Attend(0, queries, 1);
  const auto error = [&](double ratio) {
    AttendOptions options;
    options.retrieval = Budget::Ratio(ratio);
    options.estimation = Budget::All();
    const Answer got = Attend(0, queries, options);
    double difference = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < want.output.size(); ++i) {
      difference += std::pow(got.output[i] - want.output[i], 2);
      norm += std::pow(want.output[i], 2);
    }
    return std::sqrt(difference / norm);
  };
  const double little = error(0.02);
  const double half = error(0.5);
  EXPECT_LT(half, 0.7 * little);
  EXPECT_LT(error(0.999), 0.1 * little);
}

TEST_F(EngineTest, StatisticsAddUp) {
  Open(SmallOptions());
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const AttendStats stats = Attend(0, RandomQueries(2), {}).stats;
  EXPECT_EQ(stats.rows, 2);
  EXPECT_EQ(stats.tokens_visible, (3000 + 3001) * model_.num_kv_heads);
  EXPECT_EQ(stats.tokens_exact + stats.tokens_estimated, stats.tokens_visible);
  EXPECT_GT(stats.tokens_retrieved, 0);
  EXPECT_GT(stats.clusters_scored, stats.clusters_retrieved);
  EXPECT_LT(stats.bytes_read, stats.bytes_dense);
  EXPECT_GT(stats.estimated_mass_mean, 0.0);
  EXPECT_LE(stats.estimated_mass_mean, stats.estimated_mass_max);
  EXPECT_LE(stats.estimated_mass_max, 1.0);
  EXPECT_GT(stats.error_estimate_mean, 0.0);
  const AttendStats exact = Attend(0, RandomQueries(2), AttendOptions::Exact()).stats;
  EXPECT_EQ(exact.tokens_exact, exact.tokens_visible);
  EXPECT_EQ(exact.bytes_read, exact.bytes_dense);
  EXPECT_EQ(exact.error_estimate_max, 0.0);
}

TEST_F(EngineTest, ErrorEstimatesComePerHeadAndAreZeroWhereAllIsRead) {
  Open(SmallOptions());
  AppendRandom(1200);
  // Of three rows the first two see segments that are not sealed yet.
  const std::vector<float> queries = RandomQueries(3);
  const Answer exact = Attend(0, queries, AttendOptions::Exact());
  EXPECT_THAT(exact.errors, ::testing::Each(0.0f));
  AppendRandom(1);
  WaitForBuilds();
  const Answer got = Attend(0, queries, {});
  double sum = 0.0;
  for (const float error : got.errors) {
    EXPECT_GT(error, 0.0f);
    sum += error;
  }
  EXPECT_NEAR(got.stats.error_estimate_mean, sum / static_cast<double>(got.errors.size()), 1e-6);
  EXPECT_FLOAT_EQ(static_cast<float>(got.stats.error_estimate_max),
                  *std::max_element(got.errors.begin(), got.errors.end()));
}

TEST_F(EngineTest, ALargerTargetErrorReadsLess) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.retrieval = Budget::Ratio(0.5);
  options.sketch = Budget::All();
  const AttendStats most = Attend(0, queries, options).stats;
  int64_t tokens = most.tokens_exact, sketched = most.tokens_sketched;
  for (const double target : {1e-6, 0.05, 0.2, 0.5, 20.0}) {
    options.target_error = target;
    const Answer got = Attend(0, queries, options);
    // But for clusters that are read whole, as most of them was chosen.
    EXPECT_LE(got.stats.tokens_exact, 1.02 * static_cast<double>(tokens)) << target;
    EXPECT_LE(got.stats.tokens_sketched, sketched) << target;
    tokens = got.stats.tokens_exact;
    sketched = got.stats.tokens_sketched;
    if (target == 1e-6) {
      EXPECT_EQ(tokens, most.tokens_exact) << "the budgets are the most";
      EXPECT_EQ(sketched, most.tokens_sketched);
    }
  }
  EXPECT_LT(tokens, most.tokens_exact / 2);
  EXPECT_EQ(sketched, 0);
}

TEST_F(EngineTest, WithATargetAllIsTheMostThatIsRead) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  AttendOptions options;
  options.retrieval = options.sketch = Budget::All();
  options.target_error = 0.5;
  const AttendStats stats = Attend(0, RandomQueries(1), options).stats;
  EXPECT_GT(stats.tokens_estimated, 0);
  options.target_error = 0.0;
  EXPECT_EQ(Attend(0, RandomQueries(1), options).stats.tokens_estimated, 0);
}

TEST_F(EngineTest, TheEstimationZoneIsChosenAmongOpenedClusters) {
  // Values grow with the position: an answer from the oldest clusters alone would be too small.
  Open(SmallOptions());
  constexpr int kTokens = 4000;
  const int64_t row = int64_t{model_.num_kv_heads} * model_.head_dim_v;
  std::vector<float> values;
  for (int64_t t = 0; t < kTokens; ++t) values.insert(values.end(), row, t / float{kTokens});
  const std::vector<float> keys =
      random_.Gaussians(int64_t{kTokens} * model_.num_kv_heads * model_.head_dim_k);
  const int32_t cu_seqlens[] = {0, kTokens};
  ASSERT_TRUE(engine_
                  ->Append({{&sequence_, 1}, cu_seqlens}, 0,
                           TensorView::Dense(keys.data(), DType::kFloat32, kTokens,
                                             model_.num_kv_heads, model_.head_dim_k),
                           TensorView::Dense(values.data(), DType::kFloat32, kTokens,
                                             model_.num_kv_heads, model_.head_dim_v))
                  .ok());
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  const auto mean_output = [&](const AttendOptions& options) {
    const Answer got = Attend(0, queries, options);
    return std::accumulate(got.output.begin(), got.output.end(), 0.0) /
           static_cast<double>(got.output.size());
  };
  AttendOptions options = AttendOptions::Paper();
  options.estimation = Budget::Ratio(0.4);
  const double flat = mean_output(options);
  const int64_t scored = Attend(0, queries, options).stats.bytes_read;
  options.open = Budget::Ratio(0.0);
  EXPECT_NEAR(mean_output(options), flat, 0.03);
  EXPECT_LT(Attend(0, queries, options).stats.bytes_read, scored);
}

TEST_F(EngineTest, OpeningFewerSuperClustersReadsFewerBytes) {
  Open(SmallOptions());
  AppendRandom(4000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.sketch = Budget::Ratio(0.05);
  int64_t bytes = Attend(0, queries, options).stats.bytes_read;
  for (const double open : {0.5, 0.0}) {
    options.open = Budget::Ratio(open);
    const AttendStats stats = Attend(0, queries, options).stats;
    EXPECT_LT(stats.bytes_read, bytes) << open;
    // What is sketched is opened first.
    EXPECT_GE(stats.tokens_sketched, static_cast<int64_t>(0.04 * stats.tokens_visible));
    bytes = stats.bytes_read;
  }
}

// Runs tasks in the caller, last first, and counts them.
class BackwardsExecutor : public Executor {
 public:
  int num_workers() const override { return 1; }
  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    for (int64_t i = num_tasks - 1; i >= 0; --i) task(i, 0);
    num_tasks_ += num_tasks;
  }
  int64_t num_tasks() const { return num_tasks_; }

 private:
  int64_t num_tasks_ = 0;
};

TEST_F(EngineTest, TheCallersExecutorDoesTheWorkInAnyOrder) {
  const auto executor = std::make_shared<BackwardsExecutor>();
  EngineOptions options = SmallOptions();
  options.executor = executor;
  Open(options);
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const int64_t appended = executor->num_tasks();
  EXPECT_GT(appended, 0);
  ExpectExact(0, 3, AttendOptions::Exact());
  EXPECT_GT(executor->num_tasks(), appended);
}

TEST_F(EngineTest, DescribeListsEverySegment) {
  Open(SmallOptions());
  AppendRandom(1300);
  AppendRandom(1);
  WaitForBuilds();
  const auto text = engine_->Describe(sequence_);
  ASSERT_TRUE(text.ok()) << text.status();
  v1::SequenceMetadata metadata;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(*text, &metadata));
  ASSERT_EQ(metadata.layers_size(), model_.num_layers);
  for (const v1::LayerMetadata& layer : metadata.layers()) {
    EXPECT_EQ(layer.num_tokens(), 1301u);
    uint64_t next = 4;  // behind the sinks
    for (const v1::SegmentMetadata& segment : layer.segments()) {
      EXPECT_EQ(segment.token_begin(), next);
      EXPECT_EQ(segment.state(), v1::SegmentMetadata::SEALED);
      EXPECT_EQ(segment.num_clusters_size(), model_.num_kv_heads);
      const uint64_t kv_bytes =
          (segment.token_end() - segment.token_begin()) * model_.token_bytes();
      EXPECT_GE(segment.bytes(), kv_bytes + segment.index_bytes());
      next = segment.token_end();
    }
    EXPECT_EQ(next, 1156u) << "512 + 512 while appending, 128 at the first decode row";
    EXPECT_EQ(layer.tail_tokens(), 1301 - next);
  }
  v1::EngineStats stats;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(engine_->StatsText(), &stats));
  EXPECT_EQ(stats.segments_sealed(), 6);
}

TEST_F(EngineTest, ResultsDoNotDependOnTheNumberOfThreads) {
  std::vector<float> first_output;
  for (int threads : {1, 2, 5}) {
    EngineOptions options = SmallOptions();
    options.worker_threads = threads;
    options.build_threads = threads;
    Open(options);
    random_.engine().seed(7);
    AppendRandom(3000);
    AppendRandom(1);
    WaitForBuilds();
    const Answer answer = Attend(1, RandomQueries(3), {});
    if (first_output.empty()) first_output = answer.output;
    EXPECT_EQ(answer.output, first_output) << threads << " threads";
  }
}

TEST_F(EngineTest, AnArenaSizedForSomeTokensHoldsThem) {
  for (int64_t tokens : {100, 1000, 5000}) {
    EngineOptions options = SmallOptions();
    options.arena_bytes = ArenaBytesFor(options, tokens);
    EXPECT_LT(options.arena_bytes, 3 * tokens * options.model.token_bytes() * 2 + (4 << 20));
    Open(options);
    AppendRandom(tokens / 2);
    for (int64_t i = tokens / 2; i < tokens; i += 50) AppendRandom(50);
    WaitForBuilds();
    ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
    WaitForBuilds();
  }
}

TEST_F(EngineTest, PagedSourcesGiveTheSameAsPackedRows) {
  Open(SmallOptions());
  const int64_t rows = 300;
  const int64_t page_tokens = 16;
  const int64_t num_pages = 40;
  const int heads = model_.num_kv_heads;
  const int dim = model_.head_dim_k;
  const std::vector<float> keys = RandomKeys(rows);
  const std::vector<float> values = RandomValues(rows);
  // Pages hold keys and values in one buffer, heads before tokens (HND), in scattered order.
  const int64_t page_stride = 2 * heads * page_tokens * dim;
  std::vector<float> pages(num_pages * page_stride, NAN);
  std::vector<int32_t> table(num_pages, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t page = (row / page_tokens * 7 + 3) % num_pages;
    table[row / page_tokens] = static_cast<int32_t>(page);
    for (int head = 0; head < heads; ++head) {
      for (int d = 0; d < dim; ++d) {
        const int64_t at = page * page_stride + (head * page_tokens + row % page_tokens) * dim + d;
        pages[at] = keys[(row * heads + head) * dim + d];
        pages[at + heads * page_tokens * dim] = values[(row * heads + head) * dim + d];
      }
    }
  }
  const PagedView key_pages = {
      pages.data(), DType::kFloat32, num_pages, page_tokens,       heads,
      dim,          page_stride,     dim,       page_tokens * dim, Memory::kHost};
  PagedView value_pages = key_pages;
  value_pages.data = pages.data() + heads * page_tokens * dim;
  const PageTable page_table = {table.data(), 1, num_pages, num_pages};
  for (int layer = 0; layer < model_.num_layers; ++layer) {
    for (const auto& [begin, end] : {std::pair<int, int>{0, 100}, {100, 101}, {101, 300}}) {
      const int32_t cu_seqlens[] = {0, end - begin};
      const absl::Status status = engine_->AppendPaged({{&sequence_, 1}, cu_seqlens}, layer,
                                                       key_pages, value_pages, page_table);
      ASSERT_TRUE(status.ok()) << status;
    }
    expected_->Append(layer, keys, values);
  }
  ExpectExact(0, 2, AttendOptions::Exact());
  ExpectExact(1, 1, AttendOptions::Exact());

  // The 20th page is not in the table, and nothing is appended of a batch that needs it.
  const int32_t too_far[] = {0, 5};
  const absl::Status status =
      engine_->AppendPaged({{&sequence_, 1}, too_far}, 0, key_pages, value_pages, page_table);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(sequence_.length(), rows);
}

TEST_F(EngineTest, ForkSharesAndThenParts) {
  Open(SmallOptions());
  AppendRandom(1400);
  WaitForBuilds();
  const int64_t used = engine_->stats().arena_bytes_used;
  auto child = tenant_.Fork(sequence_);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(engine_->stats().arena_bytes_used, used) << "a fork copies nothing";

  ModelSequence parent_expected = *expected_;
  const Sequence parent = sequence_;
  AppendRandom(5);
  ExpectExact(0, 5, AttendOptions::Exact());
  sequence_ = *child;
  std::swap(*expected_, parent_expected);
  AppendRandom(7);
  ExpectExact(0, 7, AttendOptions::Exact());
  sequence_ = parent;
  std::swap(*expected_, parent_expected);
  ExpectExact(1, 2, AttendOptions::Exact());
}

TEST_F(EngineTest, TruncateInsideASealedSegmentKeepsTheSurvivors) {
  Open(SmallOptions());
  AppendRandom(1400);
  AppendRandom(1);
  WaitForBuilds();
  for (int64_t length : {1399, 1300, 1027, 700, 516, 515, 68, 3, 0}) {
    const absl::Status status = tenant_.Truncate(sequence_, length);
    ASSERT_TRUE(status.ok()) << status;
    expected_->Truncate(length);
    EXPECT_EQ(sequence_.length(), length);
    ExpectExact(0, 1, AttendOptions::Exact());
    AppendRandom(2);
    ExpectExact(1, 2, AttendOptions::Exact());
    WaitForBuilds();
  }
}

TEST_F(EngineTest, RetrieveNamesWhatAttendReads) {
  Open(SmallOptions());
  AppendRandom(3000);
  AppendRandom(1);
  WaitForBuilds();
  const std::vector<float> queries = RandomQueries(1);
  AttendOptions options;
  options.retrieval = Budget::Tokens(200);
  const int32_t cu_seqlens[] = {0, 1};
  auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
  ASSERT_TRUE(plan.ok());
  auto retrieved = engine_->Retrieve(
      *plan, 0,
      TensorView::Dense(queries.data(), DType::kFloat32, 1, model_.num_q_heads, model_.head_dim_k));
  ASSERT_TRUE(retrieved.ok()) << retrieved.status();
  ASSERT_EQ(retrieved->size(), static_cast<size_t>(model_.num_kv_heads));
  size_t tokens = 0;
  for (const RetrievedTokens& head : *retrieved) {
    tokens += head.positions.size();
    EXPECT_GE(head.positions.size(), 200u);
    for (size_t i = 1; i < head.clusters.size(); ++i) {
      EXPECT_GE(head.clusters[i - 1].probability, head.clusters[i].probability);
    }
    ASSERT_EQ(head.places.size(), head.positions.size());
    size_t token = 0;
    for (const RankedCluster& cluster : head.clusters) {
      int64_t place = -1;
      for (int64_t i = 0; i < cluster.num_read; ++i, ++token) {
        EXPECT_GT(head.places[token], place);
        place = head.places[token];
      }
      EXPECT_LT(place, cluster.num_tokens);
    }
    EXPECT_EQ(token, head.positions.size());
    for (int64_t position : head.positions) {
      EXPECT_GE(position, 4);
      EXPECT_LT(position, 3001 - 64);
    }
  }
  EXPECT_EQ(Attend(0, queries, options).stats.tokens_retrieved, static_cast<int64_t>(tokens));
}

TEST_F(EngineTest, DegenerateKeysAreAnsweredExactlyAtBudgetOneAndFinitelyBelow) {
  struct Case {
    const char* name;
    float base;
    float noise;
  };
  for (const Case& c :
       {Case{"all equal", 1.0f, 0.0f}, Case{"all zero", 0.0f, 0.0f}, Case{"tiny", 0.0f, 1e-5f},
        Case{"huge", 0.0f, 1e3f}, Case{"one direction", 10.0f, 1e-3f}}) {
    SCOPED_TRACE(c.name);
    Open(SmallOptions());
    std::vector<float> keys = RandomKeys(1500);
    for (float& k : keys) k = c.base + c.noise * k;
    for (int layer = 0; layer < 2; ++layer) Append(layer, keys, RandomValues(1500));
    AppendRandom(1);
    WaitForBuilds();
    ExpectExact(0, 1, AttendOptions::Exact(), 1e-3);
    const Answer answer = Attend(0, RandomQueries(1), {});
    for (float x : answer.output) EXPECT_TRUE(std::isfinite(x));
    for (float x : answer.lse) EXPECT_TRUE(std::isfinite(x));
  }
}

// Every stored type, head dim and group size: budget 1.0 is exact attention over what was stored.
struct ShapeCase {
  DType dtype;
  int head_dim_k;
  int head_dim_v;
  int num_q_heads;
  int num_kv_heads;
};

class EngineShapeTest : public EngineTest, public ::testing::WithParamInterface<ShapeCase> {};

TEST_P(EngineShapeTest, BudgetOneIsNaiveAttention) {
  const ShapeCase& shape = GetParam();
  EngineOptions options = SmallOptions();
  options.model.num_layers = 1;
  options.model.kv_dtype = shape.dtype;
  options.model.head_dim_k = shape.head_dim_k;
  options.model.head_dim_v = shape.head_dim_v;
  options.model.num_q_heads = shape.num_q_heads;
  options.model.num_kv_heads = shape.num_kv_heads;
  Open(options);
  AppendRandom(700);
  AppendRandom(1);
  WaitForBuilds();
  ExpectExact(0, 1, AttendOptions::Exact());
  ExpectExact(0, 9, AttendOptions::Exact());
}

std::vector<ShapeCase> ShapeCases() {
  std::vector<ShapeCase> cases;
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int head_dim : {64, 80, 96, 128, 256}) cases.push_back({dtype, head_dim, head_dim, 4, 2});
    for (int group : {1, 4, 7, 8}) cases.push_back({dtype, 64, 64, 2 * group, 2});
    cases.push_back({dtype, 128, 64, 6, 1});
    cases.push_back({dtype, 8, 40, 3, 3});
    cases.push_back({dtype, 576, 512, 16, 1});  // latent attention: keys carry a rotary part
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, EngineShapeTest, ::testing::ValuesIn(ShapeCases()),
                         [](const auto& shape) {
                           const ShapeCase& c = shape.param;
                           return std::string(DTypeName(c.dtype)) + "_dk" +
                                  std::to_string(c.head_dim_k) + "_dv" +
                                  std::to_string(c.head_dim_v) + "_q" +
                                  std::to_string(c.num_q_heads) + "_kv" +
                                  std::to_string(c.num_kv_heads);
                         });

}  // namespace
}  // namespace wavekv
