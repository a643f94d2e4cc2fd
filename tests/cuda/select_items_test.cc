#include "cuda/select_items.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A limit and what it points to.
struct Risk {
  std::vector<float> log_masses, lses, inverse_squares, variances, hidden_variances, key_spreads,
      logit_spreads;
  double limit = 0.0;

  RiskLimit OnHost(int64_t count) const {
    return {.log_masses = log_masses.data(),
            .stride = count,
            .lses = lses.data(),
            .inverse_squares = inverse_squares.data(),
            .variances = variances.data(),
            .hidden_variances = hidden_variances.empty() ? nullptr : hidden_variances.data(),
            .key_spreads = key_spreads.data(),
            .logit_spreads = logit_spreads.data(),
            .limit = limit};
  }
};

// Of every item, as the contract says.
std::vector<double> RisksOf(const Risk& risk, int num_queries, int64_t count) {
  std::vector<double> risks(count, 0.0);
  for (int h = 0; h < num_queries; ++h) {
    for (int64_t i = 0; i < count; ++i) {
      const double log_square =
          2.0 * (static_cast<double>(risk.log_masses[h * count + i]) - risk.lses[h]);
      double sum = risk.variances[i] * std::exp(std::min(log_square, 80.0));
      if (!risk.hidden_variances.empty()) {
        const double x = static_cast<double>(risk.logit_spreads[h]) * risk.key_spreads[i];
        sum += risk.hidden_variances[i] * std::exp(std::min(log_square + x, 80.0));
      }
      risks[i] = std::max(risks[i], risk.inverse_squares[h] * sum);
    }
  }
  return risks;
}

// Squares of normal numbers.
std::vector<float> RandomSquares(Random& random, int64_t count, float deviation) {
  std::vector<float> squares = random.Gaussians(count, deviation);
  for (float& square : squares) square *= square;
  return squares;
}

// Whose limit is `share` of all risks.
Risk RandomRisk(Random& random, int num_queries, int64_t count, bool hidden, double share) {
  Risk risk;
  risk.log_masses = random.Gaussians(num_queries * count, 2.0f);
  risk.lses = random.Gaussians(num_queries);
  risk.inverse_squares = RandomSquares(random, num_queries, 1.0f);
  risk.variances = RandomSquares(random, count, 1.0f);
  if (hidden) risk.hidden_variances = RandomSquares(random, count, 0.1f);
  risk.key_spreads = RandomSquares(random, count, 1.0f);
  risk.logit_spreads = RandomSquares(random, num_queries, 1.0f);
  const std::vector<double> risks = RisksOf(risk, num_queries, count);
  risk.limit = share * std::accumulate(risks.begin(), risks.end(), 0.0);
  return risk;
}

// By probability, ties to the lower index.
std::vector<uint32_t> Ranking(const std::vector<float>& probabilities) {
  std::vector<uint32_t> ranked(probabilities.size());
  std::iota(ranked.begin(), ranked.end(), 0u);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](uint32_t a, uint32_t b) { return probabilities[a] > probabilities[b]; });
  return ranked;
}

struct Clusters {
  std::vector<float> scores;
  int num_queries = 0;
  std::vector<uint32_t> sizes;
  int64_t budget = 0;
  int64_t num_estimation = 0;
  Zone first_zone = Zone::kRetrieval;
  Zone last_zone = Zone::kRemainder;
  const Risk* risk = nullptr;
  int64_t count() const { return static_cast<int64_t>(sizes.size()); }
};

struct Tokens {
  std::vector<float> scores, log_masses;
  std::vector<Zone> zones;
  int num_queries = 0;
  int64_t budget = 0;
  const Risk* risk = nullptr;
  int64_t count() const { return static_cast<int64_t>(scores.size()) / std::max(num_queries, 1); }
};

// What a task gave, of clusters or tokens; `retrieved` and `zones` of clusters alone.
struct Selection {
  std::vector<float> probabilities;
  std::vector<Zone> zones;
  std::vector<uint8_t> chosen;
  std::vector<uint32_t> retrieved;
  int64_t num_selected = 0;
};

