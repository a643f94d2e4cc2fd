#include "compute/select_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Selection {
  std::vector<float> probabilities;
  std::vector<Zone> zones;
  std::vector<uint32_t> retrieved;
};

class SelectClustersTest : public BackendFixture {
 protected:
  Selection Select(const std::vector<float>& log_masses, int num_queries,
                   const std::vector<uint32_t>& sizes, int64_t token_budget, int64_t num_estimation,
                   const RiskLimit* risk = nullptr) {
    const int64_t n = sizes.size();
    Selection selection = {Poison(n), std::vector<Zone>(n, Zone{99}),
                           std::vector<uint32_t>(n, ~0u)};
    int64_t num_retrieved = -1;
    const SelectClustersTask task = {.scores = log_masses.data(),
                                     .stride = n,
                                     .num_queries = num_queries,
                                     .sizes = sizes.data(),
                                     .num_clusters = n,
                                     .token_budget = token_budget,
                                     .num_estimation = num_estimation,
                                     .risk = risk,
                                     .probabilities = selection.probabilities.data(),
                                     .zones = selection.zones.data(),
                                     .retrieved = selection.retrieved.data(),
                                     .num_retrieved = &num_retrieved};
    EXPECT_TRUE(backend().SelectClusters({&task, 1}).ok());
    EXPECT_GE(num_retrieved, 0);
    EXPECT_LE(num_retrieved, n);
    selection.retrieved.resize(num_retrieved);
    return selection;
  }
};

// The zones that follow from the probabilities, by a full sort.
void ExpectZonesFollowTheRanks(const Selection& actual, const std::vector<uint32_t>& sizes,
                               int64_t token_budget, int64_t num_estimation) {
  const std::vector<float>& p = actual.probabilities;
  std::vector<uint32_t> ranked(sizes.size());
  std::iota(ranked.begin(), ranked.end(), 0u);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](uint32_t a, uint32_t b) { return p[a] > p[b]; });
  std::vector<Zone> zones(sizes.size(), Zone::kRemainder);
  std::vector<uint32_t> retrieved;
  int64_t tokens = 0;
  for (uint32_t cluster : ranked) {
    if (tokens < token_budget) {
      tokens += sizes[cluster];
      retrieved.push_back(cluster);
      zones[cluster] = Zone::kRetrieval;
    } else if (num_estimation-- > 0) {
      zones[cluster] = Zone::kEstimation;
    }
  }
  EXPECT_EQ(actual.retrieved, retrieved);
  EXPECT_EQ(actual.zones, zones);
}

std::vector<uint32_t> RandomSizes(Random& random, int64_t count) {
  std::vector<uint32_t> sizes(count);
  for (uint32_t& size : sizes) size = static_cast<uint32_t>(random.Integer(1, 64));
  return sizes;
}

TEST_F(SelectClustersTest, ProbabilitiesAreSoftmaxesSummedOverTheGroup) {
  Random random(61);
  WAVEKV_TRACE_SEED(random);
  for (int64_t n : {1, 5, 16, 333}) {
    for (int num_queries : {1, 4, 7}) {
      const std::vector<float> masses = random.Gaussians(n * num_queries, 3.0f);
      const std::vector<uint32_t> sizes = RandomSizes(random, n);
      std::vector<double> expected(n, 0.0);
      for (int h = 0; h < num_queries; ++h) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(masses[h * n + i]));
        for (int64_t i = 0; i < n; ++i) {
          expected[i] += std::exp(static_cast<double>(masses[h * n + i])) / sum;
        }
      }
      ForEachTarget([&] {
        const Selection selection = Select(masses, num_queries, sizes, 100, 3);
        for (int64_t i = 0; i < n; ++i) {
          // |m| and |lse| < 32: their difference carries 2^-19, each sum of n terms n roundings.
          EXPECT_NEAR(selection.probabilities[i], expected[i],
                      expected[i] * (0x1p-18 + (n + 16) * kRounding) + 1e-37);
        }
      });
    }
  }
}

