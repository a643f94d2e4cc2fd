// Many threads on an engine whose sealed rows lie in a file: all calls end, and rightly.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/tiered_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::AddSequence;
using ::wavekv::testing::AppendRandom;
using ::wavekv::testing::Ask;
using ::wavekv::testing::Digest;
using ::wavekv::testing::Fill;
using ::wavekv::testing::FilledEngine;
using ::wavekv::testing::kTierBlockBytes;
using ::wavekv::testing::ResidentOptions;
using ::wavekv::testing::SmallestCacheBytes;
using ::wavekv::testing::TieredOptions;
using ::wavekv::testing::WaysToAttend;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

constexpr int64_t kAlways = int64_t{1} << 40;
// More than the engine has calls that read at a time.
constexpr int kThreads = 9;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 6;
#else
constexpr int kRounds = 15;
#endif

void ExpectAudit(const Engine& engine) {
  const absl::Status audit = EngineTestPeer::Audit(engine);
  EXPECT_TRUE(audit.ok()) << audit;
}

void RunThreads(int num_threads, const std::function<void(int)>& run) {
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) threads.emplace_back(run, i);
  for (std::thread& thread : threads) thread.join();
}

TEST(TierThreadsTest, MoreCallsThanCanReadAtATimeAllEnd) {
  constexpr int64_t kTokens = 1500;
  const FilledEngine resident = Fill(ResidentOptions(), kTokens);
  std::vector<std::vector<float>> expected;
  for (const AttendOptions& way : WaysToAttend()) {
    expected.push_back(*Digest(*resident.engine, resident.sequence, way));
  }
  TenantQuota quota;
  quota.cache_bytes = 40 * kTierBlockBytes;  // nearly all misses
  const FilledEngine tiered =
      Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), kTokens, quota);
  EngineTestPeer::Faults(*tiered.engine)
      .Plant(Site::kComplete, Fault::kDelay, 0, kAlways, std::chrono::milliseconds(2));
  RunThreads(kThreads, [&](int thread) {
    for (int round = 0; round < 3; ++round) {
      const size_t way = static_cast<size_t>(thread + round) % expected.size();
      const auto digest = Digest(*tiered.engine, tiered.sequence, WaysToAttend()[way]);
      EXPECT_TRUE(digest.ok()) << digest.status();
      if (digest.ok()) {
        EXPECT_EQ(*digest, expected[way]);
      }
    }
  });
  ExpectAudit(*tiered.engine);
}

TEST(TierThreadsTest, CallsWithDeadlinesAndWithoutOnASlowDeviceAllEnd) {
  TenantQuota quota;
  quota.cache_bytes = 10 * kTierBlockBytes;  // nearly all misses
  const FilledEngine tiered =
      Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), 1000, quota);
  EngineTestPeer::Faults(*tiered.engine)
      .Plant(Site::kComplete, Fault::kDelay, 0, kAlways, std::chrono::milliseconds(30));
  std::atomic<int64_t> num_degraded{0};
  RunThreads(kThreads, [&](int thread) {
    for (int round = 0; round < 4; ++round) {
      AttendOptions way = WaysToAttend()[static_cast<size_t>(thread + round) % 6];
      if (thread % 2 == 0) way.miss_deadline = absl::Milliseconds(round);
      const auto answer = Ask(*tiered.engine, tiered.sequence, way);
      if (answer.ok()) {
        num_degraded += answer->stats.tokens_degraded;
      } else {
        EXPECT_EQ(answer.status().code(), absl::StatusCode::kDeadlineExceeded);
        EXPECT_EQ(thread % 2, 0);
      }
    }
  });
  ExpectAudit(*tiered.engine);
}