class SelectItemsOnGpu : public GpuFixture {
 protected:
  // All in one launch, for tasks of up to num_items.
  std::vector<Selection> Select(const std::vector<Clusters>& all, int64_t num_items) {
    std::vector<SelectClustersTask> tasks;
    for (const Clusters& clusters : all) {
      tasks.emplace_back();  // skipped
      if (clusters.num_queries == 0) continue;
      const int64_t n = clusters.count();
      tasks.back() = {.scores = Upload(clusters.scores),
                      .stride = n,
                      .num_queries = clusters.num_queries,
                      .sizes = Upload(clusters.sizes),
                      .num_clusters = n,
                      .token_budget = clusters.budget,
                      .num_estimation = clusters.num_estimation,
                      .first_zone = clusters.first_zone,
                      .last_zone = clusters.last_zone,
                      .ranked = false,
                      .risk = UploadRisk(clusters.risk, n),
                      .probabilities = Poison<float>(n),
                      .zones = Poison<Zone>(n),
                      .retrieved = Poison<uint32_t>(n + 1),
                      .num_retrieved = Poison<int64_t>(1)};
    }
    const TaskBounds bounds = BoundsOf(all, num_items);
    Expect(operations().select_clusters({Upload(tasks), static_cast<int64_t>(tasks.size())}, bounds,
                                        Scratch(bounds, all.size()), stream()));
    std::vector<Selection> selections;
    for (const SelectClustersTask& task : tasks) {
      selections.emplace_back();
      if (task.num_queries == 0) continue;
      Selection& selection = selections.back();
      selection.probabilities = Download(task.probabilities, task.num_clusters);
      selection.zones = Download(task.zones, task.num_clusters);
      selection.num_selected = Download(task.num_retrieved, 1)[0];
      selection.retrieved = Download(task.retrieved, task.num_clusters + 1);
      EXPECT_GE(selection.num_selected, 0);
      EXPECT_LE(selection.num_selected, task.num_clusters);
      // Nothing is written behind them.
      for (int64_t i = selection.num_selected; i <= task.num_clusters; ++i) {
        EXPECT_EQ(selection.retrieved[i], ~0u);
      }
      selection.retrieved.resize(selection.num_selected);
    }
    return selections;
  }

  std::vector<Selection> Select(const std::vector<Tokens>& all, int64_t num_items) {
    std::vector<SelectTokensTask> tasks;
    for (const Tokens& tokens : all) {
      tasks.emplace_back();  // skipped
      if (tokens.num_queries == 0) continue;
      const int64_t n = tokens.count();
      tasks.back() = {.rank_scores = Upload(tokens.scores),
                      .stride = n,
                      .num_queries = tokens.num_queries,
                      .num_tokens = n,
                      .log_masses = Upload(tokens.log_masses),
                      .log_masses_stride = static_cast<int64_t>(tokens.zones.size()),
                      .zones = Upload(tokens.zones),
                      .num_clusters = static_cast<int64_t>(tokens.zones.size()),
                      .token_budget = tokens.budget,
                      .risk = UploadRisk(tokens.risk, n),
                      .probabilities = Poison<float>(n),
                      .chosen = Poison<uint8_t>(n),
                      .num_chosen = Poison<int64_t>(1)};
    }
    const TaskBounds bounds = BoundsOf(all, num_items);
    Expect(operations().select_tokens({Upload(tasks), static_cast<int64_t>(tasks.size())}, bounds,
                                      Scratch(bounds, all.size()), stream()));
    std::vector<Selection> selections;
    for (const SelectTokensTask& task : tasks) {
      selections.emplace_back();
      if (task.num_queries == 0) continue;
      selections.back().probabilities = Download(task.probabilities, task.num_tokens);
      selections.back().chosen = Download(task.chosen, task.num_tokens);
      selections.back().num_selected = Download(task.num_chosen, 1)[0];
    }
    return selections;
  }

  // As the contract says.
  static std::vector<float> Probabilities(const Tokens& tokens) {
    const int64_t n = tokens.count();
    const auto num_clusters = static_cast<int64_t>(tokens.zones.size());
    std::vector<double> sums(n, 0.0);
    for (int h = 0; h < tokens.num_queries; ++h) {
      const float* const scores = tokens.scores.data() + h * n;
      const float* const masses = tokens.log_masses.data() + h * num_clusters;
      const auto counts = [&](int64_t i) {
        return tokens.zones[i] == Zone::kEstimation || tokens.zones[i] == Zone::kRemainder;
      };
      double most = -kInfinity, mass = 0.0;
      for (int64_t t = 0; t < n; ++t) most = std::max<double>(most, scores[t]);
      for (int64_t i = 0; i < num_clusters; ++i) {
        if (counts(i)) most = std::max<double>(most, masses[i]);
      }
      if (most == -kInfinity) continue;
      for (int64_t t = 0; t < n; ++t) mass += std::exp(scores[t] - most);
      for (int64_t i = 0; i < num_clusters; ++i) {
        if (counts(i)) mass += std::exp(masses[i] - most);
      }
      for (int64_t t = 0; t < n; ++t) sums[t] += std::exp(scores[t] - most) / mass;
    }
    return {sums.begin(), sums.end()};
  }

