// Options: what is refused and how it is said, and what a config file turns into.
#include "wavekv/options.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::string Message(const absl::Status& status) { return std::string(status.message()); }

EngineOptions ValidOptions() {
  EngineOptions options;
  options.model = {.num_layers = 2, .num_q_heads = 8, .num_kv_heads = 2, .head_dim_k = 64};
  options.arena_bytes = 1 << 20;
  return options;
}

struct BadOption {
  const char* field;  // the message begins with it
  const char* got;    // and ends with this
  std::function<void(EngineOptions&)> set;
};

std::vector<BadOption> BadOptions() {
  return {
      {"model.num_layers", "got 0", [](auto& o) { o.model.num_layers = 0; }},
      {"model.num_layers", "got -1", [](auto& o) { o.model.num_layers = -1; }},
      {"model.num_layers", "got 65537", [](auto& o) { o.model.num_layers = 65537; }},
      {"model.num_q_heads", "got 0", [](auto& o) { o.model.num_q_heads = 0; }},
      {"model.num_q_heads", "got 70000", [](auto& o) { o.model.num_q_heads = 70000; }},
      {"model.num_q_heads", "got 7", [](auto& o) { o.model.num_q_heads = 7; }},
      {"model.num_kv_heads", "got 0", [](auto& o) { o.model.num_kv_heads = 0; }},
      {"model.num_kv_heads", "got -2", [](auto& o) { o.model.num_kv_heads = -2; }},
      {"model.num_q_heads", "got 8", [](auto& o) { o.model.num_kv_heads = 16; }},
      {"model.head_dim_k", "got 0", [](auto& o) { o.model.head_dim_k = 0; }},
      {"model.head_dim_k", "got 100", [](auto& o) { o.model.head_dim_k = 100; }},
      {"model.head_dim_k", "got 584", [](auto& o) { o.model.head_dim_k = 584; }},
      {"model.head_dim_k", "got -8", [](auto& o) { o.model.head_dim_k = -8; }},
      {"model.head_dim_v", "got 4", [](auto& o) { o.model.head_dim_v = 4; }},
      {"model.head_dim_v", "got -64", [](auto& o) { o.model.head_dim_v = -64; }},
      {"model.head_dim_v", "got 1024", [](auto& o) { o.model.head_dim_v = 1024; }},
      {"model.kv_dtype", "got 0", [](auto& o) { o.model.kv_dtype = DType{0}; }},
      {"model.kv_dtype", "got 9", [](auto& o) { o.model.kv_dtype = DType{9}; }},
      {"model.softmax_scale", "got -1", [](auto& o) { o.model.softmax_scale = -1.0f; }},
      {"model.softmax_scale", "got nan", [](auto& o) { o.model.softmax_scale = std::nanf(""); }},
      {"model.softmax_scale", "got inf", [](auto& o) { o.model.softmax_scale = kInf; }},
      {"index.segment_tokens", "got 0", [](auto& o) { o.index.segment_tokens = 0; }},
      {"index.segment_tokens", "got 100", [](auto& o) { o.index.segment_tokens = 100; }},
      {"index.segment_tokens", "got -64", [](auto& o) { o.index.segment_tokens = -64; }},
      {"index.segment_tokens", "got 65600", [](auto& o) { o.index.segment_tokens = 65600; }},
      {"index.update_tokens", "got 0", [](auto& o) { o.index.update_tokens = 0; }},
      {"index.update_tokens", "got 65", [](auto& o) { o.index.update_tokens = 65; }},
      {"index.update_tokens", "got 192", [](auto& o) { o.index.update_tokens = 192; }},
      {"index.update_tokens", "got 16384", [](auto& o) { o.index.update_tokens = 16384; }},
      {"index.tokens_per_cluster", "got 0", [](auto& o) { o.index.tokens_per_cluster = 0; }},
      {"index.tokens_per_cluster", "got -3", [](auto& o) { o.index.tokens_per_cluster = -3; }},
      {"index.tokens_per_cluster", "got 70000",
       [](auto& o) { o.index.tokens_per_cluster = 70000; }},
      {"index.cluster_tokens_max", "got 15", [](auto& o) { o.index.cluster_tokens_max = 15; }},
      {"index.cluster_tokens_max", "got 70000",
       [](auto& o) { o.index.cluster_tokens_max = 70000; }},
      {"index.kmeans_iterations", "got -1", [](auto& o) { o.index.kmeans_iterations = -1; }},
      {"index.kmeans_iterations", "got 1001", [](auto& o) { o.index.kmeans_iterations = 1001; }},
      {"index.sink_tokens", "got -1", [](auto& o) { o.index.sink_tokens = -1; }},
      {"index.sink_tokens", "got 65537", [](auto& o) { o.index.sink_tokens = 65537; }},
      {"index.window_tokens", "got -1", [](auto& o) { o.index.window_tokens = -1; }},
      {"index.window_tokens", "got 9223372036854775807",
       [](auto& o) { o.index.window_tokens = std::numeric_limits<int64_t>::max(); }},
      {"index.statistics", "got 77", [](auto& o) { o.index.statistics = StatisticsFormat{77}; }},
      {"index.code_bits", "must be 1, 2, 4 or 0, got 3", [](auto& o) { o.index.code_bits = 3; }},
      {"index.clusters_per_super", "got 0", [](auto& o) { o.index.clusters_per_super = 0; }},
      {"arena_bytes", "got 0", [](auto& o) { o.arena_bytes = 0; }},
      {"arena_bytes", "got 4095", [](auto& o) { o.arena_bytes = 4095; }},
      {"arena_bytes", "got -1", [](auto& o) { o.arena_bytes = -1; }},
      {"worker_threads", "got -1", [](auto& o) { o.worker_threads = -1; }},
      {"worker_threads", "got 4097", [](auto& o) { o.worker_threads = 4097; }},
      {"build_threads", "got 0", [](auto& o) { o.build_threads = 0; }},
      {"build_threads", "got 4097", [](auto& o) { o.build_threads = 4097; }},
      {"prefault_threads", "got -1", [](auto& o) { o.prefault_threads = -1; }},
      {"prefault_threads", "got 4097", [](auto& o) { o.prefault_threads = 4097; }},
      {"device", "got 0", [](auto& o) { o.device = Device{0}; }},
      {"device", "got 3", [](auto& o) { o.device = Device{3}; }},
      {"gpu.device", "got -1", [](auto& o) { o.gpu.device = -1; }},
      {"gpu.device", "got 2147483647",
       [](auto& o) { o.gpu.device = std::numeric_limits<int>::max(); }},
      {"gpu.workspace_bytes", "got -1", [](auto& o) { o.gpu.workspace_bytes = -1; }},
      {"gpu.workspace_bytes", "got 9223372036854775807",
       [](auto& o) { o.gpu.workspace_bytes = std::numeric_limits<int64_t>::max(); }},
      {"gpu.staging_bytes", "got 0", [](auto& o) { o.gpu.staging_bytes = 0; }},
      {"gpu.staging_bytes", "got 1048575", [](auto& o) { o.gpu.staging_bytes = (1 << 20) - 1; }},
      {"default_quota.host_bytes", "got -1", [](auto& o) { o.default_quota.host_bytes = -1; }},
      {"default_quota.max_sequences", "got -5",
       [](auto& o) { o.default_quota.max_sequences = -5; }},
      {"default_quota.on_limit", "got 0",
       [](auto& o) { o.default_quota.on_limit = TenantQuota::OnLimit{0}; }},
      {"default_quota.backing_bytes", "got -1",
       [](auto& o) { o.default_quota.backing_bytes = -1; }},
      {"tiers.directory", "got cache_bytes 4096 without",
       [](auto& o) { o.tiers.cache_bytes = 4096; }},
      {"tiers.cache_bytes", "got 0", [](auto& o) { o.tiers.directory = "/tmp"; }},
      {"tiers.cache_bytes", "got -1",
       [](auto& o) { o.tiers = {.directory = "/tmp", .cache_bytes = -1}; }},
      {"tiers.backing_bytes", "got -1",
       [](auto& o) {
         o.tiers = {.directory = "/tmp", .backing_bytes = -1, .cache_bytes = 1 << 20};
       }},
      {"tiers.block_tokens", "got -1",
       [](auto& o) {
         o.tiers = {.directory = "/tmp", .cache_bytes = 1 << 20, .block_tokens = -1};
       }},
      {"tiers.block_tokens", "got 2048",
       [](auto& o) {
         o.tiers = {.directory = "/tmp",
                    .cache_bytes = 1 << 20,
                    .block_tokens = 2 * o.index.update_tokens};
       }},
      {"tiers.replacement", "got \"random\"",
       [](auto& o) {
         o.tiers = {.directory = "/tmp", .cache_bytes = 1 << 20, .replacement = "random"};
       }},
      {"tiers.prefault_threads", "got -1",
       [](auto& o) {
         o.tiers = {.directory = "/tmp", .cache_bytes = 1 << 20, .prefault_threads = -1};
       }},
  };
}

