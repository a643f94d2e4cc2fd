#include "cuda/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cpu/random_index.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kRounding = 0x1p-24;

// What a task reads, on the host.
struct Given {
  std::unique_ptr<RandomIndex> index;
  int num_queries = 1;
  MassEstimate mass = MassEstimate::kLowerBound;
  std::vector<float> queries;
  std::vector<float> log_masses;
  int64_t log_masses_stride = 0;
  std::vector<Zone> zones;
  int64_t num_tokens = 0;
  int64_t token_stride = 0;
  std::vector<float> logits;
  // The same, as the CPU takes them.
  std::vector<float> token_masses;
  std::vector<float> token_offsets;
  std::vector<uint8_t> chosen;
  bool with_errors = true;
  bool with_counts = true;

  const ClusterIndex& statistics() const { return index->index(); }
};

// Numbers that say what an operation wrote.
struct Answer {
  std::vector<float> output;
  std::vector<float> lse;
  std::vector<float> missing_lse;
  std::vector<float> value_variance;
  std::vector<int64_t> counts;  // value means, super-clusters' value means
};

struct Case {
  int dim_k = 64;
  int dim_v = 64;
  DType dtype = DType::kBFloat16;
  StatisticsFormat statistics = StatisticsFormat::kInt4;
  int64_t num_clusters = 40;
  int num_queries = 4;
  float deviation = 1.0f;  // of logs
  int percent_chosen = 10;
  // Clusters draw their zone from these.
  std::vector<Zone> zones = {Zone::kRetrieval, Zone::kSketch, Zone::kEstimation, Zone::kRemainder,
                             Zone::kIgnored};
  int percent_nothing = 0;  // of logs that are -infinity
};

const std::vector<Zone> kMostlyRemainder = {Zone::kRemainder, Zone::kRemainder, Zone::kRemainder,
                                            Zone::kRemainder, Zone::kSketch,    Zone::kEstimation,
                                            Zone::kRetrieval};

class EstimateClustersOnGpu : public GpuFixture {
 protected:
  static Given Draw(Random& random, const Case& c) {
    Given given;
    given.index = std::make_unique<RandomIndex>(random, KvShape{c.dim_k, c.dim_v, c.dtype},
                                                c.statistics, c.num_clusters);
    given.num_queries = c.num_queries;
    given.mass = random.Integer(0, 1) == 0 ? MassEstimate::kLowerBound : MassEstimate::kSecondOrder;
    given.with_errors = random.Integer(0, 3) > 0;
    given.with_counts = random.Integer(0, 3) > 0;
    given.queries = random.Gaussians(c.num_queries * c.dim_k);
    given.log_masses_stride = c.num_clusters + random.Integer(0, 5);
    given.log_masses = random.Gaussians(c.num_queries * given.log_masses_stride, c.deviation);
    for (int64_t i = 0; i < c.num_clusters; ++i) {
      const auto zone = random.Integer(0, static_cast<int64_t>(c.zones.size()) - 1);
      given.zones.push_back(c.zones[zone]);
    }
    DrawTokens(random, c, given);
    for (std::vector<float>* logs : {&given.log_masses, &given.logits}) {
      for (float& log : *logs) {
        if (random.Integer(0, 99) < c.percent_nothing) log = -kInfinity;
      }
    }
    ComputeMasses(random, given);
    return given;
  }

  // Relative to offsets that may be far from the greatest.
  static void ComputeMasses(Random& random, Given& given) {
    for (int h = 0; h < given.num_queries; ++h) {
      const float* const logits = given.logits.data() + h * given.token_stride;
      float offset = -kInfinity;
      for (int64_t t = 0; t < given.num_tokens; ++t) {
        if (given.chosen[t] == 0) offset = std::max(offset, logits[t]);
      }
      offset = std::isinf(offset) ? 0.0f : offset + static_cast<float>(random.Integer(-20, 20));
      given.token_offsets.push_back(offset);
      for (int64_t t = 0; t < given.token_stride; ++t) {
        given.token_masses.push_back(std::exp(std::min(logits[t] - offset, 40.0f)));
      }
    }
  }