  // The right probabilities, and zones and choices that follow from the GPU's own.
  void ExpectRight(const Clusters& clusters, const Selection& actual) {
    if (clusters.num_queries == 0) return;
    const int64_t n = clusters.count();
    std::vector<float> probabilities(n);
    std::vector<Zone> zones(n);
    std::vector<uint32_t> retrieved(n);
    int64_t num_retrieved = 0;
    const SelectClustersTask task = {.scores = clusters.scores.data(),
                                     .stride = n,
                                     .num_queries = clusters.num_queries,
                                     .sizes = clusters.sizes.data(),
                                     .num_clusters = n,
                                     .probabilities = probabilities.data(),
                                     .zones = zones.data(),
                                     .retrieved = retrieved.data(),
                                     .num_retrieved = &num_retrieved};
    Expect(cpu().SelectClusters({&task, 1}));
    ExpectNear(actual.probabilities, probabilities);

    const std::vector<uint32_t> ranked = Ranking(actual.probabilities);
    int64_t wanted = 0;
    for (int64_t tokens = 0; wanted < n && tokens < clusters.budget; ++wanted) {
      tokens += clusters.sizes[ranked[wanted]];
    }
    if (clusters.risk != nullptr) {
      ExpectWithinLimit(*clusters.risk, clusters.num_queries, ranked, wanted, actual.num_selected);
    } else {
      ASSERT_EQ(actual.num_selected, wanted);
    }
    zones.assign(n, clusters.last_zone);
    const int64_t answered =
        actual.num_selected + std::clamp<int64_t>(clusters.num_estimation, 0, n);
    for (int64_t i = 0; i < std::min(answered, n); ++i) {
      if (i < actual.num_selected) {
        zones[ranked[i]] = clusters.first_zone;
      } else if (actual.probabilities[ranked[i]] > 0.0f) {
        zones[ranked[i]] = Zone::kEstimation;
      }
    }
    ASSERT_EQ(actual.zones, zones);
    retrieved.assign(ranked.begin(), ranked.begin() + actual.num_selected);
    std::sort(retrieved.begin(), retrieved.end());
    ASSERT_EQ(actual.retrieved, retrieved);
  }

  void ExpectRight(const Tokens& tokens, const Selection& actual) {
    if (tokens.num_queries == 0) return;
    const int64_t n = tokens.count();
    ExpectNear(actual.probabilities, Probabilities(tokens));

    const std::vector<uint32_t> ranked = Ranking(actual.probabilities);
    const int64_t wanted = std::clamp<int64_t>(tokens.budget, 0, n);
    if (tokens.risk != nullptr) {
      ExpectWithinLimit(*tokens.risk, tokens.num_queries, ranked, wanted, actual.num_selected);
    } else {
      ASSERT_EQ(actual.num_selected, wanted);
    }
    std::vector<uint8_t> chosen(n, 0);
    for (int64_t i = 0; i < actual.num_selected; ++i) chosen[ranked[i]] = 1;
    ASSERT_EQ(actual.chosen, chosen);
  }

 private:
  template <typename Items>
  TaskBounds BoundsOf(const std::vector<Items>& all, int64_t num_items) {
    TaskBounds bounds;
    bounds.num_items = num_items;
    for (const Items& items : all) {
      bounds.num_queries = std::max(bounds.num_queries, items.num_queries);
      EXPECT_LE(items.count(), num_items);
    }
    return bounds;
  }

  std::byte* Scratch(const TaskBounds& bounds, size_t num_tasks) {
    const int64_t bytes = operations().select_scratch_bytes(bounds);
    EXPECT_EQ(bytes % 256, 0);
    return Poison<std::byte>(bytes * static_cast<int64_t>(num_tasks));
  }