TEST(OptionsTest, EveryOptionOutOfRangeIsRefusedByItsNameWithWhatCame) {
  for (const BadOption& bad : BadOptions()) {
    EngineOptions options = ValidOptions();
    bad.set(options);
    const absl::Status status = ValidateEngineOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field << " " << bad.got;
    EXPECT_THAT(Message(status), StartsWith(bad.field));
    EXPECT_THAT(Message(status), ::testing::EndsWith(bad.got));
    EXPECT_EQ(Engine::Open(options).status(), status) << "Open must refuse what validation does";
  }
}

TEST(OptionsTest, LimitsThemselvesAreAllowed) {
  const std::vector<std::function<void(EngineOptions&)>> limits = {
      [](auto&) {},
      [](auto& o) { o.model.num_layers = 65536; },
      [](auto& o) { o.model.num_q_heads = o.model.num_kv_heads = 1; },
      [](auto& o) { o.model.num_kv_heads = 8; },
      [](auto& o) { o.model.head_dim_k = 8; },
      [](auto& o) { o.model.head_dim_k = 576; },
      [](auto& o) { o.model.head_dim_v = 576; },
      [](auto& o) { o.index.segment_tokens = 65536; },
      [](auto& o) { o.index.segment_tokens = o.index.update_tokens = 64; },
      [](auto& o) { o.index.update_tokens = 8192; },
      [](auto& o) { o.index.tokens_per_cluster = o.index.cluster_tokens_max = 1; },
      [](auto& o) { o.index.kmeans_iterations = 0; },
      [](auto& o) { o.index.sink_tokens = 0; },
      [](auto& o) { o.index.sink_tokens = 65536; },
      [](auto& o) { o.index.window_tokens = 0; },
      [](auto& o) { o.arena_bytes = 4096; },
      [](auto& o) { o.arena_bytes = std::numeric_limits<int64_t>::max(); },
      [](auto& o) { o.worker_threads = 4096; },
      [](auto& o) { o.build_threads = 4096; },
      [](auto& o) { o.gpu.staging_bytes = 1 << 20; },
      [](auto& o) { o.default_quota.host_bytes = std::numeric_limits<int64_t>::max(); },
      [](auto& o) { o.default_quota.on_limit = TenantQuota::OnLimit::kEvictOwn; },
  };
  for (size_t i = 0; i < limits.size(); ++i) {
    EngineOptions options = ValidOptions();
    limits[i](options);
    EXPECT_TRUE(ValidateEngineOptions(options).ok()) << i << ": " << ValidateEngineOptions(options);
  }
}

