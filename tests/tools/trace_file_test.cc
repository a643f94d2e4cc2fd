#include "tools/trace/trace_file.h"

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tools/safetensors/safetensors.h"

namespace wavekv {
namespace {

using safetensors::Shape;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tinylm::testing::TemporaryFile;

constexpr int64_t kTokens = 6;

// A recording to be spoilt: two layers of one kv head, three queries of two heads.
struct Recording {
  struct Halves {
    Shape shape;
    std::vector<float> values;  // as many as the shape has, filled in when empty
  };
  std::map<std::string, std::string> metadata = {
      {"softmax_scale", "0.5"}, {"n_tokens", "6"},
      {"n_context", "5"},       {"head_dim", "4"},
      {"n_layers", "2"},        {"n_kv_heads", "1"},
      {"q_heads_per_kv", "2"},  {"query_types", "decode, niah"}};
  std::map<std::string, Halves> halves;
  std::map<std::string, std::vector<int32_t>> ints = {
      {"positions", {5, 2, 5}}, {"query_type", {1, 0, 1}}, {"query_correct", {1, 0, 1}}};

  Recording() {
    for (const std::string head : {"layer0.kvhead0", "layer1.kvhead0"}) {
      halves[head + ".k"].shape = {kTokens, 4};
      halves[head + ".v"].shape = {kTokens, 4};
      halves[head + ".q"].shape = {3, 2, 4};
    }
  }

  absl::StatusOr<TraceFile> Open() const {
    safetensors::Writer writer;
    for (const auto& [key, value] : metadata) writer.SetMetadata(key, value);
    for (const auto& [name, tensor] : halves) {
      int64_t count = 1;
      for (const int64_t size : tensor.shape) count *= size;
      const std::vector<float> values =
          tensor.values.empty() ? std::vector<float>(count, 0.5f) : tensor.values;
      EXPECT_TRUE(writer.AddHalves(name, tensor.shape, values).ok());
    }
    for (const auto& [name, values] : ints) {
      EXPECT_TRUE(writer.AddInt32s(name, {static_cast<int64_t>(values.size())}, values).ok());
    }
    const std::string path = TemporaryFile("safetensors");
    EXPECT_TRUE(writer.Write(path).ok());
    return TraceFile::Open(path);
  }
};

TEST(TraceFileTest, FindsTokensQueriesAndHeads) {
  const auto trace = Recording().Open();
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->num_tokens(), kTokens);
  EXPECT_THAT(trace->positions(), ElementsAre(5, 2, 5));
  EXPECT_THAT(trace->query_types(), ElementsAre("decode", "niah"));
  EXPECT_THAT(trace->QueriesOfType("niah"), ElementsAre(0, 2));
  EXPECT_THAT(trace->QueriesOfType("nothing"), IsEmpty());
  ASSERT_EQ(trace->heads().size(), 2u);
  EXPECT_EQ(trace->heads()[1].layer, 1);
  const TraceHead head = trace->head(1);
  EXPECT_EQ(head.softmax_scale, 0.5);
  EXPECT_EQ(head.head_dim_k, 4);
  EXPECT_EQ(head.keys.num_rows, kTokens);
  EXPECT_EQ(head.queries.row_elements, 8);
  EXPECT_EQ(head.keys.dtype, DType::kFloat16);
  EXPECT_THAT(head.keys.name, HasSubstr("tensor 'layer1.kvhead0.k'"));
}

TEST(TraceFileTest, DerivesWhatTheMetadataDoNotSay) {
  Recording recording;
  recording.metadata.clear();
  recording.ints.erase("query_correct");
  const auto trace = recording.Open();
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_DOUBLE_EQ(trace->head(0).softmax_scale, 0.5);  // 1 / sqrt(4)
  EXPECT_THAT(trace->query_types(), ElementsAre("0", "1"));
  EXPECT_THAT(trace->QueriesOfType("0"), ElementsAre(1));
}

TEST(TraceFileTest, LayersAndHeadsMayBeLeftOut) {
  Recording recording;
  recording.metadata["n_layers"] = "32";
  recording.metadata["n_kv_heads"] = "8";
  for (const std::string which : {".k", ".v", ".q"}) {
    recording.halves["layer31.kvhead7" + which] = recording.halves["layer0.kvhead0" + which];
  }
  const auto trace = recording.Open();
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->heads().back().layer, 31);
  EXPECT_EQ(trace->heads().back().kv_head, 7);
}

