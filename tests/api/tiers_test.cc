// Engines whose sealed rows lie in a file: what lies where changes no answer.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/small_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::AppendRandom;
using ::wavekv::testing::Digest;
using ::wavekv::testing::OpenEngine;
using ::wavekv::testing::SmallEngineOptions;

// Rows of 48 bytes, 10 to a block of 512 bytes.
constexpr int64_t kBlockTokens = 10;
constexpr int64_t kBlockBytes = 512;

EngineOptions Tiered(int64_t cache_bytes) {
  EngineOptions options = SmallEngineOptions();
  options.arena_bytes = 16 << 20;
  options.tiers.directory = ::testing::TempDir();
  options.tiers.cache_bytes = cache_bytes;
  options.tiers.block_tokens = kBlockTokens;
  return options;
}

std::vector<AttendOptions> WaysToAttend() {
  std::vector<AttendOptions> ways = {AttendOptions(), AttendOptions::Clusters(),
                                     AttendOptions::Paper(), AttendOptions::Exact()};
  AttendOptions target;
  target.target_error = 0.05;
  ways.push_back(target);
  AttendOptions much;
  much.retrieval = Budget::Ratio(0.3);
  much.sketch = Budget::Ratio(0.6);
  ways.push_back(much);
  return ways;
}

struct World {
  std::unique_ptr<Engine> engine;
  Tenant tenant;
  Sequence sequence;
};

World Fill(const EngineOptions& options, int64_t num_tokens) {
  World world;
  world.engine = OpenEngine(options);
  world.tenant = *world.engine->OpenTenant("alice");
  world.sequence = *world.tenant.CreateSequence();
  EXPECT_TRUE(AppendRandom(*world.engine, world.sequence, num_tokens, 1).ok());
  EXPECT_TRUE(world.engine->BuildSegments(world.sequence).ok());
  EXPECT_TRUE(world.engine->WaitForBuilds(world.sequence).ok());
  return world;
}

TEST(TiersTest, AnswersAreBitIdenticalWhateverIsInTheCache) {
  constexpr int64_t kTokens = 6000;
  World resident = Fill([] {
    EngineOptions options = SmallEngineOptions();
    options.arena_bytes = 64 << 20;
    return options;
  }(), kTokens);
  std::vector<std::vector<float>> expected;
  for (const AttendOptions& way : WaysToAttend()) {
    expected.push_back(*Digest(*resident.engine, resident.sequence, way));
  }
  // All rows: two layers of two heads.
  const int64_t all = kTokens / kBlockTokens * kBlockBytes * 4;
  for (const int64_t cache_bytes : {2 * all + (2 << 20), all, all / 2}) {
    World tiered = Fill(Tiered(cache_bytes + (1 << 20)), kTokens);
    for (const char* state : {"cold", "warm", "warmer", "emptied"}) {
      if (std::string(state) == "emptied") EngineTestPeer::EmptyCache(*tiered.engine);
      for (size_t i = 0; i < expected.size(); ++i) {
        const auto digest = Digest(*tiered.engine, tiered.sequence, WaysToAttend()[i]);
        ASSERT_TRUE(digest.ok()) << digest.status();
        EXPECT_EQ(*digest, expected[i]) << state << " way " << i << " cache " << cache_bytes;
      }
      const absl::Status audit = EngineTestPeer::Audit(*tiered.engine);
      EXPECT_TRUE(audit.ok()) << audit;
    }
  }
}

}  // namespace
}  // namespace wavekv