TEST(OptionsTest, ArenaTheMachineCannotMapIsResourceExhausted) {
  EngineOptions options = ValidOptions();
  options.arena_bytes = std::numeric_limits<int64_t>::max();
  const absl::Status status = Engine::Open(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("arena_bytes"));
}

TEST(OptionsTest, DeviceThatBuildOrMachineLacksIsNotOpened) {
  EngineOptions options = ValidOptions();
  options.device = Device::kCuda;
  const absl::Status status = Engine::Open(options).status();
  if (status.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_TRUE(status.code() == absl::StatusCode::kUnimplemented ||
              status.code() == absl::StatusCode::kUnavailable)
      << status;
}

TEST(OptionsTest, ArenaOfAGpuHasRoomForARecordOfEachSealedHead) {
  EngineOptions options = ValidOptions();
  int num_larger = 0;  // extents are whole blocks, so that not every one grows
  for (options.index.update_tokens = 64; options.index.update_tokens <= 8192;
       options.index.update_tokens *= 2) {
    const int64_t tokens = 4 * 8192;
    options.device = Device::kCpu;
    const int64_t on_cpu = ArenaBytesFor(options, tokens);
    options.device = Device::kCuda;
    EXPECT_GE(ArenaBytesFor(options, tokens), on_cpu) << options.index.update_tokens;
    num_larger += ArenaBytesFor(options, tokens) > on_cpu ? 1 : 0;
  }
  EXPECT_GT(num_larger, 0);
}

TEST(OptionsTest, BadTenantQuotasAreRefusedByName) {
  TenantQuota quota;
  quota.host_bytes = -1;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.host_bytes"));
  quota = {};
  quota.max_sequences = -1;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.max_sequences"));
  quota = {};
  quota.on_limit = TenantQuota::OnLimit{7};
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.on_limit"));
  quota = {};
  quota.backing_bytes = -1;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.backing_bytes"));
  quota = {};
  quota.cache_bytes = -1;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.cache_bytes"));
  quota = {};
  quota.reserved_cache_bytes = -1;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.reserved_cache_bytes"));
  quota.reserved_cache_bytes = 4097;
  EXPECT_TRUE(ValidateTenantQuota(quota).ok());
  quota.cache_bytes = 4096;
  EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.reserved_cache_bytes"));
  for (const double weight : {0.0, -1.0, kNan, double{kInf}}) {
    quota = {};
    quota.cache_weight = weight;
    EXPECT_THAT(Message(ValidateTenantQuota(quota)), StartsWith("quota.cache_weight")) << weight;
  }
  EXPECT_TRUE(ValidateTenantQuota({}).ok());
}

TEST(OptionsTest, BadAttendOptionsAreRefusedByName) {
  AttendOptions options;
  for (const double ratio : {-0.001, 1.001, kNan, double{kInf}, -double{kInf}}) {
    options = {};
    options.retrieval = Budget::Ratio(ratio);
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("retrieval")) << ratio;
    options = {};
    options.estimation = Budget::Ratio(ratio);
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("estimation")) << ratio;
  }
  for (const double ratio : {-0.001, 1.001, kNan}) {
    options = {};
    options.sketch = Budget::Ratio(ratio);
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("sketch")) << ratio;
    options = {};
    options.open = Budget::Ratio(ratio);
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("open")) << ratio;
  }
  for (const double error : {-0.01, kNan, double{kInf}}) {
    options = {};
    options.target_error = error;
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("target_error")) << error;
  }
  options = AttendOptions::Paper();
  options.target_error = 0.1;
  EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("target_error must be 0 with"));
  options = {};
  options.exact_below_tokens = -2;
  EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("exact_below_tokens"));
  for (const absl::Duration wait : {absl::Nanoseconds(-1), -absl::InfiniteDuration()}) {
    options = {};
    options.miss_deadline = wait;
    EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("miss_deadline")) << wait;
  }
  options = {};
  options.lse_base = LseBase{0};
  EXPECT_THAT(Message(ValidateAttendOptions(options)), StartsWith("lse_base"));
  EXPECT_TRUE(ValidateAttendOptions({}).ok());
  EXPECT_TRUE(ValidateAttendOptions(AttendOptions::Exact()).ok());
}

