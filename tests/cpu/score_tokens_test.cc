#include "compute/score_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "compute/estimate_clusters.h"
#include "storage/float16.h"
#include "tests/cpu/backend_fixture.h"
#include "tests/cpu/random_index.h"

namespace wavekv::testing {
namespace {

class ScoreTokensTest : public BackendFixture {
 protected:
  // The step of a query's integers.
  static double Step(const float* query, int dim) {
    double most = 0.0;
    for (int d = 0; d < dim; d += 4) {
      double magnitudes = 0.0;
      for (int k = d; k < d + 4; ++k) magnitudes += std::fabs(query[k]);
      most = std::max(most, magnitudes);
    }
    return most / 125;
  }

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
    std::vector<float> totals = random.Gaussians(num_queries, 2.0f);
    if (num_queries > 2) totals[1] = -std::numeric_limits<float>::infinity();
    const std::vector<float> lses = random.Gaussians(num_queries),
                             squares = random.Gaussians(num_queries);
    std::vector<float> inverse_squares;
    for (const float x : squares) inverse_squares.push_back(x * x);
    const TokenRisk risk = {lses.data(), inverse_squares.data()};
    ForEachTarget([&] {
      std::vector<float> logits = Poison(num_queries * stride);
      std::vector<float> masses = Poison(num_queries * stride);
      std::vector<float> offsets = Poison(num_queries);
      std::vector<float> shares = Poison(stride), risks = Poison(stride);
      std::vector<double> want_shares(num_tokens), want_risks(num_tokens);
      const ScoreTokensTask task = {.queries = queries.data(),
                                    .num_queries = num_queries,
                                    .index = &index,
                                    .log_masses = log_masses.data(),
                                    .log_masses_stride = 45,
                                    .mass = mass,
                                    .clusters = clusters.data(),
                                    .num_clusters = static_cast<int64_t>(clusters.size()),
                                    .masses = masses.data(),
                                    .offsets = offsets.data(),
                                    .logits = logits.data(),
                                    .stride = stride,
                                    .log_totals = totals.data(),
                                    .shares = shares.data(),
                                    .risk = &risk,
                                    .risks = risks.data()};
      ASSERT_TRUE(backend().ScoreTokens({&task, 1}).ok());
      for (int h = 0; h < num_queries; ++h) {
        const float* query = &queries[h * dim];
        double squared = 0.0;
        for (int d = 0; d < dim; ++d) squared += static_cast<double>(query[d]) * query[d];
        const double step = Step(query, dim);
        const auto centroid_logit = [&](uint32_t cluster) {
          const double bound = log_masses[h * 45 + cluster] - std::log(index.cluster_size(cluster));
          if (mass == MassEstimate::kLowerBound) return bound;
          return bound -
                 std::min<double>(squared / dim * index.key_spreads[cluster] / 2, kLogMassGainMax);
        };
        double greatest = centroid_logit(0);
        for (uint32_t i = 1; i < 40; ++i) greatest = std::max(greatest, centroid_logit(i));
        ASSERT_NEAR(offsets[h], greatest, 1e-5);
        int64_t at = h * stride;
        for (const uint32_t cluster : clusters) {
          const double centroid = centroid_logit(cluster);
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
            const double token_mass =
                std::exp(std::min(centroid + factor * product - greatest, 40.0));
            ASSERT_NEAR(masses[at], token_mass, (1e-5 + 2 * tolerance) * token_mass + 1e-37);
            const double score = logits[at] + CodeNoise(code_bits) * std::sqrt(squared) * factor;
            const int64_t token = at - h * stride;
            if (!std::isinf(totals[h])) {
              want_shares[token] += std::exp(std::min(score - totals[h], 80.0));
            }
            const double variance =
                std::min<double>(TokenVariance(index, cluster), 1e36) * inverse_squares[h];
            want_risks[token] = std::max(
                want_risks[token], variance * std::exp(std::min(2.0 * (score - lses[h]), 80.0)));
          }
        }
        for (; at < (h + 1) * stride; ++at) {
          ASSERT_TRUE(std::isnan(logits[at]) && std::isnan(masses[at]));
        }
      }
      for (int64_t t = 0; t < num_tokens; ++t) {
        ASSERT_NEAR(shares[t], want_shares[t], 1e-4 * want_shares[t] + 1e-37) << t;
        ASSERT_NEAR(risks[t], want_risks[t], 2e-4 * want_risks[t] + 1e-37) << t;
      }
      for (int64_t t = num_tokens; t < stride; ++t) {
        ASSERT_TRUE(std::isnan(shares[t]) && std::isnan(risks[t]));
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
  std::vector<float> first, first_masses;
  ForEachTarget([&] {
    std::vector<float> logits = Poison(num_tokens), token_masses = Poison(num_tokens);
    float offset;
    const ScoreTokensTask task = {.queries = query.data(),
                                  .num_queries = 1,
                                  .index = &index.index(),
                                  .log_masses = masses.data(),
                                  .log_masses_stride = 30,
                                  .clusters = clusters.data(),
                                  .num_clusters = 30,
                                  .masses = token_masses.data(),
                                  .offsets = &offset,
                                  .logits = logits.data(),
                                  .stride = num_tokens};
    ASSERT_TRUE(backend().ScoreTokens({&task, 1}).ok());
    if (first.empty()) {
      first = logits;
      first_masses = token_masses;
    }
    for (int64_t t = 0; t < num_tokens; ++t) {
      ASSERT_NEAR(logits[t], first[t], 1e-4);
      ASSERT_NEAR(token_masses[t], first_masses[t], 1e-4 * first_masses[t]);
    }
  });
}

}  // namespace
}  // namespace wavekv::testing
