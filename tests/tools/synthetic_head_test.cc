#include "tools/synthetic/synthetic_head.h"

#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
#include "tools/synthetic/synthetic_statistics.h"
#include "tools/synthetic/synthetic_trace.h"
#include "tools/trace/trace_file.h"

namespace wavekv::synthetic {
namespace {

SyntheticHeadSpec SmallSpec() {
  SyntheticHeadSpec spec;
  spec.num_tokens = 9000;
  spec.num_queries = 12;
  spec.gqa_group_size = 2;
  return spec;
}

SyntheticHead MakeHead(const SyntheticHeadSpec& spec) {
  auto head = SyntheticHead::Create(spec);
  EXPECT_TRUE(head.ok()) << head.status();
  return *std::move(head);
}

using Kind = std::tuple<Sharpness, double>;  // and spectrum exponent

class SyntheticHeadKindTest : public ::testing::TestWithParam<Kind> {};

// The numbers are those published for trained models; they are met on a context of 32K tokens by
// more than the tolerance here, which is for its sampled calibration.
TEST_P(SyntheticHeadKindTest, AttendsAsPublishedForTrainedModels) {
  const auto [sharpness, spectrum] = GetParam();
  SyntheticHeadSpec spec = SmallSpec();
  spec.num_tokens = 32768;
  spec.num_queries = 16;
  spec.num_needles = 3;
  spec.sharpness = sharpness;
  spec.spectrum_exponent = spectrum;
  const SyntheticStatistics s = MeasureStatistics(MakeHead(spec));
  EXPECT_NEAR(s.sink_mass, spec.sink_mass, 0.1);
  EXPECT_NEAR(s.local_mass, spec.local_mass, 0.05);
  EXPECT_NEAR(s.top_mass, TopMassTarget(sharpness), 0.05);
  EXPECT_NEAR(s.needle_mass, 0.5, 0.1);
  const double tokens_for_90 = sharpness == Sharpness::kSharp ? 0.002
                               : sharpness == Sharpness::kMid ? 0.03
                                                              : 0.29;
  EXPECT_GT(s.tokens_for_90, tokens_for_90 / 2.5);
  EXPECT_LT(s.tokens_for_90, tokens_for_90 * 2.5);
  EXPECT_GT(s.step_overlap, 0.5);
  EXPECT_LT(s.step_overlap, 0.85);
  EXPECT_NEAR(s.sink_cosine, -0.85, 0.05);
  EXPECT_LT(s.query_cosine, -0.2);
  EXPECT_GT(s.query_cosine, -0.6);
  EXPECT_GT(s.group_cosine, 0.7);
  EXPECT_NEAR(s.norm_variation, 0.08, 0.02);
  EXPECT_NEAR(s.key_cosine_1, 0.46, 0.1);
  EXPECT_NEAR(s.key_cosine_64, 0.24, 0.08);
  EXPECT_NEAR(s.key_cosine_8192, 0.0, 0.08);
  EXPECT_GT(s.logit_deviation, 1.6);
  EXPECT_LT(s.logit_deviation, 5.0);
}

INSTANTIATE_TEST_SUITE_P(, SyntheticHeadKindTest,
                         ::testing::Combine(::testing::Values(Sharpness::kSharp, Sharpness::kMid,
                                                              Sharpness::kFlat),
                                            ::testing::Values(0.5, 1.0)),
                         [](const ::testing::TestParamInfo<Kind>& kind) {
                           return std::string(SharpnessName(std::get<0>(kind.param))) +
                                  (std::get<1>(kind.param) == 0.5 ? "Even" : "Steep");
                         });

TEST(SyntheticHeadTest, SinkAndLocalMassFollowTheSpec) {
  SyntheticHeadSpec spec = SmallSpec();
  spec.sink_mass = 0.1;
  spec.local_mass = 0.4;
  const SyntheticStatistics s = MeasureStatistics(MakeHead(spec));
  EXPECT_NEAR(s.sink_mass, 0.1, 0.05);
  EXPECT_NEAR(s.local_mass, 0.4, 0.08);
}

TEST(SyntheticHeadTest, RowsDoNotDependOnHowTheyAreRead) {
  const SyntheticHead head = MakeHead(SmallSpec());
  const int dim = head.spec().head_dim;
  std::vector<float> keys(3000 * dim), values(3000 * dim);
  head.tokens().Keys(500, 3000, keys.data());
  head.tokens().Values(500, 3000, values.data());
  std::vector<float> one(dim);
  for (const int64_t token : {500, 1023, 1024, 2047, 3499}) {
    head.tokens().Keys(token, 1, one.data());
    EXPECT_EQ(one, std::vector<float>(keys.begin() + (token - 500) * dim,
                                      keys.begin() + (token - 499) * dim));
    head.tokens().Values(token, 1, one.data());
    EXPECT_EQ(one, std::vector<float>(values.begin() + (token - 500) * dim,
                                      values.begin() + (token - 499) * dim));
  }
}

TEST(SyntheticHeadTest, TheSeedDecidesEverything) {
  SyntheticHeadSpec spec = SmallSpec();
  const SyntheticHead head = MakeHead(spec);
  EXPECT_EQ(head.queries(), MakeHead(spec).queries());
  spec.seed = 2;
  EXPECT_NE(head.queries(), MakeHead(spec).queries());
}

TEST(SyntheticHeadTest, KeysDriftWhileQueriesAreAsked) {
  SyntheticHeadSpec spec = SmallSpec();
  spec.num_queries = 1024;
  spec.gqa_group_size = 1;
  const auto cosine_of_common_part = [&](double drift) {
    spec.drift = drift;
    TokenStreamSpec stream;
    stream.num_tokens = spec.num_tokens;
    stream.drift = drift;
    stream.decode_begin = spec.num_tokens - spec.num_queries;
    const TokenStream tokens(stream);
    // Means over 64 tokens before decoding and at its end.
    std::vector<double> means[2];
    for (int i = 0; i < 2; ++i) {
      std::vector<float> keys(64 * 128);
      tokens.Keys(i == 0 ? stream.decode_begin - 64 : spec.num_tokens - 64, 64, keys.data());
      means[i].resize(128);
      for (size_t j = 0; j < keys.size(); ++j) means[i][j % 128] += keys[j];
    }
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (int d = 0; d < 128; ++d) {
      ab += means[0][d] * means[1][d];
      aa += means[0][d] * means[0][d];
      bb += means[1][d] * means[1][d];
    }
    return ab / std::sqrt(aa * bb);
  };
  EXPECT_LT(cosine_of_common_part(1.0), cosine_of_common_part(0.0) - 0.2);
}

TEST(SyntheticHeadTest, BadSpecsAreRefusedByName) {
  const auto message = [](auto change) {
    SyntheticHeadSpec spec = SmallSpec();
    change(spec);
    return std::string(SyntheticHead::Create(spec).status().message());
  };
  EXPECT_EQ(message([](auto& s) { s.head_dim = 33; }), "head_dim must be even, got 33");
  EXPECT_EQ(message([](auto& s) { s.head_dim = 8; }), "head_dim must be in [32, 256], got 8");
  EXPECT_EQ(message([](auto& s) { s.num_tokens = 1000; }),
            "num_tokens must be in [1036, 4294967296], got 1000");
  EXPECT_EQ(message([](auto& s) { s.sink_mass = 1.0; }), "sink_mass must be in [0, 0.99], got 1");
  EXPECT_EQ(message([](auto& s) { s.local_mass = NAN; }),
            "local_mass must be in [0, 0.9], got nan");
}

TEST(SyntheticTraceTest, IsATraceOfTheHeads) {
  SyntheticHeadSpec spec = SmallSpec();
  spec.num_needles = 2;
  std::vector<SyntheticHead> heads = {MakeHead(spec)};
  spec.seed = 2;
  spec.sharpness = Sharpness::kFlat;
  heads.push_back(MakeHead(spec));
  const std::string path = ::testing::TempDir() + "/synthetic_trace.safetensors";
  ASSERT_TRUE(WriteSyntheticTrace(heads, DType::kFloat32, path).ok());

  const auto trace = TraceFile::Open(path);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->num_tokens(), 9000);
  ASSERT_EQ(trace->heads().size(), 2u);
  EXPECT_EQ(trace->positions().front(), 9000 - 12);
  EXPECT_EQ(trace->positions().back(), 8999);
  EXPECT_EQ(trace->QueriesOfType("needle"), (std::vector<int64_t>{3, 7, 11}));
  const TraceHead head = trace->head(1);
  EXPECT_NEAR(head.softmax_scale, 1.0 / std::sqrt(128.0), 1e-12);
  std::vector<float> want(5 * 128), got(5 * 128);
  heads[1].tokens().Keys(4000, 5, want.data());
  ASSERT_TRUE(LoadRows(head.keys, 4000, 5, 128, 128, got.data()).ok());
  EXPECT_EQ(got, want);
  heads[1].tokens().Values(4000, 5, want.data());
  ASSERT_TRUE(LoadRows(head.values, 4000, 5, 128, 128, got.data()).ok());
  EXPECT_EQ(got, want);
}

TEST(SyntheticTraceTest, RefusesHeadsThatDiffer) {
  SyntheticHeadSpec spec = SmallSpec();
  std::vector<SyntheticHead> heads = {MakeHead(spec)};
  spec.num_tokens += 1;
  heads.push_back(MakeHead(spec));
  EXPECT_EQ(WriteSyntheticTrace(heads, DType::kFloat16, "/nonexistent/x").code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSyntheticTrace({}, DType::kFloat16, "/nonexistent/x").code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace wavekv::synthetic