TEST(BudgetTest, RatioIsRoundedUpToTokensAndTokensAreCapped) {
  EXPECT_EQ(Budget::Ratio(0.0).Resolve(1000), 0);
  EXPECT_EQ(Budget::Ratio(1e-9).Resolve(1000), 1);
  EXPECT_EQ(Budget::Ratio(0.5).Resolve(1001), 501);
  EXPECT_EQ(Budget::Ratio(1.0).Resolve(1000), 1000);
  EXPECT_EQ(Budget::Ratio(0.5).Resolve(0), 0);
  EXPECT_EQ(Budget::All().Resolve(std::numeric_limits<int64_t>::max()),
            std::numeric_limits<int64_t>::max());
  EXPECT_EQ(Budget::Tokens(64).Resolve(1000), 64);
  EXPECT_EQ(Budget::Tokens(64).Resolve(10), 10);
  EXPECT_EQ(Budget::Tokens(-5).Resolve(10), 0);
  EXPECT_FALSE(Budget::Tokens(0).is_ratio());
}

constexpr char kMinimalConfig[] = R"(
    model { num_layers: 2 num_q_heads: 8 num_kv_heads: 2 head_dim_k: 64 }
    arena_bytes: 1048576)";

constexpr char kFullConfig[] = R"(
    # Every field, none at its default.
    model {
      num_layers: 3
      num_q_heads: 14
      num_kv_heads: 2
      head_dim_k: 80
      head_dim_v: 96
      kv_dtype: FLOAT16
      softmax_scale: 0.25
    }
    index {
      segment_tokens: 4096
      update_tokens: 512
      tokens_per_cluster: 8
      cluster_tokens_max: 40
      kmeans_iterations: 7
      sink_tokens: 5
      window_tokens: 100
      statistics: STATISTICS_INT8
      clusters_per_super: 9
      code_bits: 2
      seed: 18446744073709551615
    }
    arena_bytes: 8388608
    worker_threads: 3
    build_threads: 2
    prefault_threads: 5
    default_quota { host_bytes: 4194304 max_sequences: 9 on_limit: EVICT_OWN
                    backing_bytes: 100 cache_bytes: 60 reserved_cache_bytes: 50 cache_weight: 2.5 }
    tiers {
      directory: "/mnt/ssd"
      backing_bytes: 1000
      cache_bytes: 900
      block_tokens: 6
      replacement: "slru"
      prefault_threads: 4
    }
    device: CUDA
    gpu { device: 1 workspace_bytes: 3000000 staging_bytes: 2000000 })";

