#include "compute/choose_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

class ChooseTokensTest : public BackendFixture {
 protected:
  void ExpectRight(const std::vector<float>& shares, int64_t token_budget) {
    const auto num_tokens = static_cast<int64_t>(shares.size());
    SCOPED_TRACE(::testing::Message() << num_tokens << " tokens, " << token_budget << " wanted");
    std::vector<int64_t> ranked(num_tokens);
    std::iota(ranked.begin(), ranked.end(), 0);
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](int64_t a, int64_t b) { return shares[a] > shares[b]; });
    const int64_t wanted = std::min(token_budget, num_tokens);
    ForEachTarget([&] {
      std::vector<uint8_t> chosen(num_tokens, 77);
      int64_t num_chosen = -1;
      const ChooseTokensTask task = {.shares = shares.data(),
                                     .num_tokens = num_tokens,
                                     .token_budget = token_budget,
                                     .chosen = chosen.data(),
                                     .num_chosen = &num_chosen};
      ASSERT_TRUE(backend().ChooseTokens({&task, 1}).ok());
      EXPECT_EQ(num_chosen, wanted);
      for (int64_t i = 0; i < num_tokens; ++i) {
        ASSERT_EQ(chosen[ranked[i]], i < wanted ? 1 : 0) << i;
      }
    });
  }
};

TEST_F(ChooseTokensTest, ChoosesTheGreatestShares) {
  Random random(101);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t tokens : {1, 7, 64, 1000, 20000}) {
    std::vector<float> wide = random.Gaussians(tokens, 20.0f), few;
    for (float& share : wide) {
      share = std::exp(share);
      few.push_back(std::ldexp(1.0f, static_cast<int>(random.Integer(-150, -140))));
    }
    for (const int64_t budget : {0, 1, 2, 13, 999, 5000, 50000}) {
      ExpectRight(wide, budget);
      ExpectRight(few, budget);
    }
  }
}

// What a sample says of them is wrong.
TEST_F(ChooseTokensTest, GreatSharesMayStandWhereNobodyLooks) {
  for (const int64_t step : {1, 4, 5, 16, 17}) {
    std::vector<float> shares(16384, 0.5f);
    for (size_t i = 0; i < shares.size(); i += step) shares[i] = 1.0f / static_cast<float>(i + 1);
    for (const int64_t budget : {1, 100, 1000, 5000}) ExpectRight(shares, budget);
    for (float& share : shares) share = 1.0f - share;
    for (const int64_t budget : {1, 100, 1000, 5000}) ExpectRight(shares, budget);
  }
}

TEST_F(ChooseTokensTest, EqualTokensAreChosenInOrder) {
  for (const float share : {0.0f, 1e-40f, 0.25f}) {
    for (const int64_t budget : {0, 1, 20, 49, 50}) {
      ExpectRight(std::vector<float>(50, share), budget);
    }
  }
}

TEST_F(ChooseTokensTest, FewerAreChosenWhereTheOthersRiskIsSmallEnough) {
  // Shares of 1/2, 1/4, 1/8, ...: each risk is a quarter of the one before.
  std::vector<float> shares, risks;
  for (int i = 0; i < 20; ++i) {
    shares.push_back(std::ldexp(1.0f, -i - 1));
    risks.push_back(3.0f * shares.back() * shares.back());
  }
  std::vector<uint8_t> chosen(20);
  int64_t num_chosen = 0;
  ChooseTokensTask task = {.shares = shares.data(),
                           .risks = risks.data(),
                           .num_tokens = 20,
                           .token_budget = 6,
                           .chosen = chosen.data(),
                           .num_chosen = &num_chosen};
  // Behind i tokens, 4^-i is left.
  const std::pair<double, int> cases[] = {{2.0, 0}, {0.3, 1}, {0.05, 3}, {0.005, 4}, {1e-9, 6}};
  for (const auto& [limit, count] : cases) {
    task.risk_limit = limit;
    ASSERT_TRUE(backend().ChooseTokens({&task, 1}).ok());
    EXPECT_EQ(num_chosen, count) << limit;
    for (int i = 0; i < 20; ++i) EXPECT_EQ(chosen[i], i < count ? 1 : 0) << limit;
  }
}

TEST_F(ChooseTokensTest, NoTokensGiveNoChoice) {
  int64_t num_chosen = -1;
  const ChooseTokensTask task = {.token_budget = 3, .num_chosen = &num_chosen};
  ASSERT_TRUE(backend().ChooseTokens({&task, 1}).ok());
  EXPECT_EQ(num_chosen, 0);
}

}  // namespace
}  // namespace wavekv::testing