TEST_F(SelectClustersTest, ZonesFollowTheRanks) {
  Random random(62);
  WAVEKV_TRACE_SEED(random);
  for (int64_t n : {1, 2, 63, 1000, 5000}) {
    const std::vector<uint32_t> sizes = RandomSizes(random, n);
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    for (float spread : {0.01f, 4.0f, 60.0f}) {
      const std::vector<float> masses = random.Gaussians(n * 4, spread);
      for (int64_t budget : {int64_t{0}, int64_t{1}, total / 50, total / 2, total - 1, total,
                             total + 1, std::numeric_limits<int64_t>::max()}) {
        for (int64_t num_estimation : {int64_t{0}, int64_t{1}, n / 4, n, n + 7}) {
          ForEachTarget([&] {
            ExpectZonesFollowTheRanks(Select(masses, 4, sizes, budget, num_estimation), sizes,
                                      budget, num_estimation);
          });
        }
      }
    }
  }
}

// What a sample says of their ranks and sizes is wrong.
TEST_F(SelectClustersTest, GreatScoresMayStandWhereNobodyLooks) {
  for (const size_t step : {1, 4, 5, 16, 17, 32}) {
    for (const bool great : {true, false}) {
      std::vector<float> scores(16384, 0.0f);
      std::vector<uint32_t> sizes(scores.size(), 1);
      for (size_t i = 0; i < scores.size(); i += step) {
        scores[i] = (great ? 1e-3f : -1e-3f) * static_cast<float>(i + 1);
        sizes[i] = 64;
      }
      for (const int64_t budget : {1, 100, 1000, 50000}) {
        SCOPED_TRACE(::testing::Message() << step << " " << great << " " << budget);
        ForEachTarget([&] {
          ExpectZonesFollowTheRanks(Select(scores, 1, sizes, budget, 0), sizes, budget, 0);
        });
      }
    }
  }
}