TEST(TraceFileTest, OtherTensorsAreIgnored) {
  Recording recording;
  recording.halves["layer0.kvhead0.k_before_rope"].shape = {1};
  recording.halves["layer00.kvhead0.k"].shape = {1};
  recording.halves["layerx.kvhead0.k"].shape = {1};
  const auto trace = recording.Open();
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->heads().size(), 2u);
}

TEST(TraceFileTest, NamesTheTensorAndRowThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Recording recording;
    auto& values = recording.halves["layer1.kvhead0.v"].values;
    values.assign(kTokens * 4, 1.0f);
    values[3 * 4 + 2] = bad;
    const auto trace = recording.Open();
    ASSERT_TRUE(trace.ok()) << trace.status();
    std::vector<float> rows(kTokens * 8, -1.0f);
    EXPECT_TRUE(LoadRows(trace->head(1).values, 0, 3, 4, 8, rows.data()).ok());
    EXPECT_EQ(rows[3], 1.0f);
    EXPECT_EQ(rows[4], 0.0f);  // padding
    const absl::Status status = LoadRows(trace->head(1).values, 0, kTokens, 4, 8, rows.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(status.message()),
        HasSubstr("'layer1.kvhead0.v': expected finite numbers, got NaN or infinity in row 3"));
  }
}

TEST(TraceFileTest, AMissingFileIsNotFound) {
  EXPECT_EQ(TraceFile::Open("/nonexistent/trace").status().code(), absl::StatusCode::kNotFound);
}

struct BadFile {
  const char* name;
  std::function<void(Recording&)> spoil;
  const char* message;
};

class BadTraceFilesTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadTraceFilesTest, AreRefusedWithTheReason) {
  Recording recording;
  GetParam().spoil(recording);
  const absl::Status status = recording.Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), HasSubstr("BadTraceFiles"));  // the file's name
}

BadFile WithShape(const char* name, const char* tensor, Shape shape, const char* message) {
  return {name, [=](Recording& r) { r.halves[tensor].shape = shape; }, message};
}

BadFile WithMetadata(const char* name, const char* key, const char* value, const char* message) {
  return {name, [=](Recording& r) { r.metadata[key] = value; }, message};
}

BadFile WithInts(const char* name, const char* tensor, std::vector<int32_t> values,
                 const char* message) {
  return {name, [=](Recording& r) { r.ints[tensor] = values; }, message};
}

BadFile Without(const char* name, const char* tensor, const char* message) {
  const auto spoil = [=](Recording& r) {
    r.halves.erase(tensor);
    r.ints.erase(tensor);
  };
  return {name, spoil, message};
}

