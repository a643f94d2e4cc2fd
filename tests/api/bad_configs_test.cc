// Every mistake in what an engine, a tenant or a step is configured with, as a struct, as text and
// as a file: the status and the words that name it.
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/small_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using testing::AppendRandom;
using testing::Digest;
using ::testing::HasSubstr;
using testing::OpenEngine;
using testing::SmallEngineOptions;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

struct BadConfig {
  std::string name;
  absl::StatusCode code;
  std::string fragment;  // of the message
  std::function<absl::Status()> call;
};

void PrintTo(const BadConfig& bad, std::ostream* out) { *out << bad.name; }

// A good text but for what is put into it; a later field of the same message wins nothing: text
// format refuses to set a field twice.
std::string Config(const std::string& model, const std::string& index, const std::string& rest) {
  return "model {\n  " + model + "\n}\nindex { " + index + " }\n" + rest;
}
constexpr char kModel[] = "num_layers: 2 num_q_heads: 8 num_kv_heads: 2 head_dim_k: 64";
constexpr char kRest[] = "arena_bytes: 1048576";

void AddTexts(std::vector<BadConfig>& table) {
  const auto add = [&](const char* name, const char* fragment, const std::string& text) {
    table.push_back({std::string("Text") + name, kInvalid, fragment,
                     [text] { return ParseEngineOptions(text).status(); }});
  };
  const auto add_model = [&](const char* name, const char* fragment, const char* model) {
    add(name, fragment, Config(model, "", kRest));
  };
  const auto add_index = [&](const char* name, const char* fragment, const char* index) {
    add(name, fragment, Config(kModel, index, kRest));
  };
  const auto add_rest = [&](const char* name, const char* fragment, const char* rest) {
    add(name, fragment, Config(kModel, "", rest));
  };
  add("Empty", "model.num_layers must be in [1, 65536], got 0", "");
  add("OfAnotherLanguage", "1:1", "{\"model\": {\"num_layers\": 2}}");
  add("WithoutAnEnd", "engine config: ", "model { num_layers: 2");
  add("WithOneBraceTooMany", "engine config: ", Config(kModel, "", kRest) + " }");
  add("WithAnUnknownMessage", "5:7", Config(kModel, "", "cache { }"));
  add("BinaryBytes", "2:1", std::string("\x0a\x08\x08\x02\x10\x08\x18\x02\x20\x40", 10));
  add("WithAZeroByte", "engine config: ", Config(kModel, "", kRest) + std::string(1, '\0') + "x");

  add_model("UnknownModelField", "num_experts", "num_experts: 4");
  add_model("LayersMissing", "model.num_layers", "num_q_heads: 8 num_kv_heads: 2 head_dim_k: 64");
  add_model("LayersNegative", "2:", "num_layers: -2");
  add_model("LayersFractional", "2:", "num_layers: 1.5");
  add_model("LayersTwice", "num_layers", "num_layers: 1 num_layers: 2");
  add_model("LayersHuge", "model.num_layers must be in [1, 65536], got 4000000",
            "num_layers: 4000000 num_q_heads: 8 num_kv_heads: 2 head_dim_k: 64");
  add_model("QueryHeadsMissing", "model.num_q_heads",
            "num_layers: 2 num_kv_heads: 2 head_dim_k: 64");
  add_model("QueryHeadsNoMultiple",
            "model.num_q_heads must be a multiple of model.num_kv_heads (3)",
            "num_layers: 2 num_q_heads: 8 num_kv_heads: 3 head_dim_k: 64");
  add_model("KvHeadsMissing", "model.num_kv_heads", "num_layers: 2 num_q_heads: 8 head_dim_k: 64");
  add_model("HeadDimMissing", "model.head_dim_k", "num_layers: 2 num_q_heads: 8 num_kv_heads: 2");
  add_model("HeadDimNoMultipleOfEight", "model.head_dim_k must be a multiple of 8 in [8, 576]",
            "num_layers: 2 num_q_heads: 8 num_kv_heads: 2 head_dim_k: 65");
  add_model("HeadDimTooLarge", "got 584",
            "num_layers: 2 num_q_heads: 8 num_kv_heads: 2 head_dim_k: 584");
  const std::string model = kModel;
  add_model("ValueDimTooLarge", "model.head_dim_v", (model + " head_dim_v: 1024").c_str());
  add_model("DTypeUnknown", "FLOAT8", (model + " kv_dtype: FLOAT8").c_str());
  add_model("DTypeUnspecified", "model.kv_dtype must be FLOAT32, FLOAT16 or BFLOAT16, got 0",
            (model + " kv_dtype: DTYPE_UNSPECIFIED").c_str());
  add_model("DTypeOfALargeNumber", "model.kv_dtype", (model + " kv_dtype: 259").c_str());
  add_model("ScaleNegative", "model.softmax_scale", (model + " softmax_scale: -0.5").c_str());
  add_model("ScaleInfinite", "model.softmax_scale", (model + " softmax_scale: inf").c_str());
  add_model("ScaleNan", "model.softmax_scale", (model + " softmax_scale: nan").c_str());
  add_model("ScaleOfWords", "2:78: Expected double", (model + " softmax_scale: half").c_str());

  add_index("SegmentZero", "index.segment_tokens", "segment_tokens: 0");
  add_index("SegmentNoMultiple", "index.segment_tokens must be a multiple of 64",
            "segment_tokens: 1000");
  add_index("SegmentTooLarge", "got 131072", "segment_tokens: 131072");
  add_index("UpdateNoMultiple", "index.update_tokens must be a multiple of 64",
            "update_tokens: 100");
  add_index("UpdateDividesNot", "index.update_tokens must divide index.segment_tokens (8192)",
            "update_tokens: 192");
  add_index("ClusterOfNoTokens", "index.tokens_per_cluster", "tokens_per_cluster: 0");
  add_index("ClusterMaxBelowAverage", "index.cluster_tokens_max must be in [16, 65536], got 8",
            "cluster_tokens_max: 8");
  add_index("IterationsTooMany", "index.kmeans_iterations", "kmeans_iterations: 1001");
  add_index("SinksTooMany", "index.sink_tokens", "sink_tokens: 65537");
  add_index("WindowNegative", "4:24", "window_tokens: -1");
  add_index("StatisticsFormat", "index.statistics", "statistics: 8");
  add_index("CodesOfThreeBits", "index.code_bits must be 1, 2, 4 or 0, got 3", "code_bits: 3");
  add_index("SuperClustersOfNothing", "index.clusters_per_super", "clusters_per_super: 0");
  add_index("SeedNegative", "4:15", "seed: -1");

  add_rest("ArenaMissing", "arena_bytes must be in [4096,", "");
  add_rest("ArenaTooSmall", "got 4095", "arena_bytes: 4095");
  add_rest("ArenaOfUnits", "5:16", "arena_bytes: 64GiB");
  add_rest("ArenaQuoted", "5:14", "arena_bytes: \"1048576\"");
  const std::string rest = kRest;
  add_rest("WorkersTooMany", "worker_threads must be in [0, 4096], got 5000",
           (rest + " worker_threads: 5000").c_str());
  add_rest("BuildersNone", "build_threads must be in [1, 4096], got 0",
           (rest + " build_threads: 0").c_str());
  add_rest("DeviceUnspecified", "device must be kCpu or kCuda, got 0",
           (rest + " device: DEVICE_UNSPECIFIED").c_str());
  add_rest("DeviceUnknown", "ROCM", (rest + " device: ROCM").c_str());
  add_rest("QuotaOnLimit", "default_quota.on_limit",
           (rest + " default_quota { on_limit: 3 }").c_str());
  add_rest("QuotaNegative", "5:50", (rest + " default_quota { host_bytes: -1 }").c_str());
}