TEST_F(SelectClustersTest, TiesGoToTheLowerIndex) {
  const std::vector<uint32_t> sizes(100, 10);
  ForEachTarget([&] {
    const Selection selection = Select(std::vector<float>(200, 0.25f), 2, sizes, 45, 20);
    EXPECT_EQ(selection.retrieved, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(selection.zones[5], Zone::kEstimation);
    EXPECT_EQ(selection.zones[24], Zone::kEstimation);
    EXPECT_EQ(selection.zones[25], Zone::kRemainder);
  });
}

TEST_F(SelectClustersTest, ManyTiesStraddlingBothCutsAreResolvedByIndex) {
  Random random(63);
  WAVEKV_TRACE_SEED(random);
  const std::vector<uint32_t> sizes = RandomSizes(random, 600);
  std::vector<float> masses(600);
  for (float& mass : masses) mass = static_cast<float>(random.Integer(0, 2));
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  ForEachTarget([&] {
    for (int64_t budget = 0; budget < total; budget += total / 37) {
      ExpectZonesFollowTheRanks(Select(masses, 1, sizes, budget, 150), sizes, budget, 150);
    }
  });
}

TEST_F(SelectClustersTest, MassesOfMinusInfinityHaveProbabilityZero) {
  const std::vector<uint32_t> sizes(4, 1);
  const std::vector<float> masses = {-kInfinity, 1.0f,       -kInfinity, 1.0f,
                                     -kInfinity, -kInfinity, -kInfinity, -kInfinity};
  ForEachTarget([&] {
    const Selection selection = Select(masses, 2, sizes, 3, 0);
    EXPECT_EQ(selection.probabilities[0], 0.0f);
    EXPECT_NEAR(selection.probabilities[1], 0.5f, 1e-6);
    EXPECT_EQ(selection.retrieved, (std::vector<uint32_t>{1, 3, 0}));
  });
}

TEST_F(SelectClustersTest, HugeAndUnderflowingMassesStayDefined) {
  const std::vector<uint32_t> sizes(5, 1);
  const std::vector<float> masses = {1e6f, -1e6f, 1e6f, 0.0f, -3e38f};
  ForEachTarget([&] {
    const Selection selection = Select(masses, 1, sizes, 5, 0);
    EXPECT_NEAR(selection.probabilities[0], 0.5f, 1e-6);
    EXPECT_EQ(selection.probabilities[1], std::numeric_limits<float>::min());
    EXPECT_EQ(selection.retrieved, (std::vector<uint32_t>{0, 2, 1, 3, 4}));
  });
}

TEST_F(SelectClustersTest, WhatHasNoScoreRanksLast) {
  const std::vector<uint32_t> sizes(4, 1);
  const std::vector<float> scores = {-kInfinity, 900.0f, -kInfinity, -900.0f};
  ForEachTarget([&] {
    EXPECT_EQ(Select(scores, 1, sizes, 2, 0).retrieved, (std::vector<uint32_t>{1, 3}));
    EXPECT_EQ(Select(scores, 1, sizes, 3, 0).retrieved, (std::vector<uint32_t>{1, 3, 0}));
    EXPECT_EQ(Select(scores, 1, sizes, 1, 3).zones,
              (std::vector<Zone>{Zone::kRemainder, Zone::kRetrieval, Zone::kRemainder,
                                 Zone::kEstimation}));
  });
}

TEST_F(SelectClustersTest, TheFirstZoneEndsWhereTheOthersRiskIsSmallEnough) {
  Random random(64);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t n : {1, 7, 400}) {
    const int num_queries = 3;
    const std::vector<uint32_t> sizes = RandomSizes(random, n);
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    const std::vector<float> scores = random.Gaussians(n * num_queries, 2.0f);
    const std::vector<float> masses = random.Gaussians(n * num_queries, 2.0f);
    const std::vector<float> scales = random.Gaussians(num_queries, 1.0f);
    std::vector<float> variances = random.Gaussians(n, 1.0f);
    for (float& variance : variances) variance *= variance;
    std::vector<float> hidden = random.Gaussians(n, 0.1f), key_spreads = random.Gaussians(n, 1.0f);
    for (float& variance : hidden) variance *= variance;
    for (float& spread : key_spreads) spread *= spread;
    const std::vector<float> logit_spreads = {0.5f, 2.0f, 9.0f};
    const std::vector<float> inverse_squares = {0.5f, 1.0f, 4.0f};
    std::vector<double> risks(n, 0.0);
    for (int h = 0; h < num_queries; ++h) {
      for (int64_t i = 0; i < n; ++i) {
        const double log_share = static_cast<double>(masses[h * n + i]) - scales[h];
        const double x = static_cast<double>(logit_spreads[h]) * key_spreads[i];
        const double factor = variances[i] + hidden[i] * std::exp(x);
        risks[i] = std::max(risks[i], inverse_squares[h] * factor * std::exp(2.0 * log_share));
      }
    }
    const double all = std::accumulate(risks.begin(), risks.end(), 0.0);
    for (const double share : {0.0, 1e-4, 0.03, 0.5, 0.97, 1.5}) {
      const RiskLimit limit = {.log_masses = masses.data(),
                               .stride = n,
                               .lses = scales.data(),
                               .inverse_squares = inverse_squares.data(),
                               .variances = variances.data(),
                               .hidden_variances = hidden.data(),
                               .key_spreads = key_spreads.data(),
                               .logit_spreads = logit_spreads.data(),
                               .limit = share * all};
      ForEachTarget([&] {
        const Selection free = Select(scores, num_queries, sizes, total, 0, &limit);
        double left = all;
        for (const uint32_t i : free.retrieved) left -= risks[i];
        EXPECT_LE(left, limit.limit + 1e-5 * all);
        if (!free.retrieved.empty()) {
          EXPECT_GE(left + risks[free.retrieved.back()], limit.limit - 1e-5 * all);
        }
        EXPECT_EQ(free.retrieved.empty(), share > 1.0);
        // The budget holds as well: whichever ends first.
        const Selection bound = Select(scores, num_queries, sizes, total / 3, 0);
        Selection both = Select(scores, num_queries, sizes, total / 3, 0, &limit);
        EXPECT_EQ(both.retrieved, free.retrieved.size() < bound.retrieved.size() ? free.retrieved
                                                                                 : bound.retrieved);
      });
    }
  }
}

TEST_F(SelectClustersTest, NumbersBeyondFloatsAreRead) {
  const std::vector<uint32_t> sizes(4, 1);
  const std::vector<float> scores = {1.0f, 2.0f, 3.0f, 4.0f}, lses = {-200.0f};
  const std::vector<float> variances = {3e38f, 3e38f, 3e38f, 3e38f}, inverse_squares = {3e38f};
  const RiskLimit limit = {.log_masses = scores.data(),
                           .stride = 4,
                           .lses = lses.data(),
                           .inverse_squares = inverse_squares.data(),
                           .variances = variances.data(),
                           .limit = 1.0};
  ForEachTarget([&] { EXPECT_EQ(Select(scores, 1, sizes, 4, 0, &limit).retrieved.size(), 4u); });
}

TEST_F(SelectClustersTest, NoClustersGiveNoRetrieval) {
  EXPECT_TRUE(Select({}, 1, {}, 10, 10).retrieved.empty());
}

}  // namespace
}  // namespace wavekv::testing
