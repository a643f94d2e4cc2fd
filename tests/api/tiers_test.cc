// Engines whose sealed rows lie in a file: what lies where changes no answer.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "api/engine_test_peer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/tiered_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::wavekv::testing::AddSequence;
using ::wavekv::testing::AppendRandom;
using ::wavekv::testing::Ask;
using ::wavekv::testing::Digest;
using ::wavekv::testing::Fill;
using ::wavekv::testing::FilledEngine;
using ::wavekv::testing::kTierBlockBytes;
using ::wavekv::testing::kTierBlockTokens;
using ::wavekv::testing::OpenEngine;
using ::wavekv::testing::ResidentOptions;
using ::wavekv::testing::SmallestCacheBytes;
using ::wavekv::testing::TieredOptions;
using ::wavekv::testing::WaysToAttend;

void ExpectAudit(const Engine& engine) {
  const absl::Status audit = EngineTestPeer::Audit(engine);
  EXPECT_TRUE(audit.ok()) << audit;
}

TEST(TiersTest, AnswersAreBitIdenticalWhateverIsInTheCache) {
  constexpr int64_t kTokens = 6000;
  const FilledEngine resident = Fill(ResidentOptions(), kTokens);
  std::vector<std::vector<float>> expected;
  for (const AttendOptions& way : WaysToAttend()) {
    expected.push_back(*Digest(*resident.engine, resident.sequence, way));
  }
  // All rows: two layers of two heads.
  const int64_t all = kTokens / kTierBlockTokens * kTierBlockBytes * 4;
  const int64_t smallest = SmallestCacheBytes(TieredOptions(1));
  for (const int64_t cache_bytes : {2 * all + (2 << 20), smallest}) {
    const FilledEngine tiered = Fill(TieredOptions(cache_bytes), kTokens);
    for (const char* state : {"cold", "warm", "warmer", "emptied"}) {
      if (std::string(state) == "emptied") EngineTestPeer::EmptyCache(*tiered.engine);
      for (size_t i = 0; i < expected.size(); ++i) {
        const auto digest = Digest(*tiered.engine, tiered.sequence, WaysToAttend()[i]);
        ASSERT_TRUE(digest.ok()) << digest.status();
        EXPECT_EQ(*digest, expected[i]) << state << " way " << i << " cache " << cache_bytes;
      }
      ExpectAudit(*tiered.engine);
    }
  }
}

TEST(TiersTest, ACacheOfAFewBlocksThrashesAndChangesNoAnswer) {
  constexpr int64_t kTokens = 2000;
  const FilledEngine resident = Fill(ResidentOptions(), kTokens);
  for (const char* replacement : {"lru", "slru", "s3fifo"}) {
    EngineOptions options = TieredOptions(4 << 20);
    options.tiers.replacement = replacement;
    TenantQuota quota;
    quota.cache_bytes = 7 * kTierBlockBytes;
    const FilledEngine tiered = Fill(options, kTokens, quota);
    for (int round = 0; round < 3; ++round) {
      for (const AttendOptions& way : WaysToAttend()) {
        const auto digest = Digest(*tiered.engine, tiered.sequence, way);
        ASSERT_TRUE(digest.ok()) << digest.status();
        EXPECT_EQ(*digest, *Digest(*resident.engine, resident.sequence, way)) << replacement;
      }
    }
    ExpectAudit(*tiered.engine);
  }
}

TEST(TiersTest, SeveralRowsSequencesAndTenantsOfOneBatchAreAnsweredAsWithoutTiers) {
  const auto fill = [](const EngineOptions& options, std::unique_ptr<Engine>* engine) {
    *engine = OpenEngine(options);
    std::vector<Sequence> sequences;
    const Tenant alice = *(*engine)->OpenTenant("alice");
    const Tenant bob = *(*engine)->OpenTenant("bob");
    sequences.push_back(AddSequence(**engine, alice, 700, 1));
    sequences.push_back(AddSequence(**engine, bob, 1200, 2));
    sequences.push_back(AddSequence(**engine, alice, 90, 3));  // nothing sealed
    sequences.push_back(*alice.Fork(sequences[0], 600));
    EXPECT_TRUE(AppendRandom(**engine, sequences[3], 100, 4).ok());
    return sequences;
  };
  std::unique_ptr<Engine> resident;
  std::unique_ptr<Engine> tiered;
  const std::vector<Sequence> expected_of = fill(ResidentOptions(), &resident);
  const std::vector<Sequence> sequences =
      fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), &tiered);
  // A draft of 5, a prefill that sees parts of two segments, one row, none, and a longer prefill.
  const std::vector<std::vector<int32_t>> shapes = {
      {0, 5, 135, 136, 136}, {0, 1, 2, 3, 4}, {0, 200, 200, 201, 206}};
  for (const std::vector<int32_t>& cu_seqlens : shapes) {
    for (AttendOptions way : WaysToAttend()) {
      for (const bool causal : {true, false}) {
        way.causal = causal;
        const int layer = causal ? 0 : 1;
        const auto expected = Ask(*resident, expected_of, cu_seqlens, way, layer);
        const auto answer = Ask(*tiered, sequences, cu_seqlens, way, layer);
        ASSERT_TRUE(expected.ok() && answer.ok()) << expected.status() << answer.status();
        ASSERT_EQ(answer->numbers, expected->numbers);
        ASSERT_EQ(answer->stats.tokens_retrieved, expected->stats.tokens_retrieved);
        ASSERT_EQ(answer->stats.tokens_degraded, 0);
      }
    }
  }
  ExpectAudit(*tiered);
}

