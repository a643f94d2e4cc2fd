#include "compute/select_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class SelectTokensTest : public BackendFixture {
 protected:
  void ExpectRight(Random& random, int num_queries, int64_t num_tokens, int64_t num_clusters,
                   int64_t token_budget) {
    SCOPED_TRACE(::testing::Message() << num_queries << " queries, " << num_tokens << " tokens, "
                                      << token_budget << " wanted");
    const std::vector<float> scores = random.Gaussians(num_queries * num_tokens, 3.0f);
    const std::vector<float> masses = random.Gaussians(num_queries * num_clusters, 3.0f);
    std::vector<Zone> zones(num_clusters);
    for (Zone& zone : zones) zone = static_cast<Zone>(random.Integer(0, 4));
    ForEachTarget([&] {
      std::vector<float> probabilities = Poison(num_tokens);
      std::vector<uint8_t> chosen(num_tokens, 77);
      int64_t num_chosen = -1;
      const SelectTokensTask task = {.rank_scores = scores.data(),
                                     .stride = num_tokens,
                                     .num_queries = num_queries,
                                     .num_tokens = num_tokens,
                                     .log_masses = masses.data(),
                                     .log_masses_stride = num_clusters,
                                     .zones = zones.data(),
                                     .num_clusters = num_clusters,
                                     .token_budget = token_budget,
                                     .probabilities = probabilities.data(),
                                     .chosen = chosen.data(),
                                     .num_chosen = &num_chosen};
      ASSERT_TRUE(backend().SelectTokens({&task, 1}).ok());
      std::vector<double> expected(num_tokens, 0.0);
      for (int h = 0; h < num_queries; ++h) {
        double mass = 0.0;
        for (int64_t t = 0; t < num_tokens; ++t) {
          mass += std::exp(static_cast<double>(scores[h * num_tokens + t]));
        }
        for (int64_t i = 0; i < num_clusters; ++i) {
          if (zones[i] != Zone::kEstimation && zones[i] != Zone::kRemainder) continue;
          mass += std::exp(static_cast<double>(masses[h * num_clusters + i]));
        }
        for (int64_t t = 0; t < num_tokens; ++t) {
          expected[t] += std::exp(static_cast<double>(scores[h * num_tokens + t])) / mass;
        }
      }
      for (int64_t t = 0; t < num_tokens; ++t) {
        ASSERT_NEAR(probabilities[t], expected[t], 1e-5 * expected[t]);
      }
      // The best by the probabilities returned, ties by number.
      std::vector<int64_t> ranked(num_tokens);
      std::iota(ranked.begin(), ranked.end(), 0);
      std::stable_sort(ranked.begin(), ranked.end(),
                       [&](int64_t a, int64_t b) { return probabilities[a] > probabilities[b]; });
      const int64_t wanted = std::min(token_budget, num_tokens);
      EXPECT_EQ(num_chosen, wanted);
      for (int64_t i = 0; i < num_tokens; ++i) {
        ASSERT_EQ(chosen[ranked[i]], i < wanted ? 1 : 0) << i;
      }
    });
  }
};

TEST_F(SelectTokensTest, ChoosesTheBestByExpectedShare) {
  Random random(101);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t tokens : {1, 7, 64, 1000}) {
    for (const int64_t budget : {0, 1, 13, 999, 5000}) {
      ExpectRight(random, 4, tokens, 33, budget);
      ExpectRight(random, 1, tokens, 5, budget);
    }
  }
}

TEST_F(SelectTokensTest, EqualTokensAreChosenInOrder) {
  const std::vector<float> scores(50, 1.5f);
  std::vector<float> probabilities(50);
  std::vector<uint8_t> chosen(50);
  int64_t num_chosen = 0;
  SelectTokensTask task = {.rank_scores = scores.data(),
                           .stride = 50,
                           .num_queries = 1,
                           .num_tokens = 50,
                           .token_budget = 20,
                           .probabilities = probabilities.data(),
                           .chosen = chosen.data(),
                           .num_chosen = &num_chosen};
  ASSERT_TRUE(backend().SelectTokens({&task, 1}).ok());
  for (int i = 0; i < 50; ++i) EXPECT_EQ(chosen[i], i < 20 ? 1 : 0);
}

TEST_F(SelectTokensTest, FewerAreChosenWhereTheOthersRiskIsSmallEnough) {
  // Shares of 1/2, 1/4, 1/8, ...: each risk is a quarter of the one before.
  std::vector<float> logits;
  for (int i = 0; i < 20; ++i) logits.push_back(-0.6931472f * static_cast<float>(i + 1));
  const std::vector<float> variances(20, 3.0f), log_scales = {0.0f}, ones = {1.0f};
  RiskLimit risk = {.log_masses = logits.data(),
                    .stride = 20,
                    .lses = log_scales.data(),
                    .inverse_squares = ones.data(),
                    .variances = variances.data()};
  std::vector<float> probabilities(20);
  std::vector<uint8_t> chosen(20);
  int64_t num_chosen = 0;
  const SelectTokensTask task = {.rank_scores = logits.data(),
                                 .stride = 20,
                                 .num_queries = 1,
                                 .num_tokens = 20,
                                 .token_budget = 6,
                                 .risk = &risk,
                                 .probabilities = probabilities.data(),
                                 .chosen = chosen.data(),
                                 .num_chosen = &num_chosen};
  // Behind i tokens, 4^-i is left.
  const std::pair<double, int> cases[] = {{2.0, 0}, {0.3, 1}, {0.05, 3}, {0.005, 4}, {1e-9, 6}};
  for (const auto& [limit, count] : cases) {
    risk.limit = limit;
    ForEachTarget([&] { ASSERT_TRUE(backend().SelectTokens({&task, 1}).ok()); });
    EXPECT_EQ(num_chosen, count) << limit;
    for (int i = 0; i < 20; ++i) EXPECT_EQ(chosen[i], i < count ? 1 : 0) << limit;
  }
}

TEST_F(SelectTokensTest, NoTokensGiveNoChoice) {
  int64_t num_chosen = -1;
  const SelectTokensTask task = {.num_queries = 1, .token_budget = 3, .num_chosen = &num_chosen};
  ASSERT_TRUE(backend().SelectTokens({&task, 1}).ok());
  EXPECT_EQ(num_chosen, 0);
}

}  // namespace
}  // namespace wavekv::testing