  static void DrawTokens(Random& random, const Case& c, Given& given) {
    given.num_tokens = 0;
    for (int64_t i = 0; i < given.statistics().num_clusters; ++i) {
      if (given.zones[i] == Zone::kSketch) given.num_tokens += given.statistics().cluster_size(i);
    }
    given.token_stride = given.num_tokens + random.Integer(0, 5);
    // What is less than the greatest by e^87 counts on one of the two.
    given.logits =
        random.Gaussians(given.num_queries * given.token_stride, std::min(c.deviation, 10.0f));
    given.chosen.clear();
    for (int64_t t = 0; t < given.num_tokens; ++t) {
      given.chosen.push_back(random.Integer(0, 99) < c.percent_chosen);
    }
  }

  // Values of chosen tokens in the rows of `index`.
  static std::vector<const std::byte*> ChosenValues(const Given& given, const std::byte* rows) {
    const ClusterIndex& index = given.statistics();
    std::vector<const std::byte*> values;
    int64_t token = 0;
    for (int64_t i = 0; i < index.num_clusters; ++i) {
      if (given.zones[i] != Zone::kSketch) continue;
      for (int64_t t = 0; t < index.cluster_size(i); ++t) {
        const std::byte* value = index.cluster_values(i) + t * index.value_row_bytes();
        if (given.chosen[token++] != 0) values.push_back(rows + (value - index.rows));
      }
    }
    return values;
  }

  Answer OfCpu(const Given& given) {
    const ClusterIndex& index = given.statistics();
    const int num_queries = given.num_queries;
    Answer answer = {std::vector<float>(num_queries * index.shape.head_dim_v),
                     std::vector<float>(num_queries), std::vector<float>(num_queries),
                     std::vector<float>(num_queries), std::vector<int64_t>(2)};
    const std::vector<const std::byte*> values = ChosenValues(given, index.rows);
    const bool tokens = given.num_tokens > 0;
    const EstimateClustersTask task = {
        .queries = given.queries.data(),
        .num_queries = num_queries,
        .index = &index,
        .log_masses = given.log_masses.data(),
        .log_masses_stride = given.log_masses_stride,
        .mass = given.mass,
        .zones = given.zones.data(),
        .token_masses = tokens ? given.token_masses.data() : nullptr,
        .token_offsets = tokens ? given.token_offsets.data() : nullptr,
        .token_stride = given.token_stride,
        .chosen = given.chosen.data(),
        .chosen_values = values.data(),
        .output = answer.output.data(),
        .lse = answer.lse.data(),
        .num_value_means = &answer.counts[0],
        .num_super_value_means = &answer.counts[1],
        .missing_lse = given.with_errors ? answer.missing_lse.data() : nullptr,
        .value_variance = given.with_errors ? answer.value_variance.data() : nullptr};
    Expect(cpu().EstimateClusters({&task, 1}));
    return answer;
  }

  EstimateClustersTask UploadTask(const Given& given) {
    const ClusterIndex* index = UploadIndex(given.statistics());
    const std::byte* rows = Download(index, 1)[0].rows;
    const int num_queries = given.num_queries;
    const bool tokens = given.num_tokens > 0;
    EstimateClustersTask task = {
        .queries = given.with_errors ? Upload(given.queries) : nullptr,
        .num_queries = num_queries,
        .index = index,
        .log_masses = Upload(given.log_masses),
        .log_masses_stride = given.log_masses_stride,
        .mass = given.mass,
        .zones = Upload(given.zones),
        .token_logits = tokens ? Upload(given.logits) : nullptr,
        .token_stride = given.token_stride,
        .chosen = tokens ? Upload(given.chosen) : nullptr,
        .chosen_values = tokens ? Upload(ChosenValues(given, rows)) : nullptr,
        .output = Poison<float>(num_queries * given.statistics().shape.head_dim_v),
        .lse = Poison<float>(num_queries)};
    if (given.with_counts) {
      task.num_value_means = Poison<int64_t>(1);
      task.num_super_value_means = Poison<int64_t>(1);
    }
    if (given.with_errors) {
      task.missing_lse = Poison<float>(num_queries);
      task.value_variance = Poison<float>(num_queries);
    }
    return task;
  }

