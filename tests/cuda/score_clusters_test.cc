#include "cuda/score_clusters.h"

#include <algorithm>
#include <cmath>
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
constexpr int kHeadDims[] = {8, 16, 40, 64, 72, 80, 96, 128, 256, 576};

MassEstimate AnyMass(Random& random) {
  return random.Integer(0, 1) == 0 ? MassEstimate::kLowerBound : MassEstimate::kSecondOrder;
}
Ranking AnyRanking(Random& random) {
  return random.Integer(0, 1) == 0 ? Ranking::kOptimistic : Ranking::kCentroid;
}

class ScoreOnGpu : public GpuFixture {
 protected:
  // An index, some of whose super-clusters have no clusters, and queries of it.
  struct Case {
    Case(Random& random, int dim, StatisticsFormat statistics, int64_t num_clusters,
         int the_num_queries)
        : index(random, {dim, 8, DType::kBFloat16}, statistics, num_clusters),
          num_queries(the_num_queries),
          queries(random.Gaussians(num_queries * dim, 0.3f)) {
      auto* super_offsets = const_cast<uint32_t*>(index.index().super_offsets);
      for (int64_t s = 1; s < index.index().num_supers; ++s) {
        if (random.Integer(0, 5) == 0) super_offsets[s] = super_offsets[s - 1];
      }
      // Heads of which one is 0, and those of very different sizes.
      for (int h = 0; h < num_queries; ++h) {
        const float size = h % 5 == 3 ? 0.0f : h % 5 == 4 ? 0.001f : 1.0f;
        for (int d = 0; d < dim; ++d) queries[h * dim + d] *= size;
      }
    }

    // What sums in fp32 of a head's products may be off by: of each, a few roundings of what is
    // added up, among it integers as stored, without a sign. And what the CPU's queries are rounded
    // by where means are integers: ten standard deviations for means of about 1.
    double Tolerance(int head) const {
      const int dim = index.index().shape.head_dim_k;
      double sum = 20.0, most = 0.0;
      for (int d = 0; d < dim; ++d) {
        const double magnitude = std::fabs(queries[head * dim + d]);
        sum += 4.0 * magnitude;
        most = std::max(most, magnitude);
      }
      const bool rounds = index.index().statistics != StatisticsFormat::kFloat32;
      return 0x1p-24 * (dim / 16 + 8) * sum +
             (rounds ? 8.0 * std::sqrt(dim) * most * kQueryRounding : 0.0);
    }

    RandomIndex index;
    int num_queries;
    std::vector<float> queries;
    std::vector<Zone> zones;
    std::vector<float> super_log_masses;
  };