TEST(EngineConfigTest, EveryFieldReachesTheOptions) {
  const auto options = ParseEngineOptions(kFullConfig);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->model.num_layers, 3);
  EXPECT_EQ(options->model.num_q_heads, 14);
  EXPECT_EQ(options->model.num_kv_heads, 2);
  EXPECT_EQ(options->model.head_dim_k, 80);
  EXPECT_EQ(options->model.head_dim_v, 96);
  EXPECT_EQ(options->model.kv_dtype, DType::kFloat16);
  EXPECT_EQ(options->model.softmax_scale, 0.25f);
  EXPECT_EQ(options->index.segment_tokens, 4096);
  EXPECT_EQ(options->index.update_tokens, 512);
  EXPECT_EQ(options->index.tokens_per_cluster, 8);
  EXPECT_EQ(options->index.cluster_tokens_max, 40);
  EXPECT_EQ(options->index.kmeans_iterations, 7);
  EXPECT_EQ(options->index.sink_tokens, 5);
  EXPECT_EQ(options->index.window_tokens, 100);
  EXPECT_EQ(options->index.statistics, StatisticsFormat::kInt8);
  EXPECT_EQ(options->index.clusters_per_super, 9);
  EXPECT_EQ(options->index.code_bits, 2);
  EXPECT_EQ(options->index.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(options->arena_bytes, 8388608);
  EXPECT_EQ(options->worker_threads, 3);
  EXPECT_EQ(options->build_threads, 2);
  EXPECT_EQ(options->prefault_threads, 5);
  EXPECT_EQ(options->default_quota.host_bytes, 4194304);
  EXPECT_EQ(options->default_quota.max_sequences, 9);
  EXPECT_EQ(options->default_quota.on_limit, TenantQuota::OnLimit::kEvictOwn);
  EXPECT_EQ(options->default_quota.backing_bytes, 100);
  EXPECT_EQ(options->default_quota.cache_bytes, 60);
  EXPECT_EQ(options->default_quota.reserved_cache_bytes, 50);
  EXPECT_EQ(options->default_quota.cache_weight, 2.5);
  EXPECT_EQ(options->tiers.directory, "/mnt/ssd");
  EXPECT_EQ(options->tiers.backing_bytes, 1000);
  EXPECT_EQ(options->tiers.cache_bytes, 900);
  EXPECT_EQ(options->tiers.block_tokens, 6);
  EXPECT_EQ(options->tiers.replacement, "slru");
  EXPECT_EQ(options->tiers.prefault_threads, 4);
  EXPECT_EQ(options->device, Device::kCuda);
  EXPECT_EQ(options->gpu.device, 1);
  EXPECT_EQ(options->gpu.workspace_bytes, 3000000);
  EXPECT_EQ(options->gpu.staging_bytes, 2000000);
  EXPECT_EQ(options->executor, nullptr);
}