  // All tasks in one launch, among some that are skipped. num_items: 0: what suits them.
  void ExpectTheCpus(const std::vector<Given>& all, int64_t num_items = 0) {
    TaskBounds bounds;
    bounds.shape = all[0].statistics().shape;
    bounds.statistics = all[0].statistics().statistics;
    bounds.num_items = num_items;
    std::vector<EstimateClustersTask> tasks(1);
    for (const Given& given : all) {
      bounds.num_queries = std::max(bounds.num_queries, given.num_queries);
      bounds.num_items = std::max(bounds.num_items, given.statistics().num_clusters);
      tasks.push_back(UploadTask(given));
    }
    tasks.emplace_back();
    const auto count = static_cast<int64_t>(tasks.size());
    std::byte* scratch = Poison<std::byte>(operations().estimate_scratch_bytes(bounds) * count);
    const auto launched = Upload(tasks);
    Expect(operations().estimate_clusters({launched, count}, bounds, scratch, stream()));
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "task " << i);
      ExpectTheCpu(all[i], tasks[i + 1]);
    }
  }

  void ExpectTheCpu(const Given& given, const EstimateClustersTask& task) {
    const ClusterIndex& index = given.statistics();
    SCOPED_TRACE(::testing::Message()
                 << "dims " << index.shape.head_dim_k << " " << index.shape.head_dim_v << " "
                 << DTypeName(index.shape.dtype) << " " << StatisticsFormatName(index.statistics)
                 << " clusters " << index.num_clusters << " queries " << given.num_queries);
    const Answer expected = OfCpu(given);
    const int dim = index.shape.head_dim_v;
    const std::vector<float> output = Download(task.output, given.num_queries * dim);
    const std::vector<float> lse = Download(task.lse, given.num_queries);
    // Of weights: masses of logs below 64, and a rounding for each cluster that is summed.
    const double relative = 0x1p-17 + 2 * static_cast<double>(index.num_clusters) * kRounding;
    for (int h = 0; h < given.num_queries; ++h) {
      ExpectLog(lse[h], expected.lse[h], relative);
      for (int d = 0; d < dim; ++d) {
        ASSERT_NEAR(output[h * dim + d], expected.output[h * dim + d], 8 * relative)
            << "query " << h << " element " << d;
      }
    }
    if (given.with_counts) {
      EXPECT_EQ(Download(task.num_value_means, 1)[0], expected.counts[0]);
      EXPECT_EQ(Download(task.num_super_value_means, 1)[0], expected.counts[1]);
    }
    if (!given.with_errors) return;
    const std::vector<float> missing = Download(task.missing_lse, given.num_queries);
    const std::vector<float> variance = Download(task.value_variance, given.num_queries);
    for (int h = 0; h < given.num_queries; ++h) {
      ExpectLog(missing[h], expected.missing_lse[h], relative);
      EXPECT_NEAR(variance[h], expected.value_variance[h],
                  8 * relative * expected.value_variance[h]);
    }
  }

  static void ExpectLog(float got, float expected, double relative) {
    if (std::isinf(expected)) {
      EXPECT_EQ(got, expected);
    } else {
      EXPECT_NEAR(got, expected, 4 * relative + 4 * kRounding * std::fabs(expected));
    }
  }
};

TEST_P(EstimateClustersOnGpu, GivesWhatTheCpuGivesForEveryTypeAndShape) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  const DType dtypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  int which = 0;
  for (const int dim : {8, 72, 80, 128, 576}) {
    for (const StatisticsFormat statistics : kAllStatistics) {
      Case c = {.dim_k = random.Integer(0, 1) == 0 ? dim : 72,
                .dim_v = dim,
                .dtype = dtypes[which++ % 3],
                .statistics = statistics,
                .num_clusters = 30};
      std::vector<Given> all;
      all.push_back(Draw(random, c));
      c.zones = kMostlyRemainder;
      c.num_clusters = random.Integer(1, 60);
      c.num_queries = static_cast<int>(random.Integer(1, 4));
      all.push_back(Draw(random, c));
      ExpectTheCpus(all);
    }
    ++which;
  }
}

TEST_P(EstimateClustersOnGpu, AnyNumberOfQueries) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  for (const int num_queries : {1, 2, 4, 5, 8, 11, 33}) {
    std::vector<Given> all;
    for (const int fewer : {0, 0, 3}) {
      Case c = {.num_clusters = 25, .num_queries = std::max(1, num_queries - fewer)};
      c.zones = fewer > 0 ? c.zones : kMostlyRemainder;
      all.push_back(Draw(random, c));
    }
    ExpectTheCpus(all);
  }
}

