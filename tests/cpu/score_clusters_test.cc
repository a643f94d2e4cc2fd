#include "compute/score_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/cpu/backend_fixture.h"
#include "tests/cpu/random_index.h"
#include "wavekv/instruction_sets.h"

namespace wavekv::testing {
namespace {

// What rounding a query's elements by `rounding` may add to its product with a stored mean.
double RoundingOf(const StatisticsRows& means, StatisticsFormat format, int64_t i, int dim,
                  double rounding) {
  if (format == StatisticsFormat::kFloat32) return 0.0;
  std::vector<float> row(dim);
  LoadStatisticsRow(means.row(i), dim, format, means.scale(i), row.data());
  double sum = 0.0;
  for (const float element : row) sum += std::fabs(element);
  return sum * rounding;
}

double RoundingOfSuper(const ClusterIndex& index, int64_t super, double rounding) {
  return RoundingOf(index.super_centroids, SuperFormat(index.statistics), super,
                    index.shape.head_dim_k, rounding);
}

double RoundingOfCluster(const ClusterIndex& index, int64_t cluster, double rounding) {
  int64_t super = 0;
  while (cluster >= index.super_offsets[super + 1]) ++super;
  return RoundingOf(index.centroids, index.statistics, cluster, index.shape.head_dim_k, rounding) +
         RoundingOfSuper(index, super, rounding);
}

// Of a query's elements.
double QueryRounding(const float* query, int dim) {
  double most = 0.0;
  for (int d = 0; d < dim; ++d) most = std::max<double>(most, std::fabs(query[d]));
  return most * kQueryRounding;
}

class ScoreClustersTest : public BackendFixture {
 protected:
  // Scores and compares with double precision.
  void ExpectRight(Random& random, int dim, StatisticsFormat statistics, int64_t num_clusters,
                   int num_queries) {
    SCOPED_TRACE(::testing::Message()
                 << "dim " << dim << " " << StatisticsFormatName(statistics) << " clusters "
                 << num_clusters << " queries " << num_queries);
    const RandomIndex random_index(random, {dim, 8, DType::kBFloat16}, statistics, num_clusters);
    const ClusterIndex& index = random_index.index();
    const std::vector<float> queries = random.Gaussians(num_queries * dim, 0.3f);
    const int64_t stride = num_clusters + 3;
    ForEachTarget([&] {
      std::vector<float> bounds = Poison(num_queries * stride);
      std::vector<float> masses = Poison(num_queries * stride);
      std::vector<float> scores = Poison(num_queries * stride);
      std::vector<float> logits = Poison(num_queries * stride);
      ScoreClustersTask task = {.queries = queries.data(),
                                .num_queries = num_queries,
                                .index = &index,
                                .log_masses = bounds.data(),
                                .stride = stride};
      ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      task.log_masses = masses.data();
      task.mass = MassEstimate::kSecondOrder;
      task.rank_scores = scores.data();
      ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      task.rank_scores = logits.data();
      task.ranking = Ranking::kCentroid;
      ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      for (int64_t h = 0; h < num_queries; ++h) {
        double squared = 0.0;
        for (int d = 0; d < dim; ++d) squared += std::pow(queries[h * dim + d], 2);
        const double rounding = QueryRounding(queries.data() + h * dim, dim);
        for (int64_t i = 0; i < num_clusters; ++i) {
          double dot = 0.0, magnitude = 5.0;
          for (int d = 0; d < dim; ++d) {
            const double product =
                static_cast<double>(queries[h * dim + d]) * random_index.centroids()[i * dim + d];
            dot += product;
            magnitude += std::fabs(product);
          }
          const double bound = dot + std::log(index.cluster_size(i));
          const double variance = squared / dim * index.key_spreads[i];
          const double gain = std::min<double>(variance / 2, kLogMassGainMax);
          magnitude += gain + std::sqrt(variance);
          const double tolerance =
              (dim + 2) * kRounding * magnitude + RoundingOfCluster(index, i, rounding);
          ASSERT_NEAR(bounds[h * stride + i], bound, tolerance) << h << " " << i;
          ASSERT_NEAR(masses[h * stride + i], bound + gain, tolerance) << h << " " << i;
          ASSERT_NEAR(scores[h * stride + i], bound + gain + std::sqrt(variance), tolerance)
              << h << " " << i;
          ASSERT_NEAR(logits[h * stride + i], dot, tolerance) << h << " " << i;
        }
        for (int64_t i = num_clusters; i < stride; ++i) {
          ASSERT_TRUE(std::isnan(masses[h * stride + i]));
          ASSERT_TRUE(std::isnan(scores[h * stride + i]));
        }
      }
    });
  }
};

TEST_F(ScoreClustersTest, LogMassIsTheInnerProductPlusTheLogOfTheSize) {
  Random random(51);
  WAVEKV_TRACE_SEED(random);
  for (StatisticsFormat statistics : kAllStatistics) {
    for (int dim : kHeadDims) ExpectRight(random, dim, statistics, 77, 4);
  }
}

TEST_F(ScoreClustersTest, AnyNumberOfQueriesSharesTheCentroids) {
  Random random(52);
  WAVEKV_TRACE_SEED(random);
  for (int num_queries : kQueryCounts)
    ExpectRight(random, 64, StatisticsFormat::kInt8, 19, num_queries);
}

// Integers are multiplied exactly, and what follows takes the same vectors.
TEST_F(ScoreClustersTest, ProductsOfBytesGiveTheSameScoresToTheBit) {
  Random random(53);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : {StatisticsFormat::kInt4, StatisticsFormat::kInt8}) {
    for (const int dim : kHeadDims) {
      const int64_t num_clusters = 77;
      const RandomIndex random_index(random, {dim, 8, DType::kBFloat16}, statistics, num_clusters);
      const std::vector<float> queries = random.Gaussians(5 * dim, 0.3f);
      std::vector<std::vector<float>> all;
      for (const std::string& name : InstructionSets()) {
        if (name.rfind("avx512", 0) != 0) continue;
        ASSERT_TRUE(SetInstructionSet(name).ok());
        std::vector<float>& masses = all.emplace_back(Poison(5 * num_clusters));
        const ScoreClustersTask task = {.queries = queries.data(),
                                        .num_queries = 5,
                                        .index = &random_index.index(),
                                        .log_masses = masses.data(),
                                        .stride = num_clusters};
        ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      }
      ASSERT_TRUE(SetInstructionSet("").ok());
      for (const std::vector<float>& masses : all) ASSERT_EQ(masses, all.front()) << dim;
    }
  }
}

TEST_F(ScoreClustersTest, SuperClustersAreScoredLikeClusters) {
  Random random(54);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllStatistics) {
    for (const int64_t num_clusters : {1, 40, 1500}) {
      const int dim = 72, num_queries = 18;
      const RandomIndex random_index(random, {dim, 8, DType::kBFloat16}, statistics, num_clusters);
      const ClusterIndex& index = random_index.index();
      const std::vector<float> queries = random.Gaussians(num_queries * dim, 0.3f);
      const int64_t stride = index.num_supers + 2;
      ForEachTarget([&] {
        std::vector<float> masses = Poison(num_queries * stride);
        std::vector<float> scores = Poison(num_queries * stride);
        const ScoreSupersTask task = {.queries = queries.data(),
                                      .num_queries = num_queries,
                                      .index = &index,
                                      .mass = MassEstimate::kSecondOrder,
                                      .log_masses = masses.data(),
                                      .rank_scores = scores.data(),
                                      .stride = stride};
        ASSERT_TRUE(backend().ScoreSupers({&task, 1}).ok());
        for (int64_t h = 0; h < num_queries; ++h) {
          double squared = 0.0;
          for (int d = 0; d < dim; ++d) squared += std::pow(queries[h * dim + d], 2);
          const double rounding = QueryRounding(queries.data() + h * dim, dim);
          for (int64_t s = 0; s < index.num_supers; ++s) {
            const double tolerance = 1e-4 + RoundingOfSuper(index, s, rounding);
            double mass = std::log(index.super_size(s));
            for (int d = 0; d < dim; ++d) {
              mass += static_cast<double>(queries[h * dim + d]) *
                      random_index.super_centroids()[s * dim + d];
            }
            const double variance = squared / dim * index.super_key_spreads[s];
            mass += std::min<double>(variance / 2, kLogMassGainMax);
            ASSERT_NEAR(masses[h * stride + s], mass, tolerance) << h << " " << s;
            ASSERT_NEAR(scores[h * stride + s], mass + std::sqrt(variance), tolerance)
                << h << " " << s;
          }
        }
      });
    }
  }
}

