#include "tests/storage_cases/storage_test_runner.h"

#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage_cases/answer_quality.h"
#include "tests/storage_cases/parallel_group.h"
#include "tests/storage_cases/storage_test_file.h"
#include "tests/storage_cases/tensor_rows.h"
#include "tools/safetensors/safetensors.h"

namespace wavekv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<float> Rows(const v1::TensorSource& source, const WantedRows& wanted) {
  const auto rows = TensorRows(source, wanted);
  EXPECT_TRUE(rows.ok()) << rows.status();
  return rows.ok() ? *rows : std::vector<float>();
}

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
       "file:4:", "metric must be one of rel_err, rel_err_mean"},
      {CaseOf("steps { build {} expect { metric: \"rel_err\" at_least: 1 } }"),
       "file:4:", "metric rel_err exists after a query that succeeds"},
      {CaseOf("steps { build {} expect { metric: \"sequence_length\" } }"),
       "file:4:", "needs at_least, at_most or equal_to"},
      {CaseOf("steps { build {} expect { metric: \"recall\" at_least: 1 } }"),
       "file:4:", "metric recall exists after a query or retrieve that succeeds"},
      {CaseOf("steps { build {} expect_status: [\"OK\", \"LATE\"] }"), "file:4:", "got \"LATE\""},
      {CaseOf("steps { retrieve { q { constant {} } recall_tokens: 0 } }"),
       "file:4:", "retrieve.recall_tokens must be at least 1"},
      {CaseOf("steps { append { k { needle {} } v { constant {} } } }"),
       "file:4:", "append.k: a needle is for queries"},
      {CaseOf("steps { query { q { haystack {} } } }"),
       "file:4:", "query.q: a haystack is for append"},
      {CaseOf("steps { append { tokens: 2 k { literal { rows {} } } v { constant {} } } }"),
       "file:4:", "append.k.literal.rows must be 2, one for each token, got 1"},
      {CaseOf("given { model { head_dim_k: 8 } } steps { query { q { literal { rows { values: "
              "[1, 2, 3, 4, 5, 6, 7, 8, 9] } } } } }"),
       "file:4:", "query.q.literal.rows[0].values must be at most head_dim = 8 numbers, got 9"},
      {CaseOf("steps { query { q { file { path: \"/nowhere\" tensor: \"q\" } } } }"),
       "file:4: case SomethingHolds, step 1: query.q.file.path: ", "/nowhere"},
      {CaseOf("steps { parallel {} }"), "file:4:", "parallel.steps: got none"},
      {CaseOf("steps { parallel { threads: 17 steps { build {} } } }"),
       "file:4:", "parallel.threads must be at most 16, got 17"},
      {CaseOf("steps { parallel { steps { build {} } } expect_status: \"OK\" }"),
       "file:4:", "expect_status: a group has none of its own"},
      {CaseOf("steps { parallel { steps { build {} } } repeat: 2 }"),
       "file:4:", "repeat the steps of a group"},
      {CaseOf("steps {\n parallel {\n steps { build {} }\n steps { fork {} } } }"),
       "file:7: case SomethingHolds, step 1.2:", "fork.child must name"},
      {CaseOf("steps { parallel { steps { parallel { steps { build {} } } } } }"),
       "file:4:", "a group has no groups in it"},
      {CaseOf("steps { parallel { steps { build {} expect { metric: \"sequence_length\" at_most: 1 "
              "} } } }"),
       "file:4:", "metric sequence_length depends on what the other threads do meanwhile"},
      {CaseOf(
           "steps { parallel { steps { truncate {} } steps { query { q { constant {} } } expect { "
           "metric: \"rel_err\" at_most: 1 } } } }"),
       "file:4:", "which the group truncates or creates"},
      {CaseOf("steps { parallel { steps { fork { child: \"c\" } } steps { append { tokens: 1 k { "
              "constant {} } v { constant {} } } } } }"),
       "file:4:", "fork.prefix_tokens must say what the fork has"},
      {CaseOf(
           "steps { parallel { steps { fork { child: \"c\" prefix_tokens: 1 } } steps { truncate "
           "{} } } }"),
       "file:4:", "what the fork has is not defined while another step truncates"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = ParseStorageTests("file", c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(status.message()), StartsWith(c.begin)) << c.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.fragment)) << c.text;
  }
}