TEST(TiersTest, APlanServesManyStepsWhileTheSequenceGrows) {
  FilledEngine resident = Fill(ResidentOptions(), 1000);
  FilledEngine tiered = Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), 1000);
  const int32_t cu_seqlens[] = {0, 1};
  std::vector<Plan> plans;
  for (FilledEngine* world : {&resident, &tiered}) {
    plans.push_back(*world->engine->MakePlan({{&world->sequence, 1}, cu_seqlens}));
  }
  for (int step = 0; step < 150; ++step) {
    for (FilledEngine* world : {&resident, &tiered}) {
      ASSERT_TRUE(AppendRandom(*world->engine, world->sequence, 1, 1000 + step).ok());
      // Answers depend on what is sealed.
      ASSERT_TRUE(world->engine->WaitForBuilds(world->sequence).ok());
    }
    for (int layer = 0; layer < 2; ++layer) {
      const auto expected = Ask(*resident.engine, plans[0], layer, step);
      const auto answer = Ask(*tiered.engine, plans[1], layer, step);
      ASSERT_TRUE(answer.ok()) << answer.status();
      ASSERT_EQ(answer->numbers, expected->numbers) << "step " << step;
    }
  }
  EXPECT_GT(tiered.engine->stats().segment_merges_total, 0);
  ExpectAudit(*tiered.engine);
}

TEST(TiersTest, TruncationInTheMiddleOfASegmentBringsItsRowsBack) {
  const FilledEngine resident = Fill(ResidentOptions(), 1000);
  const FilledEngine tiered = Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), 1000);
  for (const int64_t length : {900, 899, 700, 133, 132, 5, 4, 0}) {
    for (const FilledEngine* world : {&resident, &tiered}) {
      const auto fork = world->tenant.Fork(world->sequence, length);
      ASSERT_TRUE(fork.ok()) << fork.status();
      ASSERT_TRUE(world->tenant.Truncate(world->sequence, length).ok());
      EXPECT_EQ(*Digest(*world->engine, *fork), *Digest(*world->engine, world->sequence));
    }
    EXPECT_EQ(*Digest(*tiered.engine, tiered.sequence),
              *Digest(*resident.engine, resident.sequence));
  }
  ExpectAudit(*tiered.engine);
}

// A piece of exact attention spans many segments, and each of them ends with a block that is not
// full.
TEST(TiersTest, ManySmallSegmentsWithBlocksThatDoNotDivideThemAreRead) {
  EngineOptions options = TieredOptions(1);
  options.model.num_layers = 1;
  options.index.segment_tokens = 64;
  options.index.tokens_per_cluster = 4;
  options.index.cluster_tokens_max = 4;
  options.tiers.block_tokens = 3;
  options.tiers.cache_bytes = SmallestCacheBytes(options);
  const FilledEngine tiered = Fill(options, 4000);
  options.tiers = {};
  const FilledEngine resident = Fill(options, 4000);
  const auto answer = Ask(*tiered.engine, tiered.sequence, AttendOptions::Exact());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->numbers,
            Ask(*resident.engine, resident.sequence, AttendOptions::Exact())->numbers);
}

TEST(TiersTest, RemovedRowsLeaveFileCacheAndArena) {
  const FilledEngine tiered = Fill(TieredOptions(4 << 20), 1000);
  ASSERT_TRUE(Digest(*tiered.engine, tiered.sequence).ok());
  EXPECT_GT(EngineTestPeer::BackingBytesUsed(*tiered.engine, "alice"), 0);
  ASSERT_TRUE(tiered.tenant.Remove(tiered.sequence).ok());
  EngineTestPeer::WaitUntilAdmitted(*tiered.engine);
  EXPECT_EQ(EngineTestPeer::BackingBytesUsed(*tiered.engine, "alice"), 0);
  EXPECT_EQ(tiered.engine->stats().arena_bytes_used, 0);
  ASSERT_TRUE(tiered.engine->CloseTenant(tiered.tenant).ok());
  ExpectAudit(*tiered.engine);  // also: what no tenant holds is free
}