TEST_F(ScoreClustersTest, ClustersThatAreNotOpenedShareTheMassOfTheirSuperCluster) {
  Random random(55);
  WAVEKV_TRACE_SEED(random);
  const int dim = 64, num_queries = 5;
  const RandomIndex random_index(random, {dim, 8, DType::kBFloat16}, StatisticsFormat::kInt4, 900);
  const ClusterIndex& index = random_index.index();
  const std::vector<float> queries = random.Gaussians(num_queries * dim, 0.3f);
  const std::vector<float> super_masses = random.Gaussians(num_queries * index.num_supers, 4.0f);
  for (const int percent : {0, 30, 100}) {
    std::vector<Zone> zones;
    for (int64_t s = 0; s < index.num_supers; ++s) {
      zones.push_back(random.Integer(0, 99) < percent ? Zone::kSketch : Zone::kRemainder);
    }
    ForEachTarget([&] {
      std::vector<float> all_masses = Poison(num_queries * 900), all_scores = all_masses;
      std::vector<float> masses = all_masses, scores = all_masses;
      ScoreClustersTask task = {.queries = queries.data(),
                                .num_queries = num_queries,
                                .index = &index,
                                .log_masses = all_masses.data(),
                                .stride = 900,
                                .rank_scores = all_scores.data()};
      ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      task.log_masses = masses.data();
      task.rank_scores = scores.data();
      task.super_zones = zones.data();
      task.super_log_masses = super_masses.data();
      task.super_stride = index.num_supers;
      ASSERT_TRUE(backend().ScoreClusters({&task, 1}).ok());
      for (int h = 0; h < num_queries; ++h) {
        for (int64_t s = 0; s < index.num_supers; ++s) {
          for (int64_t i = index.super_offsets[s]; i < index.super_offsets[s + 1]; ++i) {
            const int64_t at = h * 900 + i;
            if (zones[s] == Zone::kSketch) {
              ASSERT_EQ(masses[at], all_masses[at]);
              ASSERT_EQ(scores[at], all_scores[at]);
              continue;
            }
            const double share = static_cast<double>(index.cluster_size(i)) / index.super_size(s);
            ASSERT_NEAR(masses[at], super_masses[h * index.num_supers + s] + std::log(share), 1e-5);
            ASSERT_EQ(scores[at], -std::numeric_limits<float>::infinity());
          }
        }
      }
    });
  }
}

TEST_F(ScoreClustersTest, AnyNumberOfClusters) {
  Random random(53);
  WAVEKV_TRACE_SEED(random);
  for (int64_t num_clusters : {1, 2, 3, 4, 5, 16, 63, 64, 65, 1000}) {
    ExpectRight(random, 40, StatisticsFormat::kInt4, num_clusters, 3);
  }
}

}  // namespace
}  // namespace wavekv::testing