TEST(TierThreadsTest, ForksAndTruncationsBesideReadersChangeNobodysAnswer) {
  constexpr int64_t kTokens = 900;
  const FilledEngine resident = Fill(ResidentOptions(), kTokens);
  const std::vector<float> expected = *Digest(*resident.engine, resident.sequence);
  TenantQuota quota;
  quota.cache_bytes = 200 * kTierBlockBytes;
  const FilledEngine tiered =
      Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), kTokens, quota);
  // Prefixes of the same tokens.
  const std::vector<int64_t> lengths = {850, 700, 513, 300, 133};
  std::vector<std::vector<float>> prefixes;
  for (const int64_t length : lengths) {
    prefixes.push_back(*Digest(*resident.engine, *resident.tenant.Fork(resident.sequence, length)));
  }
  std::atomic<bool> stop{false};
  RunThreads(6, [&](int thread) {
    Engine& engine = *tiered.engine;
    if (thread == 0) {
      for (int round = 0; round < kRounds; ++round) {
        const Sequence added =
            AddSequence(engine, tiered.tenant, 500, static_cast<uint64_t>(round) + 10);
        EXPECT_TRUE(Digest(engine, added).ok());
        EXPECT_TRUE(tiered.tenant.Remove(added).ok());
      }
      stop = true;
      return;
    }
    for (size_t round = static_cast<size_t>(thread); !stop; ++round) {
      if (thread < 3) {
        const auto digest = Digest(engine, tiered.sequence);
        ASSERT_TRUE(digest.ok()) << digest.status();
        ASSERT_EQ(*digest, expected);
        continue;
      }
      const auto fork = tiered.tenant.Fork(tiered.sequence);
      ASSERT_TRUE(fork.ok()) << fork.status();
      const size_t i = round % lengths.size();
      const absl::Status truncated = tiered.tenant.Truncate(*fork, lengths[i]);
      ASSERT_TRUE(truncated.ok()) << truncated;
      const auto digest = Digest(engine, *fork);
      ASSERT_TRUE(digest.ok()) << digest.status();
      ASSERT_EQ(*digest, prefixes[i]) << "prefix of " << lengths[i];
      ASSERT_TRUE(tiered.tenant.Remove(*fork).ok());
    }
  });
  ExpectAudit(*tiered.engine);
}

TEST(TierThreadsTest, TenantsComeAndGoWhileTheirRowsAreBeingRead) {
  const FilledEngine tiered = Fill(TieredOptions(SmallestCacheBytes(TieredOptions(1))), 600);
  Engine& engine = *tiered.engine;
  EngineTestPeer::Faults(engine).Plant(Site::kComplete, Fault::kDelay, 0, kAlways,
                                       std::chrono::milliseconds(3));
  RunThreads(5, [&](int thread) {
    for (int round = 0; round < kRounds / 3; ++round) {
      TenantQuota quota;
      quota.reserved_cache_bytes = 4096;
      quota.backing_bytes = round % 3 == 0 ? 200000 : 0;
      const auto tenant = engine.OpenTenant("tenant" + std::to_string(thread), quota);
      ASSERT_TRUE(tenant.ok()) << tenant.status();
      const Sequence sequence = *tenant->CreateSequence();
      ASSERT_TRUE(AppendRandom(engine, sequence, 400, 3).ok());
      ASSERT_TRUE(engine.BuildSegments(sequence).ok());
      const absl::Status built = engine.WaitForBuilds(sequence);
      EXPECT_TRUE(built.ok() || absl::IsResourceExhausted(built)) << built;
      AttendOptions way = WaysToAttend()[static_cast<size_t>(round) % 6];
      way.miss_deadline = absl::Milliseconds(1);
      const auto answer = Ask(engine, sequence, way);
      EXPECT_TRUE(answer.ok() || absl::IsDeadlineExceeded(answer.status())) << answer.status();
      quota.reserved_cache_bytes = 8192;
      ASSERT_TRUE(tenant->SetQuota(quota).ok());
      ASSERT_TRUE(engine.CloseTenant(*tenant).ok());
    }
  });
  ExpectAudit(engine);
}

}  // namespace
}  // namespace wavekv