  const RiskLimit* UploadRisk(const Risk* risk, int64_t count) {
    if (risk == nullptr) return nullptr;
    RiskLimit limit = risk->OnHost(count);
    limit.log_masses = Upload(risk->log_masses);
    limit.lses = Upload(risk->lses);
    limit.inverse_squares = Upload(risk->inverse_squares);
    limit.variances = Upload(risk->variances);
    if (limit.hidden_variances != nullptr) limit.hidden_variances = Upload(risk->hidden_variances);
    limit.key_spreads = Upload(risk->key_spreads);
    limit.logit_spreads = Upload(risk->logit_spreads);
    return Upload(absl::MakeConstSpan(&limit, 1));
  }

  // Each is a sum of exponentials, whose arguments are rounded to 2^-24 of themselves.
  static void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 2e-5f * expected[i] + 1e-37f) << i;
    }
  }

  // num_selected: the budget's, or the least that meets the limit.
  static void ExpectWithinLimit(const Risk& risk, int num_queries,
                                const std::vector<uint32_t>& ranked, int64_t wanted,
                                int64_t num_selected) {
    const auto n = static_cast<int64_t>(ranked.size());
    const std::vector<double> risks = RisksOf(risk, num_queries, n);
    double left = 0.0;
    for (int64_t i = n; i > num_selected; --i) left += risks[ranked[i - 1]];
    ASSERT_LE(num_selected, wanted);
    constexpr double kRounding = 2e-5;
    if (num_selected < wanted) {
      EXPECT_LE(left, risk.limit * (1.0 + kRounding));
    }
    if (num_selected > 0) {
      EXPECT_GE(left + risks[ranked[num_selected - 1]], risk.limit * (1.0 - kRounding));
    }
  }
};

std::vector<uint32_t> RandomSizes(Random& random, int64_t count, int64_t most) {
  std::vector<uint32_t> sizes(count);
  for (uint32_t& size : sizes) size = static_cast<uint32_t>(random.Integer(1, most));
  return sizes;
}

// Scores of which many tie, and some are -infinity.
std::vector<float> RandomScores(Random& random, int64_t count) {
  constexpr float kSpreads[] = {0.0f, 0.01f, 3.0f, 60.0f};
  std::vector<float> scores = random.Gaussians(count, kSpreads[random.Integer(0, 3)]);
  if (random.Integer(0, 2) == 0) {
    for (float& score : scores) score = std::round(score / 8.0f);
  }
  if (random.Integer(0, 2) == 0) {
    for (float& score : scores) score = random.Integer(0, 3) == 0 ? score : -kInfinity;
  }
  return scores;
}

int64_t Total(const std::vector<uint32_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

Clusters RandomClusters(Random& random, int num_queries, int64_t count) {
  Clusters clusters;
  clusters.num_queries = num_queries;
  clusters.scores = RandomScores(random, num_queries * count);
  clusters.sizes = RandomSizes(random, count, random.Integer(0, 1) == 0 ? 40 : 65536);
  const int64_t total = Total(clusters.sizes);
  const int64_t budgets[] = {0,         1,     total / 50, total / 2,
                             total - 1, total, total + 1,  std::numeric_limits<int64_t>::max()};
  clusters.budget = budgets[random.Integer(0, 7)];
  const int64_t estimated[] = {0, 0, 1, count / 4, count, std::numeric_limits<int64_t>::max()};
  clusters.num_estimation = estimated[random.Integer(0, 5)];
  if (random.Integer(0, 1) == 0) clusters.first_zone = Zone::kSketch;
  if (random.Integer(0, 1) == 0) clusters.last_zone = Zone::kIgnored;
  return clusters;
}

Tokens RandomTokens(Random& random, int num_queries, int64_t count, int64_t num_clusters) {
  Tokens tokens;
  tokens.num_queries = num_queries;
  tokens.scores = RandomScores(random, num_queries * count);
  tokens.log_masses = random.Gaussians(num_queries * num_clusters, 3.0f);
  tokens.zones.resize(num_clusters);
  for (Zone& zone : tokens.zones) zone = static_cast<Zone>(random.Integer(0, 4));
  const int64_t budgets[] = {0, 1, count / 20, count / 2, count, count + 3};
  tokens.budget = budgets[random.Integer(0, 5)];
  return tokens;
}

TEST_P(SelectItemsOnGpu, ZonesFollowTheRanks) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  // One block a task, of each size, and several.
  for (const int64_t most : {1, 300, 3000, 4096, 4097, 20000}) {
    std::vector<Clusters> all;
    for (const int64_t count : {most, int64_t{0}, most / 2, int64_t{1}, most - most / 3}) {
      const int num_queries = static_cast<int>(random.Integer(1, 4));
      all.push_back(RandomClusters(random, num_queries, count));
    }
    all.insert(all.begin() + 1, Clusters());
    const std::vector<Selection> actual = Select(all, most);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "task " << i << " of up to " << most);
      ExpectRight(all[i], actual[i]);
    }
  }
}