// One tensor "k" of shape [5, 2, 32] and "ids" of integers, in a file whose path is returned.
std::string WriteRows() {
  safetensors::Writer writer;
  EXPECT_TRUE(writer.AddHalves("k", {5, 2, 32}, std::vector<float>(320, 0.5f)).ok());
  EXPECT_TRUE(writer.AddInt32s("ids", {5, 32}, std::vector<int32_t>(160, 1)).ok());
  const std::string path = ::testing::TempDir() + "/storage_test_rows.safetensors";
  EXPECT_TRUE(writer.Write(path).ok());
  return path;
}

TEST(StorageTestFileTest, RowsThatAFileDoesNotHaveAreNamedByLineAndField) {
  const std::string path = WriteRows();
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  const std::pair<std::string, std::string> cases[] = {
      {"tokens: 1 k { file { tensor: \"keys\" path: ", "append.k.file.tensor must be one of those"},
      {"tokens: 6 k { file { tensor: \"k\" path: ",
       "append.k.file.first_row: 6 rows from row 0 must lie within the 5 rows of tensor \"k\""},
      {"tokens: 2 k { file { tensor: \"k\" first_row: 4 path: ", "2 rows from row 4"},
      {"tokens: 1 k { file { tensor: \"k\" first_row: 18446744073709551615 path: ", "1 rows from"},
      {"tokens: 1 k { file { tensor: \"ids\" path: ", "append.k.file.tensor: "},
  };
  for (const auto& [begin, fragment] : cases) {
    const absl::Status status =
        ParseStorageTests(folder + "file", CaseOf("steps { append { " + begin +
                                                  "\"storage_test_rows.safetensors\" } } v { "
                                                  "constant {} } } }"))
            .status();
    EXPECT_THAT(std::string(status.message()),
                StartsWith(folder + "file:4: case SomethingHolds, step 1: append.k.file."));
    EXPECT_THAT(std::string(status.message()), HasSubstr(fragment));
  }
  const absl::Status shape =
      ParseStorageTests("file",
                        CaseOf("given { model { num_kv_heads: 4 } } steps { append { tokens: "
                               "1 k { file { tensor: \"k\" path: \"" +
                               path + "\" } } v { constant {} } } }"))
          .status();
  EXPECT_THAT(std::string(shape.message()),
              HasSubstr("must have shape [*, 4, 32] or [*, 32], got [5, 2, 32]"));
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

TEST(StorageTestRunnerTest, AGroupFailsWithTheStepThatFailed) {
  const CaseResult result = RunCase(
      std::string(kAppend) +
      "steps { parallel { seed: 1 steps { repeat: 3 query { q { gaussian { seed: 3 } } } } steps { "
      "repeat: 3 truncate { length: 31 } expect_status: [\"OK\", \"ABORTED\"] } } }");
  EXPECT_FALSE(result.passed());
  EXPECT_THAT(result.Failure(), StartsWith("step 2.2: "));
  EXPECT_THAT(
      result.Failure(),
      HasSubstr("status: expected OK or ABORTED, got OUT_OF_RANGE 3 times; OUT_OF_RANGE: "));
}

TEST(StorageTestRunnerTest, ARepeatedStepStopsAtTheFirstThatFails) {
  const CaseResult result =
      RunCase(std::string(kAppend) + "steps { repeat: 9 remove {} } " + kAppend);
  EXPECT_THAT(result.Failure(), StartsWith("step 2: "));
  EXPECT_THAT(result.Failure(), HasSubstr("got NOT_FOUND once, OK once; NOT_FOUND: "));
}

TEST(StorageTestRunnerTest, AnyExpectedStatusWillDo) {
  const CaseResult result = RunCase(std::string(kAppend) +
                                    "steps { repeat: 2 remove {} expect_status: [\"OK\", "
                                    "\"NOT_FOUND\"] expect_message: \"no such\" "
                                    "}");
  EXPECT_TRUE(result.passed()) << result.Failure();
}

TEST(StorageTestRunnerTest, ASequenceWhoseForkFailedIsNotFound) {
  const CaseResult result =
      RunCase(std::string(kAppend) +
              "steps { parallel { steps { fork { child: \"c\" prefix_tokens: 31 } expect_status: "
              "\"OUT_OF_RANGE\" } steps { sequence: \"c\" remove {} expect_status: \"NOT_FOUND\" "
              "expect_message: \"no sequence is called c\" } } }");
  EXPECT_TRUE(result.passed()) << result.Failure();
}

v1::Parallel GroupOf(const std::string& steps) {
  const auto suite = ParseStorageTests("test", CaseOf("steps { parallel { " + steps + "} }"));
  EXPECT_TRUE(suite.ok()) << suite.status();
  return suite->cases(0).steps(0).parallel();
}

TEST(ParallelGroupTest, StepsThatChangeOneSequenceAreOneStrand) {
  const v1::Parallel group = GroupOf(
      "steps { sequence: \"a\" truncate {} } steps { sequence: \"b\" truncate {} }"
      "steps { sequence: \"a\" remove {} } steps { sequence: \"a\" build {} }"
      "steps { sequence: \"d\" fork { child: \"c\" prefix_tokens: 0 } } steps { sequence: \"c\" "
      "build {} }");
  EXPECT_THAT(Strands(group),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1), ElementsAre(3), ElementsAre(4, 5)));
}