  void ExpectSame(const Case& of, const std::vector<float>& got, const std::vector<float>& expected,
                  int64_t stride) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(expected[i]) || std::isinf(expected[i])) {
        ASSERT_TRUE(got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])))
            << i << ": " << got[i] << ", not " << expected[i];
      } else {
        const auto head = static_cast<int>(static_cast<int64_t>(i) / stride);
        ASSERT_NEAR(got[i], expected[i], of.Tolerance(head)) << i / stride << " " << i % stride;
      }
    }
  }

  // Scores the cases' clusters in one launch. num_items: the bound, 0 for the least.
  void ExpectClustersRight(Random& random, std::vector<std::unique_ptr<Case>>& cases,
                           int64_t num_items = 0) {
    std::vector<ScoreClustersTask> tasks;
    TaskBounds bounds;
    bounds.num_items = num_items;
    for (const auto& of : cases) {
      const ClusterIndex& index = of->index.index();
      ScoreClustersTask task;
      task.num_queries = of->num_queries;
      task.stride = index.num_clusters + random.Integer(0, 3);
      task.super_stride = index.num_supers + random.Integer(0, 3);
      task.mass = AnyMass(random);
      task.ranking = AnyRanking(random);
      bounds.shape = index.shape;
      bounds.statistics = index.statistics;
      bounds.num_queries = std::max(bounds.num_queries, task.num_queries);
      if (task.num_queries > 0) {
        bounds.num_items = std::max(bounds.num_items, index.num_clusters);
        const int64_t size = task.num_queries * task.stride;
        task.queries = Upload(of->queries);
        task.index = UploadIndex(index);
        task.log_masses = Poison<float>(size);
        if (random.Integer(0, 3) > 0) task.rank_scores = Poison<float>(size);
        if (random.Integer(0, 3) > 0) {
          const auto opened = random.Integer(0, 4);
          for (int64_t s = 0; s < index.num_supers; ++s) {
            of->zones.push_back(random.Integer(1, 4) <= opened ? Zone::kSketch : Zone::kRemainder);
          }
          of->super_log_masses = random.Gaussians(task.num_queries * task.super_stride, 4.0f);
          task.super_zones = Upload(of->zones);
          task.super_log_masses = Upload(of->super_log_masses);
        }
      }
      tasks.push_back(task);
    }
    const auto count = static_cast<int64_t>(tasks.size());
    Expect(operations().score_clusters({Upload(tasks), count}, bounds, stream()));
    for (int64_t i = 0; i < count; ++i) {
      const Case& of = *cases[i];
      if (of.num_queries == 0) continue;
      SCOPED_TRACE(::testing::Message() << "clusters " << of.index.index().num_clusters
                                        << " queries " << of.num_queries);
      ScoreClustersTask task = tasks[i];
      const int64_t size = task.num_queries * task.stride;
      const std::vector<float> got_masses = Download(task.log_masses, size);
      std::vector<float> got_scores;
      if (task.rank_scores != nullptr) got_scores = Download(task.rank_scores, size);
      std::vector<float> masses(size, std::nanf("")), scores(got_scores.size(), std::nanf(""));
      task.queries = of.queries.data();
      task.index = &of.index.index();
      task.log_masses = masses.data();
      task.rank_scores = scores.empty() ? nullptr : scores.data();
      task.super_zones = of.zones.empty() ? nullptr : of.zones.data();
      task.super_log_masses = of.zones.empty() ? nullptr : of.super_log_masses.data();
      Expect(cpu().ScoreClusters({&task, 1}));
      ExpectSame(of, got_masses, masses, task.stride);
      ExpectSame(of, got_scores, scores, task.stride);
    }
  }

  void ExpectSupersRight(Random& random, const std::vector<std::unique_ptr<Case>>& cases) {
    std::vector<ScoreSupersTask> tasks;
    TaskBounds bounds;
    for (const auto& of : cases) {
      const ClusterIndex& index = of->index.index();
      ScoreSupersTask task;
      task.num_queries = of->num_queries;
      task.stride = index.num_supers + random.Integer(0, 3);
      task.mass = AnyMass(random);
      task.ranking = AnyRanking(random);
      bounds.shape = index.shape;
      bounds.statistics = index.statistics;
      bounds.num_queries = std::max(bounds.num_queries, task.num_queries);
      if (task.num_queries > 0) {
        bounds.num_items = std::max(bounds.num_items, index.num_supers);
        task.queries = Upload(of->queries);
        task.index = UploadIndex(index);
        task.log_masses = Poison<float>(task.num_queries * task.stride);
        task.rank_scores = Poison<float>(task.num_queries * task.stride);
      }
      tasks.push_back(task);
    }
    const auto count = static_cast<int64_t>(tasks.size());
    Expect(operations().score_supers({Upload(tasks), count}, bounds, stream()));
    for (int64_t i = 0; i < count; ++i) {
      const Case& of = *cases[i];
      if (of.num_queries == 0) continue;
      SCOPED_TRACE(::testing::Message() << "super-clusters " << of.index.index().num_supers
                                        << " queries " << of.num_queries);
      ScoreSupersTask task = tasks[i];
      const int64_t size = task.num_queries * task.stride;
      const std::vector<float> got_masses = Download(task.log_masses, size);
      const std::vector<float> got_scores = Download(task.rank_scores, size);
      std::vector<float> masses(size, std::nanf("")), scores(size, std::nanf(""));
      task.queries = of.queries.data();
      task.index = &of.index.index();
      task.log_masses = masses.data();
      task.rank_scores = scores.data();
      Expect(cpu().ScoreSupers({&task, 1}));
      ExpectSame(of, got_masses, masses, task.stride);
      ExpectSame(of, got_scores, scores, task.stride);
    }
  }
};

TEST_P(ScoreOnGpu, ClustersAndSuperClustersOfEveryShapeHaveTheScoresOfTheCpu) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllStatistics) {
    for (const int dim : kHeadDims) {
      SCOPED_TRACE(::testing::Message()
                   << "dim " << dim << " " << StatisticsFormatName(statistics));
      std::vector<std::unique_ptr<Case>> cases;
      for (const int64_t num_clusters : {1, 31, dim > 128 ? 20 : 140}) {
        const auto num_queries = static_cast<int>(random.Integer(1, 9));
        cases.push_back(std::make_unique<Case>(random, dim, statistics, num_clusters, num_queries));
      }
      cases.push_back(std::make_unique<Case>(random, dim, statistics, 5, 0));
      ExpectClustersRight(random, cases);
      ExpectSupersRight(random, cases);
    }
  }
}

TEST_P(ScoreOnGpu, AnyNumberOfQueriesSharesTheCentroids) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllStatistics) {
    std::vector<std::unique_ptr<Case>> cases;
    for (const int num_queries : {1, 2, 4, 5, 8, 9, 32}) {
      cases.push_back(std::make_unique<Case>(random, 64, statistics, 40, num_queries));
    }
    ExpectClustersRight(random, cases);
    ExpectSupersRight(random, cases);
  }
}

// More than a block has, with few blocks and with as many as make them larger.
TEST_P(ScoreOnGpu, AnyNumberOfClusters) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t num_items : {0, 256 * 600}) {
    std::vector<std::unique_ptr<Case>> cases;
    for (const int64_t num_clusters : {127, 128, 129, 256, 257, 700}) {
      cases.push_back(std::make_unique<Case>(random, 32, StatisticsFormat::kInt4, num_clusters, 1));
    }
    ExpectClustersRight(random, cases, num_items);
    ExpectSupersRight(random, cases);
  }
}

WAVEKV_ON_EACH_GPU(ScoreOnGpu);

}  // namespace
}  // namespace wavekv::testing