TEST_P(SelectItemsOnGpu, TheBestTokensAreChosen) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t most : {1, 300, 3000, 4096, 4097, 20000}) {
    std::vector<Tokens> all;
    for (const int64_t count : {most, int64_t{0}, most / 2, int64_t{1}, most - most / 3}) {
      const int num_queries = static_cast<int>(random.Integer(1, 4));
      all.push_back(RandomTokens(random, num_queries, count, random.Integer(0, 2000)));
    }
    all.insert(all.begin() + 1, Tokens());
    const std::vector<Selection> actual = Select(all, most);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "task " << i << " of up to " << most);
      ExpectRight(all[i], actual[i]);
    }
  }
}

TEST_P(SelectItemsOnGpu, EveryCutIsRight) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  std::vector<Clusters> all;
  Clusters clusters = RandomClusters(random, 1, 600);
  for (const float spread : {0.0f, 1.0f, 1000.0f}) {
    for (float& score : clusters.scores) {
      score = static_cast<float>(random.Integer(0, 2)) + random.Gaussian(spread);
      if (spread == 0.0f) score = std::floor(score);
    }
    clusters.sizes = RandomSizes(random, 600, 9);
    clusters.num_estimation = 150;
    for (clusters.budget = 0; clusters.budget < 3200; clusters.budget += 207) {
      all.push_back(clusters);
    }
  }
  const std::vector<Selection> actual = Select(all, 600);
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "budget " << all[i].budget);
    ExpectRight(all[i], actual[i]);
  }
}

TEST_P(SelectItemsOnGpu, ManyItemsAndQueriesAreSelected) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  Clusters clusters = RandomClusters(random, 1, 70000);
  clusters.scores = random.Gaussians(70000, 3.0f);
  clusters.budget = Total(clusters.sizes) / 10;
  clusters.num_estimation = 20000;
  ExpectRight(clusters, Select(std::vector<Clusters>{clusters}, 70000)[0]);

  Tokens tokens = RandomTokens(random, 35, 2500, 700);
  tokens.scores = random.Gaussians(35 * 2500, 3.0f);
  tokens.budget = 333;
  ExpectRight(tokens, Select(std::vector<Tokens>{tokens}, 2500)[0]);
  ExpectRight(tokens, Select(std::vector<Tokens>{tokens}, 9000)[0]);

  Tokens many = RandomTokens(random, 1, 300000, 70000);
  many.scores = random.Gaussians(300000, 3.0f);
  many.budget = 15000;
  ExpectRight(many, Select(std::vector<Tokens>{many}, 300000)[0]);
}

TEST_P(SelectItemsOnGpu, TiesGoToTheLowerIndex) {
  for (const int64_t most : {2000, 9000}) {
    Clusters clusters;
    clusters.num_queries = 2;
    clusters.scores.assign(2 * most, 0.25f);
    clusters.sizes.assign(most, 10);
    clusters.budget = 12345;
    clusters.num_estimation = 300;
    const Selection selection = Select(std::vector<Clusters>{clusters}, most)[0];
    ExpectRight(clusters, selection);
    ASSERT_EQ(selection.retrieved.size(), 1235u);
    EXPECT_EQ(selection.retrieved.back(), 1234u);
    EXPECT_EQ(selection.zones[1534], Zone::kEstimation);
    EXPECT_EQ(selection.zones[1535], Zone::kRemainder);
  }
}