TEST(ParallelGroupTest, EveryStepIsTakenAsOftenAsItSaysAndStrandsKeepTheirOrder) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    v1::Parallel group = GroupOf(
        "threads: 3 steps { sequence: \"a\" truncate {} repeat: 3 } steps { sequence: \"b\" build "
        "{} "
        "repeat: 5 } steps { sequence: \"a\" remove {} repeat: 2 }");
    group.set_seed(seed);
    std::mutex mutex;
    std::vector<int> of_a;
    int of_b = 0;
    RunStrands(group, [&](int step) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (step == 1) {
        ++of_b;
      } else {
        of_a.push_back(step);
      }
    });
    EXPECT_EQ(of_b, 5);
    EXPECT_THAT(of_a, ElementsAre(0, 0, 0, 2, 2)) << "seed " << seed;
  }
}

TEST(AnswerQualityTest, ANaNIsTheLargestError) {
  const double nan = std::nan("");
  EXPECT_TRUE(std::isnan(Largest({nan, 1.0})));
  EXPECT_TRUE(std::isnan(Largest({1.0, nan, 2.0})));
  EXPECT_EQ(Largest({1.0, 3.0, 2.0}), 3.0);
  EXPECT_EQ(Largest({}), 0.0);
}

TEST(AnswerQualityTest, RecallAndMassAreOfTheTrueWeights) {
  // Position 0 is not indexed; of the others 1 and 3 weigh most, 3 and 4 are retrieved.
  const std::vector<double> weights = {0.1, 0.4, 0.1, 0.3, 0.1};
  const std::vector<bool> indexed = {false, true, true, true, true};
  const std::vector<bool> retrieved = {false, false, false, true, true};
  Mean recall, mass;
  AddRetrievalQuality(weights, indexed, retrieved, 2, recall, mass);
  EXPECT_DOUBLE_EQ(recall.value(1.0), 0.5);
  EXPECT_DOUBLE_EQ(mass.value(1.0), 0.5);
  AddRetrievalQuality(weights, indexed, retrieved, 100, recall, mass);  // of all four
  EXPECT_DOUBLE_EQ(recall.sum, 1.0);
  AddRetrievalQuality({1.0}, {false}, {false}, 100, recall, mass);  // nothing indexed: no sample
  EXPECT_EQ(recall.count, 2);
  EXPECT_EQ(mass.count, 3);
}

TEST(StorageTestRunnerTest, AnswersOverOtherTokensThanTheEnginesWouldBeSeen) {
  // One token among thirty differs: the reference tells it, so a lost or swapped token fails a
  // case.
  v1::TensorSource one, other;
  one.mutable_gaussian()->set_seed(1);
  other.mutable_gaussian()->set_seed(2);
  EXPECT_NE(Rows(one, {0, 0, 1, 2, 32}), Rows(other, {0, 0, 1, 2, 32}));
  EXPECT_NE(Rows(one, {0, 0, 1, 2, 32}), Rows(one, {1, 0, 1, 2, 32}));
  EXPECT_NE(Rows(one, {0, 0, 1, 2, 32}), Rows(one, {0, 1, 1, 2, 32}));
}