// A file of the test's own, gone when it ends.
class ConfigFile {
 public:
  ConfigFile(const std::string& name, const std::string& text)
      : path_(::testing::TempDir() + "/bad_configs_" + name + ".textproto") {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~ConfigFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

void AddFiles(std::vector<BadConfig>& table) {
  const auto add = [&](const char* name, const char* fragment, const std::string& text) {
    table.push_back({std::string("File") + name, kInvalid, fragment, [name, text] {
                       const ConfigFile file(name, text);
                       const absl::Status status = LoadEngineOptions(file.path()).status();
                       EXPECT_THAT(std::string(status.message()), HasSubstr(file.path()));
                       return status;
                     }});
  };
  add("Empty", "not empty", "");
  add("OfSpaces", "model.num_layers", " \n\n");
  add("WithAnUnknownField", "3:", "model {\n  num_layers: 2\n  layers: 2\n}");
  add("CutShort", "engine config: ", Config(kModel, "", kRest).substr(0, 40));
  add("OutOfRange", "build_threads", Config(kModel, "", std::string(kRest) + " build_threads: 0"));
  table.push_back({"FileMissing", absl::StatusCode::kNotFound, "cannot open /nowhere/engine.config",
                   [] { return LoadEngineOptions("/nowhere/engine.config").status(); }});
  table.push_back({"FileWithoutAName", absl::StatusCode::kNotFound, "cannot open",
                   [] { return LoadEngineOptions("").status(); }});
  table.push_back({"FileIsAFolder", kInvalid, "is it a file",
                   [] { return LoadEngineOptions(::testing::TempDir()).status(); }});
}

void AddStructs(std::vector<BadConfig>& table) {
  const auto add_open = [&](const char* name, absl::StatusCode code, const char* fragment,
                            std::function<void(EngineOptions&)> spoil) {
    table.push_back({std::string("Open") + name, code, fragment, [spoil] {
                       EngineOptions options = SmallEngineOptions();
                       spoil(options);
                       return Engine::Open(options).status();
                     }});
  };
  add_open("WithoutAModel", kInvalid, "model.num_layers", [](auto& o) { o.model = {}; });
  add_open("WithoutAnArena", kInvalid, "arena_bytes", [](auto& o) { o.arena_bytes = 0; });
  add_open("UnknownDType", kInvalid, "model.kv_dtype",
           [](auto& o) { o.model.kv_dtype = DType{4}; });
  add_open("UnevenGroups", kInvalid, "model.num_q_heads", [](auto& o) { o.model.num_q_heads = 5; });
  add_open("UpdateBeyondSegment", kInvalid, "index.update_tokens",
           [](auto& o) { o.index.update_tokens = 256; });
  add_open("NegativeThreads", kInvalid, "worker_threads", [](auto& o) { o.worker_threads = -1; });
  add_open("UnknownDevice", kInvalid, "device", [](auto& o) { o.device = Device{9}; });
  add_open("NegativeQuota", kInvalid, "default_quota.host_bytes",
           [](auto& o) { o.default_quota.host_bytes = -1; });
  add_open("ArenaBeyondTheMachine", absl::StatusCode::kResourceExhausted, "arena_bytes",
           [](auto& o) { o.arena_bytes = std::numeric_limits<int64_t>::max(); });

  const auto add_quota = [&](const char* name, const char* fragment, TenantQuota quota) {
    table.push_back({std::string("Quota") + name, kInvalid, fragment,
                     [quota] { return ValidateTenantQuota(quota); }});
  };
  add_quota("BytesNegative", "quota.host_bytes must be >= 0", {.host_bytes = -1});
  add_quota("SequencesNegative", "quota.max_sequences must be >= 0", {.max_sequences = -1});
  add_quota("OnLimitUnknown", "quota.on_limit must be kReject or kEvictOwn, got 3",
            {.on_limit = TenantQuota::OnLimit{3}});

  const auto add_attend = [&](const char* name, const char* fragment,
                              std::function<void(AttendOptions&)> spoil) {
    table.push_back({std::string("Attend") + name, kInvalid, fragment, [spoil] {
                       AttendOptions options;
                       spoil(options);
                       return ValidateAttendOptions(options);
                     }});
  };
  add_attend("RetrievalAboveOne", "retrieval must be a ratio in [0, 1]",
             [](auto& o) { o.retrieval = Budget::Ratio(1.0001); });
  add_attend("EstimationNegative", "estimation must be a ratio in [0, 1]",
             [](auto& o) { o.estimation = Budget::Ratio(-1); });
  add_attend("EstimationNan", "estimation", [](auto& o) {
    o.estimation = Budget::Ratio(std::numeric_limits<double>::quiet_NaN());
  });
  add_attend("MassUnknown", "mass must be kLowerBound or kSecondOrder, got 0",
             [](auto& o) { o.mass = MassEstimate{0}; });
  add_attend("LseBaseUnknown", "lse_base must be kE or k2, got 0",
             [](auto& o) { o.lse_base = LseBase{0}; });
}

std::vector<BadConfig> BadConfigs() {
  std::vector<BadConfig> table;
  AddTexts(table);
  AddFiles(table);
  AddStructs(table);
  return table;
}

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {
 protected:
  // Beside an engine that must not notice.
  static void SetUpTestSuite() {
    engine_ = OpenEngine();
    sequence_ = *engine_->OpenTenant("tenant")->CreateSequence();
    EXPECT_TRUE(AppendRandom(*engine_, sequence_, 100, 1).ok());
  }
  static void TearDownTestSuite() { engine_.reset(); }

  static std::unique_ptr<Engine> engine_;
  static Sequence sequence_;
};

std::unique_ptr<Engine> BadConfigTest::engine_;
Sequence BadConfigTest::sequence_;

TEST_P(BadConfigTest, IsNamedAndChangesNothing) {
  const auto before = Digest(*engine_, sequence_);
  const int64_t used_bytes = engine_->stats().arena_bytes_used;
  const absl::Status status = GetParam().call();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().fragment));
  ASSERT_TRUE(before.ok());
  EXPECT_EQ(*Digest(*engine_, sequence_), *before);
  EXPECT_EQ(engine_->stats().arena_bytes_used, used_bytes);
}

INSTANTIATE_TEST_SUITE_P(Api, BadConfigTest, ::testing::ValuesIn(BadConfigs()),
                         [](const auto& test) { return test.param.name; });

TEST(GoodConfigTest, TextThatTheBadOnesSpoilIsGood) {
  const auto options = ParseEngineOptions(Config(kModel, "", kRest));
  EXPECT_TRUE(options.ok()) << options.status();
}

}  // namespace
}  // namespace wavekv