TEST(EngineConfigTest, FieldsLeftOutKeepTheDefaultsOfTheHeader) {
  const auto options = ParseEngineOptions(kMinimalConfig);
  ASSERT_TRUE(options.ok()) << options.status();
  const EngineOptions defaults;
  EXPECT_EQ(options->model.head_dim_v, 0);
  EXPECT_EQ(options->model.kv_dtype, defaults.model.kv_dtype);
  EXPECT_EQ(options->model.softmax_scale, 0.0f);
  EXPECT_EQ(options->index.segment_tokens, defaults.index.segment_tokens);
  EXPECT_EQ(options->index.update_tokens, defaults.index.update_tokens);
  EXPECT_EQ(options->index.tokens_per_cluster, defaults.index.tokens_per_cluster);
  EXPECT_EQ(options->index.cluster_tokens_max, defaults.index.cluster_tokens_max);
  EXPECT_EQ(options->index.kmeans_iterations, defaults.index.kmeans_iterations);
  EXPECT_EQ(options->index.sink_tokens, defaults.index.sink_tokens);
  EXPECT_EQ(options->index.window_tokens, defaults.index.window_tokens);
  EXPECT_EQ(options->index.statistics, defaults.index.statistics);
  EXPECT_EQ(options->index.clusters_per_super, defaults.index.clusters_per_super);
  EXPECT_EQ(options->index.code_bits, defaults.index.code_bits);
  EXPECT_EQ(options->index.seed, defaults.index.seed);
  EXPECT_EQ(options->worker_threads, defaults.worker_threads);
  EXPECT_EQ(options->build_threads, defaults.build_threads);
  EXPECT_EQ(options->prefault_threads, defaults.prefault_threads);
  EXPECT_EQ(options->default_quota.host_bytes, 0);
  EXPECT_EQ(options->default_quota.max_sequences, 0);
  EXPECT_EQ(options->default_quota.on_limit, TenantQuota::OnLimit::kReject);
  EXPECT_EQ(options->default_quota.backing_bytes, 0);
  EXPECT_EQ(options->default_quota.cache_weight, 1.0);
  EXPECT_EQ(options->tiers.directory, "");
  EXPECT_EQ(options->tiers.cache_bytes, 0);
  EXPECT_EQ(options->tiers.replacement, "lru");
  EXPECT_EQ(options->device, Device::kCpu);
}

TEST(EngineConfigTest, ZeroThatIsWrittenIsNotADefault) {
  const auto options = ParseEngineOptions(std::string(kMinimalConfig) +
                                          " index { sink_tokens: 0 window_tokens: 0 seed: 0 "
                                          "kmeans_iterations: 0 }");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->index.sink_tokens, 0);
  EXPECT_EQ(options->index.window_tokens, 0);
  EXPECT_EQ(options->index.seed, 0u);
  EXPECT_EQ(options->index.kmeans_iterations, 0);
}

TEST(EngineConfigTest, OpenedEngineTellsTheResolvedValueDimension) {
  const auto options = ParseEngineOptions(kMinimalConfig);
  ASSERT_TRUE(options.ok());
  const auto engine = Engine::Open(*options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->options().model.head_dim_v, 64);
}

