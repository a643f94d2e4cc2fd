#include "tools/trace/eval_report.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tools/trace/error_plot.h"
#include "tools/trace/eval_arguments.h"

namespace wavekv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

absl::StatusOr<EvalArguments> Parse(std::vector<const char*> words) {
  words.insert(words.begin(), "wavekv-trace-eval");
  words.push_back(nullptr);
  return ParseEvalArguments(static_cast<int>(words.size()) - 1, words.data());
}

TEST(EvalArgumentsTest, DefaultsAreTheEngines) {
  const auto arguments = Parse({"a.safetensors", "b.safetensors"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_THAT(arguments->files, ElementsAre("a.safetensors", "b.safetensors"));
  ASSERT_EQ(arguments->eval.budgets.size(), 1u);
  EXPECT_EQ(arguments->eval.budgets[0].retrieval.ratio(), AttendOptions().retrieval.ratio());
  EXPECT_EQ(arguments->eval.budgets[0].mass, AttendOptions().mass);
  EXPECT_THAT(arguments->eval.recall_ks, ElementsAre(100));
  EXPECT_FALSE(arguments->eval.grow);
  EXPECT_FALSE(arguments->eval.kv_dtype.has_value());
}

TEST(EvalArgumentsTest, ReadsEveryOption) {
  const auto arguments = Parse({"--retrieval",
                                "1%,512t",
                                "f",
                                "--estimation=0,1",
                                "--mass",
                                "lower-bound",
                                "--k",
                                "10,1000",
                                "--scale",
                                "2",
                                "--query-type",
                                "decode",
                                "--layers",
                                "0,4-7",
                                "--heads",
                                "1",
                                "--kv-dtype",
                                "fp16",
                                "--statistics",
                                "int8",
                                "--code-bits",
                                "2",
                                "--clusters-per-super",
                                "9",
                                "--zones",
                                "clusters",
                                "--grow",
                                "--threads",
                                "3",
                                "--csv",
                                "--tokens-per-cluster",
                                "8",
                                "--cluster-tokens-max",
                                "24",
                                "--kmeans-iterations",
                                "0",
                                "--seed",
                                "7",
                                "--open",
                                "0.4",
                                "--target-error",
                                "0.02",
                                "--plot",
                                "p.svg"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  ASSERT_EQ(arguments->eval.budgets.size(), 4u);
  EXPECT_DOUBLE_EQ(arguments->eval.budgets[1].retrieval.ratio(), 0.01);
  EXPECT_EQ(arguments->eval.budgets[1].estimation.ratio(), 1.0);
  EXPECT_EQ(arguments->eval.budgets[2].retrieval.tokens(), 512);
  EXPECT_EQ(arguments->eval.budgets[2].mass, MassEstimate::kLowerBound);
  EXPECT_THAT(arguments->eval.recall_ks, ElementsAre(10, 1000));
  EXPECT_EQ(arguments->eval.scale_factor, 2.0);
  EXPECT_EQ(arguments->query_type, "decode");
  EXPECT_THAT(arguments->layers, ElementsAre(Pair(0, 0), Pair(4, 7)));
  EXPECT_THAT(arguments->kv_heads, ElementsAre(Pair(1, 1)));
  EXPECT_EQ(arguments->eval.kv_dtype, DType::kFloat16);
  EXPECT_EQ(arguments->eval.index.statistics, StatisticsFormat::kInt8);
  EXPECT_EQ(arguments->eval.index.code_bits, 2);
  EXPECT_EQ(arguments->eval.index.clusters_per_super, 9);
  EXPECT_EQ(arguments->eval.budgets[1].zones, Zones::kClusters);
  EXPECT_TRUE(arguments->eval.grow);
  EXPECT_EQ(arguments->eval.num_threads, 3);
  EXPECT_EQ(arguments->eval.index.tokens_per_cluster, 8);
  EXPECT_EQ(arguments->eval.index.cluster_tokens_max, 24);
  EXPECT_EQ(arguments->eval.index.kmeans_iterations, 0);
  EXPECT_EQ(arguments->eval.index.seed, 7u);
  EXPECT_EQ(arguments->plot, "p.svg");
  EXPECT_EQ(arguments->eval.budgets[0].open.ratio(), 0.4);
  EXPECT_EQ(arguments->eval.budgets[0].target_error, 0.02);
  EXPECT_EQ(arguments->format, EvalArguments::Format::kCsv);
}

TEST(EvalArgumentsTest, JsonAlwaysHasTheDefaultsAndRecall100) {
  const auto arguments = Parse({"f", "--json", "--retrieval", "0.5,0.018", "--k", "5"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->eval.budgets.size(), 2u);
  EXPECT_EQ(arguments->default_budget, 1u);
  EXPECT_THAT(arguments->eval.recall_ks, ElementsAre(5, 100));
  const auto without = Parse({"f", "--json", "--mass", "lower-bound"});
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(without->eval.budgets.size(), 2u);
  EXPECT_EQ(without->eval.budgets[without->default_budget].mass, MassEstimate::kSecondOrder);
}

TEST(EvalArgumentsTest, BadOptionsAreNamed) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{}, "expected at least one trace file"},
      {{"f", "--budget", "1"}, "cannot understand the option --budget"},
      {{"f", "-x"}, "cannot understand the option -x"},
      {{"f", "--k"}, "--k: expected a value"},
      {{"f", "--retrieval", "1.1"}, "--retrieval: expected shares from 0 to 1"},
      {{"f", "--retrieval", "0.1,"}, "--retrieval: expected shares from 0 to 1"},
      {{"f", "--retrieval", "nan"}, "got 'nan'"},
      {{"f", "--estimation", "-1t"}, "--estimation: expected a number of tokens such as 512t"},
      {{"f", "--sketch", "2"}, "--sketch: expected shares from 0 to 1"},
      {{"f", "--zones", "paper,all"}, "--zones: expected sketch, clusters or paper, got 'all'"},
      {{"f", "--code-bits", "3"}, "index.code_bits must be 1, 2, 4 or 0, got 3"},
      {{"f", "--mass", "best"}, "--mass: expected second-order or lower-bound, got 'best'"},
      {{"f", "--target-error", "-1"},
       "--target-error: expected errors >= 0, such as 0.02, got '-1'"},
      {{"f", "--k", "0"}, "--k: expected numbers >= 1, got '0'"},
      {{"f", "--scale", "0"}, "--scale: expected a factor > 0, got '0'"},
      {{"f", "--scale", "inf"}, "--scale: expected a factor > 0, got 'inf'"},
      {{"f", "--layers", "3-1"}, "--layers: expected numbers and ranges such as 0,4-7, got '3-1'"},
      {{"f", "--heads", "a"}, "--heads: expected numbers and ranges"},
      {{"f", "--kv-dtype", "fp8"}, "--kv-dtype: expected fp32, fp16 or bf16, got 'fp8'"},
      {{"f", "--statistics", ""}, "--statistics: expected fp32, int8 or int4, got ''"},
      {{"f", "--threads", "-1"}, "--threads: expected an integer from 0 to 1024, got '-1'"},
      {{"f", "--seed", "x"}, "--seed: expected an integer >= 0, got 'x'"},
      {{"f", "--kmeans-iterations", "-1"}, "--kmeans-iterations: expected an integer from 0"},
      {{"f", "--kmeans-iterations", "1001"}, "index.kmeans_iterations must be in [0, 1000]"},
      {{"f", "--cluster-tokens-max", "8"}, "index.cluster_tokens_max must be in [16, 65536]"},
      {{"f", "--tokens-per-cluster", "0"}, "index.tokens_per_cluster must be in [1, 65536]"},
      {{"f", "--csv", "--json"}, "expected one of --csv and --json"},
  };
  for (const auto& [words, message] : cases) {
    const absl::Status status = Parse(words).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

// Two heads of one file, one budget.
EvalReport Report() {
  TraceSummary summary;
  summary.num_samples = 4;
  summary.rel_err_mean = 0.25;
  summary.rel_err_p95 = 0.5;
  summary.recalls = {0.75};
  summary.mass = 0.875;
  summary.tokens_exact = 10.0;
  summary.bytes_ratio = 0.125;
  EvalReport report;
  report.rows = {{"a,b.safetensors", 0, 0, 0, summary}, {"a,b.safetensors", 3, 1, 0, summary}};
  report.budgets = {summary};
  return report;
}

TEST(EvalReportTest, JsonHasRowsBudgetsAndOverall) {
  const auto arguments = Parse({"a,b.safetensors", "--json"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  const auto json = nlohmann::json::parse(FormatReport(*arguments, Report()));
  EXPECT_EQ(json["rows"].size(), 2u);
  EXPECT_EQ(json["rows"][1]["layer"], 3);
  EXPECT_EQ(json["rows"][1]["kv_head"], 1);
  EXPECT_EQ(json["rows"][1]["file"], "a,b.safetensors");
  EXPECT_EQ(json["budgets"].size(), 1u);
  for (const char* key : {"rel_err_mean", "rel_err_p95", "rel_err_p99", "bytes_ratio",
                          "exact_tokens_ratio", "recall100", "mass"}) {
    EXPECT_TRUE(json["overall"][key].is_number()) << key;
  }
  EXPECT_EQ(json["overall"]["rel_err_mean"], 0.25);
  EXPECT_EQ(json["overall"]["retrieval"], 0.018);
}

TEST(EvalReportTest, CsvHasARowPerHeadAndOneOverAll) {
  const auto arguments = Parse({"a,b.safetensors", "--csv"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  const std::string text = FormatReport(*arguments, Report());
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
  EXPECT_THAT(
      text,
      HasSubstr("\n\"a,b.safetensors\",3,1,sketch,0.018,0.25,0.232,1,0,second-order,4,0.25,0.5,"));
  EXPECT_THAT(text, HasSubstr("\noverall,all,all,"));
}

TEST(EvalReportTest, TheTableNamesFileHeadsAndColumns) {
  const auto arguments = Parse({"a,b.safetensors"});
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  const std::string text = FormatReport(*arguments, Report());
  EXPECT_THAT(text, HasSubstr("a,b.safetensors\n"));
  EXPECT_THAT(text, HasSubstr("recall@100"));
  EXPECT_THAT(text, HasSubstr("overall, 4 samples"));
  EXPECT_THAT(text, HasSubstr("\n  all  all   sketch     0.018      0.25    1      0     0.7500"));
}

TEST(ErrorPlotTest, HasADotForEverySample) {
  const std::string svg = FormatErrorPlot("a < b", {0.1, 0.0, 5.0}, {0.2, 1e-9, 1e9});
  EXPECT_THAT(svg, HasSubstr("a &lt; b"));
  // At the distance of 3 decades, then at both ends.
  EXPECT_THAT(svg, HasSubstr(">0.0001<"));
  EXPECT_THAT(svg, HasSubstr("M390.1 140.0h0M60.0 440.0h0M460.0 40.0h0"));
}

}  // namespace
}  // namespace wavekv
