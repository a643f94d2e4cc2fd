#include "tools/trace/access_log.h"

#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::Random;

// A head of random rows.
struct RandomHead {
  RandomHead(int64_t num_tokens, std::vector<int32_t> query_positions)
      : positions(std::move(query_positions)) {
    const auto num_queries = static_cast<int64_t>(positions.size());
    Random random(1);
    keys = random.Gaussians(num_tokens * kDim);
    values = random.Gaussians(num_tokens * kDim);
    queries = random.Gaussians(num_queries * kDim);
    const auto view = [](const std::vector<float>& rows) {
      return RowsView{.name = "rows",
                      .data = rows.data(),
                      .num_rows = static_cast<int64_t>(rows.size()) / kDim,
                      .row_elements = kDim};
    };
    head = {.keys = view(keys),
            .values = view(values),
            .queries = view(queries),
            .head_dim_k = kDim,
            .positions = positions,
            .softmax_scale = 0.25};
  }

  static constexpr int64_t kDim = 16;
  std::vector<float> keys, values, queries;
  std::vector<int32_t> positions;
  TraceHead head;
};

int64_t NumTokens(const HeadAccesses::Segment& segment) {
  int64_t num_tokens = 0;
  for (const int64_t tokens : segment.cluster_tokens) num_tokens += tokens;
  return num_tokens;
}

TEST(BlockShapeTest, IsFourKilobytesInWholeTokensAndSectors) {
  EXPECT_EQ(BlockShapeOf(512).block_tokens, 8);
  EXPECT_EQ(BlockShapeOf(512).block_bytes, 4096);
  EXPECT_EQ(BlockShapeOf(320).block_tokens, 12);  // 3840 bytes
  EXPECT_EQ(BlockShapeOf(320).block_bytes, 4096);
  EXPECT_EQ(BlockShapeOf(4608).block_tokens, 1);
  EXPECT_EQ(BlockShapeOf(4608).block_bytes, 4608);
  EXPECT_EQ(BlockShapeOf(512).num_blocks(17), 3);
}

TEST(AccessLogTest, RecordsTheTokensThatQueriesRead) {
  const RandomHead random(1500, {1495, 1496, 1497, 1498, 1499});
  for (const Zones zones : {Zones::kSketch, Zones::kClusters}) {
    TraceEvalOptions options;
    options.budgets[0].zones = zones;
    options.budgets[0].retrieval = Budget::Ratio(0.1);
    options.budgets.push_back(options.budgets[0]);
    options.budgets[1].retrieval = Budget::Ratio(0.2);
    const auto accesses = RecordAccesses(random.head, options);
    ASSERT_TRUE(accesses.ok()) << accesses.status();
    ASSERT_EQ(accesses->size(), 2u);
    const HeadAccesses& first = (*accesses)[0];
    ASSERT_EQ(first.segments.size(), 1u);
    EXPECT_EQ(first.segments[0].first_token, 4);
    EXPECT_EQ(NumTokens(first.segments[0]), 1408);  // all but sinks and window, in multiples of 64
    ASSERT_EQ(first.queries.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(first.queries[i].number, static_cast<int64_t>(i));
      EXPECT_EQ(first.queries[i].position, random.positions[i]);
      std::set<std::tuple<uint32_t, uint32_t, uint32_t>> tokens;
      for (const HeadAccesses::TokenRead& read : first.queries[i].reads) {
        ASSERT_LT(read.cluster, first.segments[0].cluster_tokens.size());
        EXPECT_LT(read.place, first.segments[0].cluster_tokens[read.cluster]);
        EXPECT_TRUE(tokens.emplace(read.segment, read.cluster, read.place).second);
      }
      EXPECT_GE(tokens.size(), 140u);
      EXPECT_LE(tokens.size(), 250u);
      EXPECT_GT((*accesses)[1].queries[i].reads.size(), tokens.size());
    }
  }
}

TEST(AccessLogTest, SegmentsThatReplaceOthersHaveNumbersOfTheirOwn) {
  const RandomHead random(10000, {3000, 5000, 9999});
  TraceEvalOptions options;
  options.prompt_tokens = 500;
  options.grow = true;
  const auto accesses = RecordAccesses(random.head, options);
  ASSERT_TRUE(accesses.ok()) << accesses.status();
  const HeadAccesses& head = (*accesses)[0];
  std::set<int64_t> first_tokens;
  for (const HeadAccesses::Segment& segment : head.segments) {
    first_tokens.insert(segment.first_token);
  }
  EXPECT_LT(first_tokens.size(), head.segments.size());  // one was replaced between two queries
  for (const HeadAccesses::Query& query : head.queries) {
    EXPECT_FALSE(query.reads.empty());
    for (const HeadAccesses::TokenRead& read : query.reads) {
      ASSERT_LT(read.segment, head.segments.size());
      ASSERT_LT(read.cluster, head.segments[read.segment].cluster_tokens.size());
      EXPECT_LT(read.place, head.segments[read.segment].cluster_tokens[read.cluster]);
    }
  }
}

TEST(AccessLogTest, TheTextNamesEachBlockOnce) {
  HeadAccesses accesses;
  accesses.segments = {{4, {17, 3}}, {24, {9}}};
  accesses.queries = {{7, 90, {{0, 1, 2}, {0, 0, 1}, {0, 0, 3}, {0, 0, 16}, {1, 0, 0}}},
                      {9, 91, {}}};
  EXPECT_EQ(FormatAccesses(accesses, BlockShapeOf(512)),
            "segment 0 4 17,3\n"
            "segment 1 24 9\n"
            "query 7 90 0.1:0 0.0:0,2 1.0:0\n"
            "query 9 91\n");
}

}  // namespace
}  // namespace wavekv