TEST(EngineConfigTest, TextThatDoesNotParseIsRefusedWithLineAndColumn) {
  const struct {
    const char* text;
    const char* place;
    const char* word;
  } kCases[] = {
      {"model {\n  num_layer: 2\n}", "2:", "num_layer"},
      {"model { num_layers: two }", "1:21", "two"},
      {"model { num_layers: -1 }", "1:21", ""},
      {"arena_bytes: 99999999999999999999", "1:14", "out of range"},
      {"\n\n  garbage", "3:", ""},
      {"model { num_layers: 1", "1:22", ""},
      {"device: TPU", "1:12", "TPU"},
      {"arena_bytes: 1 arena_bytes: 2", "1:", "arena_bytes"},
      {"index { seed: 1.5 }", "1:15", "1.5"},
      {"\x01\x02\xff", "1:1", ""},
  };
  for (const auto& c : kCases) {
    const absl::Status status = ParseEngineOptions(c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(Message(status), StartsWith(std::string("engine config: ") + c.place)) << c.text;
    EXPECT_THAT(Message(status), HasSubstr(c.word)) << c.text;
  }
}

TEST(EngineConfigTest, ValuesOutOfRangeAreRefusedByTheFieldsOwnName) {
  const struct {
    const char* text;
    const char* field;
  } kCases[] = {
      {"", "model.num_layers"},
      {"model { num_layers: 4294967295 }", "model.num_layers"},
      {"model { head_dim_k: 100 }", "model.head_dim_k"},
      {"model { head_dim_v: 4294967295 }", "model.head_dim_v"},
      {"model { kv_dtype: DTYPE_UNSPECIFIED }", "model.kv_dtype"},
      {"model { kv_dtype: 257 }", "model.kv_dtype"},
      {"index { statistics: 5 }", "index.statistics"},
      {"index { code_bits: 4294967295 }", "index.code_bits"},
      {"index { clusters_per_super: 4294967295 }", "index.clusters_per_super"},
      {"index { cluster_tokens_max: 4294967295 }", "index.cluster_tokens_max"},
      {"index { window_tokens: 4294967295 segment_tokens: 63 }", "index.segment_tokens"},
      {"worker_threads: 4294967295", "worker_threads"},
      {"build_threads: 0", "build_threads"},
      {"device: DEVICE_UNSPECIFIED", "device"},
      {"device: 257", "device"},
      {"gpu { device: 4294967295 }", "gpu.device"},
      {"gpu { workspace_bytes: 18446744073709551615 }", "gpu.workspace_bytes"},
      {"gpu { staging_bytes: 1000 }", "gpu.staging_bytes"},
      {"default_quota { on_limit: ON_LIMIT_UNSPECIFIED }", "default_quota.on_limit"},
      {"default_quota { on_limit: 258 }", "default_quota.on_limit"},
  };
  for (const auto& c : kCases) {
    // Only what the case says nothing about is set, for a field may be written once.
    std::string text = c.text;
    const auto has = [&text](const char* word) { return text.find(word) != std::string::npos; };
    if (*c.text != '\0' && !has("model")) text += kMinimalConfig;
    if (has("model") && !has("num_layers")) {
      text.insert(text.rfind('}'), " num_layers: 1 num_q_heads: 1 num_kv_heads: 1 ");
      if (!has("head_dim_k")) text.insert(text.rfind('}'), " head_dim_k: 8 ");
    }
    const absl::Status status = ParseEngineOptions(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(status), StartsWith(c.field)) << text;
  }
}

TEST(EngineConfigTest, FileIsReadAndItsErrorsNameIt) {
  const std::string path = ::testing::TempDir() + "/options_test_config.textproto";
  std::ofstream(path) << kFullConfig;
  const auto options = LoadEngineOptions(path);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->index.segment_tokens, 4096);

  std::ofstream(path) << "model {\n  oops: 1\n}";
  const absl::Status status = LoadEngineOptions(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), StartsWith(path));
  EXPECT_THAT(Message(status), HasSubstr("2:"));
  std::remove(path.c_str());
}

TEST(EngineConfigTest, MissingFileIsNotFoundAndNamed) {
  const absl::Status status = LoadEngineOptions("/nowhere/engine.textproto").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("/nowhere/engine.textproto"));
}

TEST(EngineConfigTest, FolderIsNoConfig) {
  const absl::Status status = LoadEngineOptions(::testing::TempDir()).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Message(status), HasSubstr(::testing::TempDir()));
}

}  // namespace
}  // namespace wavekv
