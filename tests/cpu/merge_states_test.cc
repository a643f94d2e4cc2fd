#include "compute/merge_states.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/cpu/backend_fixture.h"
#include "tests/testing/naive_attention.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class MergeStatesTest : public BackendFixture {
 protected:
  struct State {
    std::vector<float> output, lse;
  };

  State Merge(const std::vector<State>& states, int num_queries, int dim) {
    std::vector<AttentionState> views;
    for (const State& state : states) views.push_back({state.output.data(), state.lse.data()});
    State merged = {Poison(num_queries * dim), Poison(num_queries)};
    const MergeStatesTask task = {.states = views,
                                  .num_queries = num_queries,
                                  .head_dim_v = dim,
                                  .output = merged.output.data(),
                                  .lse = merged.lse.data()};
    EXPECT_TRUE(backend().MergeStates({&task, 1}).ok());
    return merged;
  }
};

TEST_F(MergeStatesTest, StatesOfDisjointSubsetsMergeIntoTheStateOfTheirUnion) {
  Random random(21);
  WAVEKV_TRACE_SEED(random);
  constexpr int kDimK = 16;
  constexpr int kTokens = 30;
  for (int dim : kHeadDims) {
    for (int num_queries : {1, 4, 7}) {
      NaiveAttentionInput all = {.queries = random.Gaussians(num_queries * kDimK),
                                 .keys = random.Gaussians(kTokens * kDimK),
                                 .values = random.Gaussians(kTokens * dim),
                                 .head_dim_k = kDimK,
                                 .head_dim_v = dim};
      const NaiveAttentionState expected = NaiveAttention(all);
      std::vector<State> parts;
      for (auto [begin, end] : {std::pair{0, 7}, {7, 8}, {8, 8}, {8, kTokens}}) {
        NaiveAttentionInput part = all;
        part.keys.assign(&all.keys[begin * kDimK],
                         &all.keys[begin * kDimK] + (end - begin) * kDimK);
        part.values.assign(all.values.begin() + begin * dim, all.values.begin() + end * dim);
        const NaiveAttentionState state = NaiveAttention(part);
        parts.push_back(
            {{state.output.begin(), state.output.end()}, {state.lse.begin(), state.lse.end()}});
      }
      ForEachTarget([&] {
        const State merged = Merge(parts, num_queries, dim);
        for (int i = 0; i < num_queries; ++i) {
          // |lse| < 64, so the rounded log-masses carry an error of 2^-19; |values| < 6.
          EXPECT_NEAR(merged.lse[i], expected.lse[i], 0x1p-18);
          for (int d = 0; d < dim; ++d) {
            EXPECT_NEAR(merged.output[i * dim + d], expected.output[i * dim + d], 6 * 0x1p-16);
          }
        }
      });
    }
  }
}

TEST_F(MergeStatesTest, EmptyStatesChangeNothing) {
  Random random(22);
  WAVEKV_TRACE_SEED(random);
  const State state = {random.Gaussians(2 * 24), {3.5f, -kInfinity}};
  const State empty = {std::vector<float>(2 * 24, 0.0f), {-kInfinity, -kInfinity}};
  ForEachTarget([&] {
    const State merged = Merge({empty, state, empty}, 2, 24);
    EXPECT_EQ(merged.lse, state.lse);
    for (int d = 0; d < 24; ++d) EXPECT_EQ(merged.output[d], state.output[d]);
    for (int d = 24; d < 48; ++d) EXPECT_EQ(merged.output[d], 0.0f);
  });
}

TEST_F(MergeStatesTest, NoStatesGiveTheEmptyState) {
  ForEachTarget([&] {
    const State merged = Merge({}, 1, 8);
    EXPECT_EQ(merged.lse[0], -kInfinity);
    EXPECT_EQ(merged.output, std::vector<float>(8, 0.0f));
  });
}

TEST_F(MergeStatesTest, MayWriteOverTheFirstState) {
  Random random(23);
  WAVEKV_TRACE_SEED(random);
  const std::vector<State> states = {{random.Gaussians(3 * 40), random.Gaussians(3)},
                                     {random.Gaussians(3 * 40), random.Gaussians(3)}};
  ForEachTarget([&] {
    const State apart = Merge(states, 3, 40);
    State first = states[0];
    const AttentionState views[] = {{first.output.data(), first.lse.data()},
                                    {states[1].output.data(), states[1].lse.data()}};
    const MergeStatesTask task = {.states = views,
                                  .num_queries = 3,
                                  .head_dim_v = 40,
                                  .output = first.output.data(),
                                  .lse = first.lse.data()};
    EXPECT_TRUE(backend().MergeStates({&task, 1}).ok());
    EXPECT_EQ(first.output, apart.output);
    EXPECT_EQ(first.lse, apart.lse);
  });
}

TEST_F(MergeStatesTest, HugeLogMassesStayFinite) {
  const State low = {std::vector<float>(8, 1.0f), {-1e6f}};
  const State high = {std::vector<float>(8, 2.0f), {1e6f}};
  ForEachTarget([&] {
    const State merged = Merge({low, high}, 1, 8);
    EXPECT_EQ(merged.lse[0], 1e6f);
    EXPECT_EQ(merged.output, std::vector<float>(8, 2.0f));
  });
}

}  // namespace
}  // namespace wavekv::testing