TEST_P(EstimateClustersOnGpu, AnyNumberOfClustersInSharedMemoryAndInScratch) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  for (const int num_queries : {1, 4, 7}) {
    std::vector<Given> all;
    for (const int64_t num_clusters : {0, 1, 2, 31, 257}) {
      all.push_back(Draw(random, {.num_clusters = num_clusters, .num_queries = num_queries}));
    }
    ExpectTheCpus(all);
    ExpectTheCpus(all, /*num_items=*/5000);
  }
  std::vector<Given> big;
  big.push_back(Draw(random, {.dim_v = 8, .num_clusters = 1500, .percent_chosen = 2}));
  ExpectTheCpus(big);
}

TEST_P(EstimateClustersOnGpu, MassesMayBeOfAnyMagnitude) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  for (const float deviation : {0.0f, 40.0f, 1e4f}) {
    std::vector<Given> all;
    for (const int percent_nothing : {0, 50, 100}) {
      Case c = {.deviation = deviation, .percent_nothing = percent_nothing};
      all.push_back(Draw(random, c));
      c.zones = kMostlyRemainder;
      all.push_back(Draw(random, c));
    }
    ExpectTheCpus(all);
  }
}

TEST_P(EstimateClustersOnGpu, OneZoneMayHaveAllClusters) {
  Random random(5);
  WAVEKV_TRACE_SEED(random);
  std::vector<Given> all;
  for (int zone = 0; zone <= 4; ++zone) {
    all.push_back(Draw(random, {.zones = {static_cast<Zone>(zone)}}));
    all.push_back(Draw(random, {.zones = {static_cast<Zone>(zone), Zone::kRemainder}}));
    all.push_back(Draw(random, {.zones = {static_cast<Zone>(zone), Zone::kIgnored}}));
  }
  ExpectTheCpus(all);
}

TEST_P(EstimateClustersOnGpu, AnyNumberOfTokensMayBeChosen) {
  Random random(6);
  WAVEKV_TRACE_SEED(random);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    std::vector<Given> all;
    for (const int percent_chosen : {0, 1, 50, 90, 100}) {
      Case c = {.dtype = dtype, .percent_chosen = percent_chosen};
      all.push_back(Draw(random, c));
      c.zones = {Zone::kSketch};
      all.push_back(Draw(random, c));
      c.zones = kMostlyRemainder;
      all.push_back(Draw(random, c));
    }
    ExpectTheCpus(all);
  }
}

TEST_P(EstimateClustersOnGpu, EverythingRetrievedGivesTheEmptyState) {
  Random random(7);
  WAVEKV_TRACE_SEED(random);
  const Given given = Draw(random, {.zones = {Zone::kRetrieval}});
  const EstimateClustersTask task = UploadTask(given);
  TaskBounds bounds;
  bounds.shape = given.statistics().shape;
  bounds.num_queries = given.num_queries;
  bounds.num_items = given.statistics().num_clusters;
  std::byte* scratch = Poison<std::byte>(operations().estimate_scratch_bytes(bounds));
  const auto* launched = Upload(std::vector<EstimateClustersTask>{task});
  Expect(operations().estimate_clusters({launched, 1}, bounds, scratch, stream()));
  EXPECT_EQ(Download(task.output, 4 * 64), std::vector<float>(4 * 64));
  EXPECT_EQ(Download(task.lse, 4), std::vector<float>(4, -kInfinity));
}

TEST_P(EstimateClustersOnGpu, IsTheSameEveryTime) {
  Random random(8);
  WAVEKV_TRACE_SEED(random);
  const Given given = Draw(random, {.num_clusters = 200});
  const EstimateClustersTask task = UploadTask(given);
  TaskBounds bounds;
  bounds.shape = given.statistics().shape;
  bounds.num_queries = given.num_queries;
  bounds.num_items = given.statistics().num_clusters;
  std::byte* scratch = Poison<std::byte>(operations().estimate_scratch_bytes(bounds));
  const auto* launched = Upload(std::vector<EstimateClustersTask>{task});
  std::vector<float> first;
  for (int i = 0; i < 3; ++i) {
    Expect(operations().estimate_clusters({launched, 1}, bounds, scratch, stream()));
    std::vector<float> output = Download(task.output, 4 * 64);
    if (i == 0) first = output;
    EXPECT_EQ(output, first);
  }
}

WAVEKV_ON_EACH_GPU(EstimateClustersOnGpu);

}  // namespace
}  // namespace wavekv::testing
