// The engine against naive double-precision attention.
#include "wavekv/engine.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/engine_stats.pb.h"
#include "proto/metadata.pb.h"
#include "tests/api/engine_fixture.h"
#include "tests/testing/model_sequence.h"

namespace wavekv {
namespace {

using ::wavekv::testing::ModelSequence;

class EngineTest : public testing::EngineFixture {};

TEST_P(EngineTest, EmptySequenceAnswersNothing) {
  Open(SmallOptions());
  const Answer answer = Attend(0, RandomQueries(1), {});
  EXPECT_EQ(answer.output, std::vector<float>(model_.num_q_heads * model_.head_dim_v, 0.0f));
  for (float lse : answer.lse) EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
}

TEST_P(EngineTest, SequencesShorterThanTheSteadyZoneAreExact) {
  Open(SmallOptions());
  for (int64_t length : {1, 3, 4, 5, 67, 68, 69, 70}) {
    while (expected_->length(0) < length) AppendRandom(1);
    ExpectExact(1, 1, {});
  }
}

TEST_P(EngineTest, UnsealedTokensAreExactAtAnyBudget) {
  EngineOptions options = SmallOptions();
  options.index.segment_tokens = 65536;
  options.index.update_tokens = 65536;
  Open(options);
  AppendRandom(1500);
  ExpectExact(0, 1, {});
}

TEST_P(EngineTest, BudgetOneIsExactOverSealedSegments) {
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

TEST_P(EngineTest, CausalRowsOfAChunkSeeTheirOwnPast) {
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

TEST_P(EngineTest, RowsInsideASealedSegmentAreAnsweredExactlyWhateverTheBudget) {
  Open(SmallOptions());
  AppendRandom(612);  // positions [4, 516) are one segment, and the first rows stand inside it
  WaitForBuilds();
  ASSERT_GT(engine_->stats().segments_sealed, 0);
  AttendOptions nothing;
  nothing.retrieval = Budget::Tokens(1 << 20);
  ExpectExact(0, 300, nothing);
}

TEST_P(EngineTest, LseComesInTheBaseAskedFor) {
  Open(SmallOptions());
  AppendRandom(100);
  AttendOptions options = AttendOptions::Exact();
  options.lse_base = LseBase::k2;
  ExpectExact(0, 3, options);
}

TEST_P(EngineTest, TheIndexTakesAtMostEightPercent) {
  if (test_device() == testing::TestDevice::kEmulatedGpu) GTEST_SKIP() << "takes a minute";
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

TEST_P(EngineTest, StatisticsAddUp) {
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

TEST_P(EngineTest, TheCallersExecutorDoesTheWorkInAnyOrder) {
  if (!on_cpu()) GTEST_SKIP() << "of the processor's threads";
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

TEST_P(EngineTest, DescribeListsEverySegment) {
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

TEST_P(EngineTest, ResultsDoNotDependOnTheNumberOfThreads) {
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

TEST_P(EngineTest, AnArenaSizedForSomeTokensHoldsThem) {
  for (int64_t tokens : {100, 1000, 5000}) {
    EngineOptions options = SmallOptions();
    options.device = device();
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

TEST_P(EngineTest, PagedSourcesGiveTheSameAsPackedRows) {
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

TEST_P(EngineTest, ForkSharesAndThenParts) {
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

TEST_P(EngineTest, TruncateInsideASealedSegmentKeepsTheSurvivors) {
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

TEST_P(EngineTest, DegenerateKeysAreAnsweredExactlyAtBudgetOneAndFinitelyBelow) {
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

class EngineShapeTest
    : public testing::EngineHarness,
      public ::testing::WithParamInterface<std::tuple<testing::TestDevice, ShapeCase>> {
 protected:
  testing::TestDevice test_device() const override { return std::get<0>(GetParam()); }
};

TEST_P(EngineShapeTest, BudgetOneIsNaiveAttention) {
  const ShapeCase& shape = std::get<1>(GetParam());
  // tests/cuda/attend_rows_test goes through all shapes of all types there.
  if (test_device() == testing::TestDevice::kEmulatedGpu && shape.dtype != DType::kBFloat16) {
    GTEST_SKIP() << "one type is enough on the emulator";
  }
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

INSTANTIATE_TEST_SUITE_P(Shapes, EngineShapeTest,
                         ::testing::Combine(testing::TestDevices(),
                                            ::testing::ValuesIn(ShapeCases())),
                         [](const auto& shape) {
                           const ShapeCase& c = std::get<1>(shape.param);
                           return std::string(NameOf(std::get<0>(shape.param))) + "_" +
                                  DTypeName(c.dtype) + "_dk" + std::to_string(c.head_dim_k) +
                                  "_dv" + std::to_string(c.head_dim_v) + "_q" +
                                  std::to_string(c.num_q_heads) + "_kv" +
                                  std::to_string(c.num_kv_heads);
                         });

WAVEKV_ON_EACH_DEVICE(EngineTest);

}  // namespace
}  // namespace wavekv
