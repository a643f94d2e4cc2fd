#include "tests/storage_cases/storage_test_runner.h"

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/tensor_rows.h"

namespace wavekv::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A file with one case of these steps.
std::string CaseOf(const std::string& steps) {
  return "cases {\n  name: \"SomethingHolds\"\n  description: \"Because.\"\n  " + steps + "\n}\n";
}

constexpr char kAppend[] =
    "steps { append { tokens: 30 k { gaussian { seed: 1 } } v { gaussian { seed: 2 } } } }\n";

CaseResult RunCase(const std::string& steps) {
  const auto suite = ParseStorageTests("test", CaseOf(steps));
  EXPECT_TRUE(suite.ok()) << suite.status();
  const auto result = RunStorageTest(suite->cases(0));
  EXPECT_TRUE(result.ok()) << result.status();
  return *result;
}

TEST(StorageTestFileTest, MalformedFilesAreRefusedWithTheirPlaceAndWhatIsWrong) {
  const struct {
    std::string text;
    const char* begin;
    const char* fragment;
  } kCases[] = {
      {"", "file: ", "needs at least one case"},
      {"case {}", "file:1:", "case"},
      {"cases {\n  nam: \"X\"\n}", "file:2:", "nam"},
      {"cases {\n  name: \"X\"\n", "file:3:", "Expected"},
      {"cases {}", "file:1: case :", "name must be a sentence in CamelCase"},
      {"cases { name: \"not camel\" }", "file:1:", "got \"not camel\""},
      {"cases { name: \"Good\" }", "file:1: case Good:", "description must say"},
      {"\n\ncases { name: \"Good\" description: \"d\" }", "file:3: case Good:", "needs steps"},
      {"cases { name: \"Good\" description: \"d\" given { model { head_dim_k: 9 } } steps {} }",
       "file:1: case Good:", "model.head_dim_k must be a multiple of 8"},
      {CaseOf(kAppend) + CaseOf(kAppend), "file:7: case SomethingHolds:", "used twice"},
      {CaseOf(std::string(kAppend) + "steps {}"),
       "file:5: case SomethingHolds, step 2:", "needs an operation"},
      {CaseOf("steps { append { tokens: 1 } }"), "file:4:", "append.k must be gaussian"},
      {CaseOf("steps { append { tokens: 1 k { constant {} } } }"), "file:4:", "append.v must be"},
      {CaseOf("steps { append { tokens: 100001 k { constant {} } v { constant {} } } }"),
       "file:4:", "append.tokens must be at most 100000, got 100001"},
      {CaseOf("steps { append { k { clustered { seed: 1 } } v { constant {} } } }"),
       "file:4:", "append.k.clustered.clusters must be at least 1"},
      {CaseOf("steps { query {} }"), "file:4:", "query.q must be gaussian"},
      {CaseOf("steps { fork {} }"), "file:4:", "fork.child must name"},
      {CaseOf("steps { build {} expect_status: \"NOTFOUND\" }"), "file:4:", "got \"NOTFOUND\""},
      {CaseOf("steps { build {} expect_message: \"m\" }"), "file:4:", "expect_message needs"},
      {CaseOf("steps { build {} expect { metric: \"speed\" at_least: 1 } }"),
       "file:4:", "metric must be one of rel_err, lse_err"},
      {CaseOf("steps { build {} expect { metric: \"rel_err\" at_least: 1 } }"),
       "file:4:", "metric rel_err exists after a query that succeeds"},
      {CaseOf("steps { build {} expect { metric: \"sequence_length\" } }"),
       "file:4:", "needs at_least, at_most or equal_to"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = ParseStorageTests("file", c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(status.message()), StartsWith(c.begin)) << c.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.fragment)) << c.text;
  }
}

TEST(StorageTestFileTest, MissingFileIsNamed) {
  const absl::Status status = LoadStorageTests("/nowhere/x.textproto").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/x.textproto"));
}

TEST(StorageTestFileTest, GivenIsLaidOverTheSmallEngine) {
  v1::StorageTestCase test_case;
  test_case.mutable_given()->mutable_model()->set_num_layers(1);
  test_case.mutable_given()->mutable_index()->set_sink_tokens(0);
  const auto options = OptionsOf(test_case);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->model.num_layers, 1);
  EXPECT_EQ(options->model.head_dim_k, 32);
  EXPECT_EQ(options->index.sink_tokens, 0);
  EXPECT_EQ(options->index.segment_tokens, 256);
}

TEST(StorageTestRunnerTest, WhatHoldsPasses) {
  const CaseResult result = RunCase(
      std::string(kAppend) +
      "steps { query { q { gaussian { seed: 3 } } } expect { metric: \"rel_err\" at_most: 1e-5 "
      "} expect { metric: \"sequence_length\" equal_to: 30 } }");
  EXPECT_TRUE(result.passed()) << result.Failure();
  EXPECT_EQ(result.steps.size(), 2u);
  EXPECT_EQ(result.Failure(), "");
}

