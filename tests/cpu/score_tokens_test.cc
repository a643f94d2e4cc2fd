#include "compute/score_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "storage/float16.h"
#include "tests/cpu/backend_fixture.h"
#include "tests/cpu/random_index.h"

namespace wavekv::testing {
namespace {

class ScoreTokensTest : public BackendFixture {
 protected:
  // Scores some clusters and compares with the contract's formulas.
  void ExpectRight(Random& random, int dim, int code_bits, int num_queries, MassEstimate mass) {
    SCOPED_TRACE(::testing::Message()
                 << "dim " << dim << " bits " << code_bits << " queries " << num_queries);
    const RandomIndex random_index(random, {dim, 8, DType::kBFloat16}, StatisticsFormat::kInt4, 40,
                                   code_bits);
    const ClusterIndex& index = random_index.index();
    const std::vector<float> queries = random.Gaussians(num_queries * dim, 0.3f);
    const std::vector<float> log_masses = random.Gaussians(num_queries * 45, 3.0f);
    std::vector<uint32_t> clusters;
    int64_t num_tokens = 0;
    for (uint32_t i = 0; i < 40; ++i) {
      if (random.Integer(0, 1) == 0) continue;
      clusters.push_back(i);
      num_tokens += index.cluster_size(i);
    }
    const int64_t stride = num_tokens + 3;
    ForEachTarget([&] {
      std::vector<float> logits = Poison(num_queries * stride);
      std::vector<float> scores = Poison(num_queries * stride);
      const ScoreTokensTask task = {.queries = queries.data(),
                                    .num_queries = num_queries,
                                    .index = &index,
                                    .log_masses = log_masses.data(),
                                    .log_masses_stride = 45,
                                    .mass = mass,
                                    .clusters = clusters.data(),
                                    .num_clusters = static_cast<int64_t>(clusters.size()),
                                    .logits = logits.data(),
                                    .rank_scores = scores.data(),
                                    .stride = stride};
      ASSERT_TRUE(backend().ScoreTokens({&task, 1}).ok());
      for (int h = 0; h < num_queries; ++h) {
        const float* query = &queries[h * dim];
        double squared = 0.0, largest = 0.0;
        for (int d = 0; d < dim; ++d) {
          squared += static_cast<double>(query[d]) * query[d];
          largest = std::max<double>(largest, std::fabs(query[d]));
        }
        const double step = largest / 127;
        int64_t at = h * stride;
        for (const uint32_t cluster : clusters) {
          double centroid = log_masses[h * 45 + cluster] - std::log(index.cluster_size(cluster));
          if (mass == MassEstimate::kSecondOrder) {
            centroid -=
                std::min<double>(squared / dim * index.key_spreads[cluster] / 2, kLogMassGainMax);
          }
          for (int64_t t = index.offsets[cluster]; t < index.offsets[cluster + 1]; ++t, ++at) {
            double product = 0.0, magnitude = 0.0;
            for (int d = 0; d < dim; ++d) {
              const double u = random_index.code(t, d) - ((1 << code_bits) - 1) / 2.0;
              const double q = step * std::nearbyint(static_cast<double>(query[d]) / step);
              product += u * q;
              magnitude += std::fabs(u * q);
            }
            const double factor = Float16ToFloat32(index.code_factors[t]);
            // One element of a query may round the other way in single precision.
            const double tolerance =
                1e-5 * (factor * magnitude + 20) + factor * step * (1 << code_bits) * 0.51;
            ASSERT_NEAR(logits[at], centroid + factor * product, tolerance) << h << " " << t;
            ASSERT_NEAR(scores[at] - logits[at], CodeNoise(code_bits) * std::sqrt(squared) * factor,
                        1e-4 * (1 + std::fabs(scores[at])));
          }
        }
        for (; at < (h + 1) * stride; ++at) ASSERT_TRUE(std::isnan(logits[at]));
      }
    });
  }
};

TEST_F(ScoreTokensTest, FollowsTheFormulaForEveryShape) {
  Random random(81);
  WAVEKV_TRACE_SEED(random);
  for (const MassEstimate mass : {MassEstimate::kLowerBound, MassEstimate::kSecondOrder}) {
    for (const int dim : kHeadDims) {
      for (const int bits : {1, 2, 4}) ExpectRight(random, dim, bits, 3, mass);
    }
  }
}

TEST_F(ScoreTokensTest, AnyNumberOfQueries) {
  Random random(82);
  WAVEKV_TRACE_SEED(random);
  for (const int num_queries : {1, 2, 5, 33}) {
    ExpectRight(random, 128, 1, num_queries, MassEstimate::kSecondOrder);
  }
}

TEST_F(ScoreTokensTest, EveryInstructionSetGivesTheSameNumbers) {
  Random random(83);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {128, 8, DType::kBFloat16}, StatisticsFormat::kInt4, 30);
  const std::vector<float> query = random.Gaussians(128), masses = random.Gaussians(30);
  std::vector<uint32_t> clusters(30);
  for (uint32_t i = 0; i < 30; ++i) clusters[i] = i;
  const int64_t num_tokens = index.index().num_tokens;
  std::vector<float> first;
  ForEachTarget([&] {
    std::vector<float> logits = Poison(num_tokens), scores = Poison(num_tokens);
    const ScoreTokensTask task = {.queries = query.data(),
                                  .num_queries = 1,
                                  .index = &index.index(),
                                  .log_masses = masses.data(),
                                  .log_masses_stride = 30,
                                  .clusters = clusters.data(),
                                  .num_clusters = 30,
                                  .logits = logits.data(),
                                  .rank_scores = scores.data(),
                                  .stride = num_tokens};
    ASSERT_TRUE(backend().ScoreTokens({&task, 1}).ok());
    if (first.empty()) first = logits;
    for (int64_t t = 0; t < num_tokens; ++t) ASSERT_NEAR(logits[t], first[t], 1e-4);
  });
}

}  // namespace
}  // namespace wavekv::testing