// Files without a name that this process has open.
int64_t NumDeletedFiles() {
  int64_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    count += target.find("(deleted)") != std::string::npos;
  }
  return count;
}

TEST(TiersTest, HandlesThatOutliveTheEngineKeepNoFile) {
  const int64_t before = NumDeletedFiles();
  FilledEngine tiered = Fill(TieredOptions(4 << 20), 1000);
  ASSERT_TRUE(Digest(*tiered.engine, tiered.sequence).ok());
  EXPECT_EQ(NumDeletedFiles(), before + 1);
  tiered.engine.reset();
  EXPECT_EQ(NumDeletedFiles(), before);
  EXPECT_EQ(tiered.tenant.stats().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tiered.tenant.SetQuota({}).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(tiered.sequence.valid());
}

TEST(TiersTest, AFullBackingQuotaKeepsSegmentsExactUntilItIsRaised) {
  EngineOptions options = TieredOptions(4 << 20);
  const FilledEngine resident = Fill(ResidentOptions(), 1000);
  const auto engine = OpenEngine(options);
  TenantQuota quota;
  quota.backing_bytes = 100000;
  const Tenant tenant = *engine->OpenTenant("alice", quota);
  const Sequence sequence = *tenant.CreateSequence();
  ASSERT_TRUE(AppendRandom(*engine, sequence, 1000, 1).ok());
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  EXPECT_EQ(engine->WaitForBuilds(sequence).code(), absl::StatusCode::kResourceExhausted);
  const int64_t used = EngineTestPeer::BackingBytesUsed(*engine, "alice");
  EXPECT_GT(used, 0);
  EXPECT_LE(used, quota.backing_bytes);
  ExpectAudit(*engine);
  quota.backing_bytes = 0;
  ASSERT_TRUE(tenant.SetQuota(quota).ok());
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  ASSERT_TRUE(engine->WaitForBuilds(sequence).ok());
  EXPECT_EQ(*Digest(*engine, sequence), *Digest(*resident.engine, resident.sequence));
  ExpectAudit(*engine);
}

TEST(TiersTest, AClosedTenantKeepsNoShareOfTheCache) {
  const auto engine = OpenEngine(TieredOptions(4 << 20));
  TenantQuota most;
  most.reserved_cache_bytes = 2 << 20;
  const Tenant alice = *engine->OpenTenant("alice", most);
  // There is no room for another one of that size, whoever it is.
  EXPECT_EQ(engine->OpenTenant("bob", most).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->OpenTenant("alice", most).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(engine->CloseTenant(alice).ok());
  // The closed one's handle is still there.
  const auto bob = engine->OpenTenant("bob", most);
  EXPECT_TRUE(bob.ok()) << bob.status();
  ExpectAudit(*engine);
}

TEST(TiersTest, OpenSaysWhatIsWrongWithTheTiers) {
  const auto error_of = [](const EngineOptions& options) {
    const absl::Status status = Engine::Open(options).status();
    EXPECT_FALSE(status.ok());
    return status.ToString();
  };
  EngineOptions missing = TieredOptions(4 << 20);
  missing.tiers.directory = ::testing::TempDir() + "/no/such/folder";
  EXPECT_THAT(error_of(missing), AllOf(HasSubstr("NOT_FOUND"), HasSubstr("/no/such/folder")));

  EXPECT_THAT(
      error_of(TieredOptions(0)),
      AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr("tiers.cache_bytes"), HasSubstr("got 0")));
  const int64_t smallest = SmallestCacheBytes(TieredOptions(1));
  EXPECT_THAT(error_of(TieredOptions(smallest - 1)),
              AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr("cache_bytes must be at least"),
                    HasSubstr(std::to_string(smallest)), HasSubstr(std::to_string(smallest - 1))));
  EXPECT_NE(OpenEngine(TieredOptions(smallest)), nullptr);

  EngineOptions unknown = TieredOptions(4 << 20);
  unknown.tiers.replacement = "clock";
  EXPECT_THAT(error_of(unknown), AllOf(HasSubstr("tiers.replacement"), HasSubstr("\"clock\"")));
  EngineOptions nowhere = TieredOptions(4 << 20);
  nowhere.tiers.directory = "";
  EXPECT_THAT(error_of(nowhere), HasSubstr("tiers.directory"));
  // More than any machine has, in more slots than can be numbered, and in few.
  EngineOptions full = TieredOptions(int64_t{1} << 50);
  EXPECT_THAT(error_of(full), HasSubstr("num_slots must be at most"));
  full.index.segment_tokens = full.index.update_tokens = full.tiers.block_tokens = 1 << 16;
  EXPECT_THAT(error_of(full), HasSubstr("RESOURCE_EXHAUSTED"));
}

}  // namespace
}  // namespace wavekv