TEST_P(SelectItemsOnGpu, WhatHasNoScoreRanksLastAndIsNotEstimated) {
  Clusters clusters;
  clusters.num_queries = 1;
  clusters.scores = {-kInfinity, 900.0f, -kInfinity, -900.0f};
  clusters.sizes.assign(4, 1);
  clusters.budget = 1;
  clusters.num_estimation = 3;
  const Selection selection = Select(std::vector<Clusters>{clusters}, 4)[0];
  EXPECT_EQ(selection.retrieved, (std::vector<uint32_t>{1}));
  EXPECT_EQ(selection.zones, (std::vector<Zone>{Zone::kRemainder, Zone::kRetrieval,
                                                Zone::kRemainder, Zone::kEstimation}));
  EXPECT_EQ(selection.probabilities[3], std::numeric_limits<float>::min());

  // No scores at all: the first ones, by index.
  clusters.scores.assign(4, -kInfinity);
  clusters.budget = 2;
  const Selection none = Select(std::vector<Clusters>{clusters}, 4)[0];
  EXPECT_EQ(none.probabilities, std::vector<float>(4, 0.0f));
  EXPECT_EQ(none.retrieved, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(none.zones, (std::vector<Zone>{Zone::kRetrieval, Zone::kRetrieval, Zone::kRemainder,
                                           Zone::kRemainder}));
}

TEST_P(SelectItemsOnGpu, HugeScoresStayDefined) {
  Clusters clusters;
  clusters.num_queries = 1;
  clusters.scores = {1e6f, -1e6f, 1e6f, 0.0f, -3e38f};
  clusters.sizes.assign(5, 1);
  clusters.budget = 4;
  const Selection selection = Select(std::vector<Clusters>{clusters}, 5)[0];
  EXPECT_NEAR(selection.probabilities[0], 0.5f, 1e-6f);
  EXPECT_EQ(selection.retrieved, (std::vector<uint32_t>{0, 1, 2, 3}));
}

TEST_P(SelectItemsOnGpu, TheOthersRiskIsAtMostTheLimit) {
  Random random(5);
  WAVEKV_TRACE_SEED(random);
  std::vector<Risk> risks;
  risks.reserve(100);
  for (const int64_t most : {1, 700, 9000}) {
    std::vector<Clusters> all;
    std::vector<Tokens> all_tokens;
    for (const double share : {-1.0, 0.0, 1e-9, 1e-4, 0.03, 0.5, 0.97, 1.5}) {
      const int num_queries = most > 1000 ? 2 : 3;
      const int64_t count = random.Integer((most + 1) / 2, most);
      risks.push_back(RandomRisk(random, num_queries, count, random.Integer(0, 1) == 0, share));
      Clusters clusters = RandomClusters(random, num_queries, count);
      clusters.scores = random.Gaussians(num_queries * count, 2.0f);
      clusters.risk = &risks.back();
      clusters.budget = Total(clusters.sizes) / random.Integer(1, 2);
      all.push_back(clusters);
      Tokens tokens = RandomTokens(random, num_queries, count, 20);
      tokens.scores = clusters.scores;
      tokens.risk = &risks.back();
      tokens.budget = count / random.Integer(1, 2);
      all_tokens.push_back(tokens);
    }
    const std::vector<Selection> actual = Select(all, most);
    const std::vector<Selection> actual_tokens = Select(all_tokens, most);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "limit " << i << " of up to " << most);
      ExpectRight(all[i], actual[i]);
      ExpectRight(all_tokens[i], actual_tokens[i]);
    }
  }
}

TEST_P(SelectItemsOnGpu, RisksBeyondFloatsAreRead) {
  Risk risk;
  risk.log_masses = {1.0f, 2.0f, 3.0f, 4.0f};
  risk.lses = {-200.0f};
  risk.variances = {3e38f, 3e38f, 3e38f, 3e38f};
  risk.inverse_squares = {3e38f};
  risk.limit = 1.0;
  Clusters clusters;
  clusters.num_queries = 1;
  clusters.scores = risk.log_masses;
  clusters.sizes.assign(4, 1);
  clusters.budget = 4;
  clusters.risk = &risk;
  EXPECT_EQ(Select(std::vector<Clusters>{clusters}, 4)[0].num_selected, 4);
}

TEST_P(SelectItemsOnGpu, SelectionsDoNotDependOnTheOrderOfBlocks) {
  Random random(6);
  WAVEKV_TRACE_SEED(random);
  const Risk risk = RandomRisk(random, 2, 15000, true, 0.01);
  Clusters clusters = RandomClusters(random, 2, 15000);
  clusters.scores = random.Gaussians(2 * 15000, 2.0f);
  clusters.budget = Total(clusters.sizes) / 3;
  clusters.num_estimation = 2000;
  clusters.risk = &risk;
  const Selection first = Select(std::vector<Clusters>{clusters}, 15000)[0];
  const Selection again = Select(std::vector<Clusters>{clusters}, 15000)[0];
  EXPECT_EQ(first.probabilities, again.probabilities);
  EXPECT_EQ(first.zones, again.zones);
  EXPECT_EQ(first.retrieved, again.retrieved);
}

WAVEKV_ON_EACH_GPU(SelectItemsOnGpu);

}  // namespace
}  // namespace wavekv::testing