TEST(StorageTestRunnerTest, WhatDoesNotHoldFailsWithExpectedAndGot) {
  const std::string append = kAppend;
  const std::pair<std::string, std::string> cases[] = {
      {append + "steps { truncate { length: 31 } }", "status: expected OK, got OUT_OF_RANGE: new_"},
      {append + "steps { truncate { length: 3 } expect_status: \"ABORTED\" }",
       "status: expected ABORTED, got OK"},
      {append + "steps { truncate { length: 31 } expect_status: \"OUT_OF_RANGE\" expect_message: "
                "\"seven\" }",
       "message: expected ... seven ..., got new_length"},
      {append + "steps { build {} expect { metric: \"sequence_length\" equal_to: 29 } }",
       "sequence_length: expected 29, got 30"},
      {append + "steps { build {} expect { metric: \"sequence_length\" at_least: 31 } }",
       "sequence_length: expected at least 31, got 30"},
      {append + "steps { build {} expect { metric: \"sequence_length\" at_most: 1.5 } }",
       "sequence_length: expected at most 1.5, got 30"},
  };
  for (const auto& [steps, fragment] : cases) {
    const CaseResult result = RunCase(steps + kAppend);
    EXPECT_FALSE(result.passed());
    EXPECT_EQ(result.steps.size(), 2u) << "steps after a failure are not run";
    EXPECT_THAT(result.Failure(), StartsWith("step 2: "));
    EXPECT_THAT(result.Failure(), HasSubstr(fragment));
  }
}

TEST(StorageTestRunnerTest, AnswersOverOtherTokensThanTheEnginesWouldBeSeen) {
  // One token among thirty differs: the reference tells it, so a lost or swapped token fails a
  // case.
  v1::TensorSource one, other;
  one.mutable_gaussian()->set_seed(1);
  other.mutable_gaussian()->set_seed(2);
  EXPECT_NE(TensorRows(one, 0, 0, 1, 2, 32), TensorRows(other, 0, 0, 1, 2, 32));
  EXPECT_NE(TensorRows(one, 0, 0, 1, 2, 32), TensorRows(one, 1, 0, 1, 2, 32));
  EXPECT_NE(TensorRows(one, 0, 0, 1, 2, 32), TensorRows(one, 0, 1, 1, 2, 32));
}

TEST(TensorRowsTest, RowsDoNotDependOnHowTheyAreCut) {
  v1::TensorSource gaussian, clustered;
  gaussian.mutable_gaussian()->set_seed(5);
  clustered.mutable_clustered()->set_seed(5);
  clustered.mutable_clustered()->set_clusters(7);
  clustered.mutable_clustered()->set_spread(0.5f);
  for (const v1::TensorSource& source : {gaussian, clustered}) {
    const std::vector<float> whole = TensorRows(source, 1, 0, 10, 2, 8);
    std::vector<float> pieces = TensorRows(source, 1, 0, 3, 2, 8);
    const std::vector<float> rest = TensorRows(source, 1, 3, 7, 2, 8);
    pieces.insert(pieces.end(), rest.begin(), rest.end());
    EXPECT_EQ(whole, pieces);
  }
}

TEST(TensorRowsTest, GaussianRowsHaveTheStandardDeviationAskedFor) {
  v1::TensorSource source;
  source.mutable_gaussian()->set_seed(5);
  source.mutable_gaussian()->set_scale(3.0f);
  const std::vector<float> rows = TensorRows(source, 0, 0, 1000, 1, 64);
  double sum = 0.0;
  double sum2 = 0.0;
  for (const float x : rows) {
    sum += x;
    sum2 += static_cast<double>(x) * x;
  }
  EXPECT_NEAR(sum / rows.size(), 0.0, 0.05);
  EXPECT_NEAR(std::sqrt(sum2 / rows.size()), 3.0, 0.05);
}

TEST(TensorRowsTest, ClusteredRowsStandAroundFewCentresOfOneLength) {
  v1::TensorSource source;
  source.mutable_clustered()->set_seed(5);
  source.mutable_clustered()->set_clusters(4);
  const std::vector<float> rows = TensorRows(source, 0, 0, 200, 1, 16);
  std::vector<std::vector<float>> centres;
  for (int row = 0; row < 200; ++row) {
    const std::vector<float> centre(rows.begin() + row * 16, rows.begin() + (row + 1) * 16);
    double norm2 = 0.0;
    for (const float x : centre) norm2 += static_cast<double>(x) * x;
    EXPECT_NEAR(norm2, 16.0, 1e-4);
    if (std::find(centres.begin(), centres.end(), centre) == centres.end()) {
      centres.push_back(centre);
    }
  }
  EXPECT_EQ(centres.size(), 4u);
}

}  // namespace
}  // namespace wavekv::testing