INSTANTIATE_TEST_SUITE_P(
    Files, BadTraceFilesTest,
    ::testing::Values(
        BadFile{"NoHeads", [](Recording& r) { r.halves.clear(); },
                "expected tensors layer{l}.kvhead{h}.k, .v and .q, found none"},
        Without("NoKeys", "layer1.kvhead0.k", "tensor 'layer1.kvhead0.k': is missing"),
        Without("NoValues", "layer0.kvhead0.v", "tensor 'layer0.kvhead0.v': is missing"),
        Without("NoQueries", "layer0.kvhead0.q", "tensor 'layer0.kvhead0.q': is missing"),
        Without("NoPositions", "positions", "tensor 'positions': is missing"),
        BadFile{"KeysAreIntegers",
                [](Recording& r) {
                  r.halves.erase("layer0.kvhead0.k");
                  r.ints["layer0.kvhead0.k"].assign(kTokens * 4, 1);
                },
                "'layer0.kvhead0.k': expected dtype F32, F16 or BF16, got I32"},
        BadFile{"PositionsAreHalves",
                [](Recording& r) {
                  r.ints.erase("positions");
                  r.halves["positions"].shape = {3};
                },
                "'positions': expected dtype I32, got F16"},
        WithShape("KeysOfRankThree", "layer0.kvhead0.k", {kTokens, 1, 4},
                  "'layer0.kvhead0.k': expected shape [n_tokens, head_dim] = [*, *] without zeros, "
                  "got [6, 1, 4]"),
        WithShape("NoTokens", "layer0.kvhead0.k", {0, 4}, "got [0, 4]"),
        WithShape("HeadDimZero", "layer0.kvhead0.k", {kTokens, 0}, "got [6, 0]"),
        WithShape("OtherLayerOfOtherLength", "layer1.kvhead0.k", {kTokens + 1, 4},
                  "'layer1.kvhead0.k': expected shape [n_tokens, head_dim] = [6, *] without zeros, "
                  "got [7, 4]"),
        WithShape("FewerValues", "layer0.kvhead0.v", {kTokens - 1, 4},
                  "'layer0.kvhead0.v': expected shape [n_tokens, head_dim of the values] = [6, *] "
                  "without zeros, got [5, 4]"),
        WithShape("QueriesOfRankTwo", "layer0.kvhead0.q", {3, 8}, "got [3, 8]"),
        WithShape("FewerQueries", "layer0.kvhead0.q", {2, 2, 4},
                  "'layer0.kvhead0.q': expected shape [n_queries, q_heads_per_kv, head_dim] = "
                  "[3, *, 4] without zeros, got [2, 2, 4]"),
        WithShape("NoQueryHeads", "layer0.kvhead0.q", {3, 0, 4}, "got [3, 0, 4]"),
        WithShape("QueriesOfOtherHeadDim", "layer0.kvhead0.q", {3, 2, 5}, "got [3, 2, 5]"),
        WithInts("NoPosition", "positions", {},
                 "'positions': expected shape [n_queries], at least 1, got [0]"),
        WithInts("PositionBehindTheTokens", "positions", {5, 6, 5},
                 "'positions': expected positions in [0, 6), got 6 for query 1"),
        WithInts("NegativePosition", "positions", {5, 2, -1},
                 "'positions': expected positions in [0, 6), got -1 for query 2"),
        WithInts("TypesForFewerQueries", "query_type", {0, 1},
                 "'query_type': expected shape [3], got [2]"),
        WithInts("UnknownType", "query_type", {0, 1, 2},
                 "'query_type': expected types in [0, 2), got 2 for query 2"),
        WithInts("CorrectForMoreQueries", "query_correct", {0, 1, 1, 1},
                 "'query_correct': expected shape [3], got [4]"),
        WithInts("FewerTokenIds", "tokens", {1, 2}, "'tokens': expected shape [6], got [2]"),
        WithMetadata("ScaleIsText", "softmax_scale", "one",
                     "metadata 'softmax_scale': expected a finite number > 0, got 'one'"),
        WithMetadata("ScaleIsZero", "softmax_scale", "0", "got '0'"),
        WithMetadata("ScaleIsNegative", "softmax_scale", "-0.5", "got '-0.5'"),
        WithMetadata("ScaleIsNan", "softmax_scale", "nan", "got 'nan'"),
        WithMetadata("ScaleIsInfinite", "softmax_scale", "1e999", "got '1e999'"),
        WithMetadata("CountIsText", "n_tokens", "six",
                     "metadata 'n_tokens': expected an integer >= 0, got 'six'"),
        WithMetadata("CountIsFractional", "n_layers", "2.5", "got '2.5'"),
        WithMetadata("TokensDisagree", "n_tokens", "7",
                     "metadata 'n_tokens': expected 6, as the tensors, got 7"),
        WithMetadata("ContextIsLonger", "n_context", "7",
                     "metadata 'n_context': expected at most the 6 tokens recorded, got 7"),
        WithMetadata("HeadDimDisagrees", "head_dim", "8",
                     "metadata 'head_dim': expected 4, as the tensors, got 8"),
        WithMetadata("GroupDisagrees", "q_heads_per_kv", "1",
                     "metadata 'q_heads_per_kv': expected 2, as the tensors, got 1"),
        WithMetadata("TooFewLayers", "n_layers", "1",
                     "metadata 'n_layers': expected at least 2, as the tensors, got 1"),
        WithMetadata("TooFewHeads", "n_kv_heads", "0",
                     "metadata 'n_kv_heads': expected at least 1, as the tensors, got 0")),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace wavekv