TEST(StorageTestRunnerTest, ACaseForAGpuThatIsNotHereIsSkippedAndNoOther) {
  const auto suite =
      ParseStorageTests("test", CaseOf(std::string("given { device: CUDA }\n  ") + kAppend));
  ASSERT_TRUE(suite.ok()) << suite.status();
  const auto result = RunStorageTest(suite->cases(0));
  if (result.ok()) {
    EXPECT_TRUE(result->passed()) << result->Failure();
  } else {
    EXPECT_TRUE(LacksDevice(suite->cases(0), result.status())) << result.status();
  }

  // Whatever the machine, no GPU takes this.
  const auto tiers = ParseStorageTests(
      "test",
      CaseOf(std::string(
                 "given { device: CUDA tiers { directory: \"/tmp\" cache_bytes: 4096 } }\n  ") +
             kAppend));
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  const absl::Status refused = RunStorageTest(tiers->cases(0)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
  EXPECT_FALSE(LacksDevice(tiers->cases(0), refused));
  EXPECT_FALSE(LacksDevice(v1::StorageTestCase(), absl::UnavailableError("CUDA: no device")));
}

TEST(TensorRowsTest, RowsDoNotDependOnHowTheyAreCut) {
  v1::TensorSource gaussian, clustered;
  gaussian.mutable_gaussian()->set_seed(5);
  clustered.mutable_clustered()->set_seed(5);
  clustered.mutable_clustered()->set_clusters(7);
  clustered.mutable_clustered()->set_spread(0.5f);
  for (const v1::TensorSource& source : {gaussian, clustered}) {
    const std::vector<float> whole = Rows(source, {1, 0, 10, 2, 8});
    std::vector<float> pieces = Rows(source, {1, 0, 3, 2, 8});
    const std::vector<float> rest = Rows(source, {1, 3, 7, 2, 8});
    pieces.insert(pieces.end(), rest.begin(), rest.end());
    EXPECT_EQ(whole, pieces);
  }
}

TEST(TensorRowsTest, GaussianRowsHaveTheStandardDeviationAskedFor) {
  v1::TensorSource source;
  source.mutable_gaussian()->set_seed(5);
  source.mutable_gaussian()->set_scale(3.0f);
  const std::vector<float> rows = Rows(source, {0, 0, 1000, 1, 64});
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
  const std::vector<float> rows = Rows(source, {0, 0, 200, 1, 16});
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

double Dot(const std::vector<float>& a, int row_a, const std::vector<float>& b, int row_b) {
  double dot = 0.0;
  for (int d = 0; d < 32; ++d) {
    dot += static_cast<double>(a[row_a * 32 + d]) * b[row_b * 32 + d];
  }
  return dot;
}

TEST(TensorRowsTest, ANeedleAsksForWhatTheHaystackOfItsSeedHides) {
  v1::TensorSource haystack, needle;
  haystack.mutable_haystack()->set_seed(4);
  haystack.mutable_haystack()->add_needles(7);
  haystack.mutable_haystack()->set_needle_tokens(2);
  needle.mutable_needle()->set_seed(4);
  const std::vector<float> keys = Rows(haystack, {0, 0, 20, 2, 32});
  const std::vector<float> queries = Rows(needle, {0, 0, 1, 4, 32, 2});
  for (int row = 0; row < 20; ++row) {
    for (int q_head = 0; q_head < 4; ++q_head) {
      const int kv_head = q_head / 2;
      const double dot = Dot(queries, q_head, keys, row * 2 + kv_head);
      if (row == 7 || row == 8) {
        EXPECT_NEAR(dot, 3.0 * 32, 1e-3);  // strength times the squared length
        EXPECT_LT(std::abs(Dot(queries, q_head, keys, row * 2 + 1 - kv_head)), 2.0 * 32);
      } else {
        EXPECT_LT(std::abs(dot), 2.0 * 32);
      }
    }
  }
}

TEST(TensorRowsTest, LiteralRowsStandForEveryHeadAndEndInZeros) {
  v1::TensorSource literal;
  literal.mutable_literal()->add_rows()->add_values(5.0f);
  literal.mutable_literal()->add_rows();
  EXPECT_THAT(Rows(literal, {1, 30, 2, 2, 2}), ElementsAre(5, 0, 5, 0, 0, 0, 0, 0));
}

}  // namespace
}  // namespace wavekv::testing
