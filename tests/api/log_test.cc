#include "wavekv/log.h"

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "api/engine_test_peer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/log_message.h"
#include "tests/api/small_engine.h"

namespace wavekv {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

using Messages = std::vector<std::pair<LogLevel, std::string>>;

class LogTest : public ::testing::Test {
 protected:
  LogTest() {
    SetLogSink([this](LogLevel level, absl::string_view message) {
      std::lock_guard<std::mutex> lock(mutex_);
      messages_.emplace_back(level, std::string(message));
    });
    SetLogLevel(LogLevel::kDebug);
  }
  ~LogTest() override {
    SetLogSink({});
    SetLogLevel(LogLevel::kWarning);
  }

  Messages messages() {
    std::lock_guard<std::mutex> lock(mutex_);
    return messages_;
  }

  std::mutex mutex_;
  Messages messages_;
};

TEST_F(LogTest, MessagesUpToTheLevelReachTheSink) {
  SetLogLevel(LogLevel::kWarning);
  WAVEKV_LOG(kError, "one {}", 1);
  WAVEKV_LOG(kWarning, "two");
  WAVEKV_LOG(kInfo, "three");
  EXPECT_THAT(messages(),
              ElementsAre(Pair(LogLevel::kError, "one 1"), Pair(LogLevel::kWarning, "two")));
  SetLogLevel(LogLevel::kOff);
  WAVEKV_LOG(kError, "four");
  EXPECT_EQ(messages().size(), 2u);
}

TEST_F(LogTest, WhatIsOffIsNotEvaluated) {
  SetLogLevel(LogLevel::kInfo);
  int evaluated = 0;
  WAVEKV_LOG(kDebug, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 0);
  WAVEKV_LOG(kInfo, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 1);
}

TEST_F(LogTest, WithoutASinkALineGoesToStderr) {
  SetLogSink({});
  ::testing::internal::CaptureStderr();
  WAVEKV_LOG(kWarning, "a {}", "message");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              ::testing::MatchesRegex("W [0-9]+-[0-9]+-[0-9]+ [0-9]+:[0-9]+:[0-9]+.[0-9]+ [0-9]+ "
                                      "wavekv: a message\n"));
}

TEST_F(LogTest, ASinkMayReplaceItself) {
  int first = 0;
  int second = 0;
  SetLogSink([&](LogLevel, absl::string_view) {
    ++first;
    SetLogSink([&](LogLevel, absl::string_view) { ++second; });
  });
  WAVEKV_LOG(kError, "a");
  WAVEKV_LOG(kError, "b");
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 1);
}

TEST_F(LogTest, SinksAreReplacedWhileThreadsSpeak) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 500; ++i) WAVEKV_LOG(kInfo, "{}", i);
    });
  }
  std::atomic<int> heard{0};
  for (int i = 0; i < 200; ++i) {
    SetLogSink([&heard](LogLevel, absl::string_view) { ++heard; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(heard, 1500);
}

TEST_F(LogTest, AnEnginesLifeIsToldWithoutTenantIds) {
  {
    auto engine = testing::OpenEngine();
    const Tenant tenant = *engine->OpenTenant("alice@example.org");
    const Sequence sequence = *tenant.CreateSequence();
    ASSERT_TRUE(testing::AppendRandom(*engine, sequence, 300, 1).ok());
    ASSERT_TRUE(engine->BuildSegments(sequence).ok());
    ASSERT_TRUE(engine->WaitForBuilds(sequence).ok());
    ASSERT_TRUE(engine->CloseTenant(tenant).ok());
  }
  const Messages all = messages();
  EXPECT_THAT(all, Contains(Pair(LogLevel::kInfo, HasSubstr("engine opened"))));
  EXPECT_THAT(all, Contains(Pair(LogLevel::kInfo, HasSubstr("engine closed"))));
  EXPECT_THAT(all, Contains(Pair(LogLevel::kDebug, HasSubstr("sealed a segment of 128 tokens"))));
  for (const auto& [level, message] : all) EXPECT_THAT(message, Not(HasSubstr("alice")));
}

TEST_F(LogTest, RefusedAndEvictedIsTold) {
  auto engine = testing::OpenEngine();
  const Tenant one = *engine->OpenTenant("one", {.max_sequences = 1});
  ASSERT_TRUE(one.CreateSequence().ok());
  ASSERT_FALSE(one.CreateSequence().ok());
  EXPECT_THAT(messages(), Contains(Pair(LogLevel::kInfo, HasSubstr("refused: tenant quota of "
                                                                   "sequences"))));
  const Tenant two =
      *engine->OpenTenant("two", {.max_sequences = 1, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  ASSERT_TRUE(two.CreateSequence().ok());
  ASSERT_TRUE(two.CreateSequence().ok());
  EXPECT_THAT(messages(), Contains(Pair(LogLevel::kInfo, HasSubstr("evicted"))));
}

TEST_F(LogTest, ACallThatEvictionCannotServeIsToldAsRefused) {
  auto engine = testing::OpenEngine();
  const Tenant tenant = *engine->OpenTenant(
      "one", {.host_bytes = 64 << 10, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  const Sequence sequence = *tenant.CreateSequence();
  ASSERT_TRUE(absl::IsResourceExhausted(testing::AppendRandom(*engine, sequence, 4000, 1)));
  EXPECT_THAT(messages(), Contains(Pair(LogLevel::kInfo, HasSubstr("refused: tenant quota"))));
}

TEST_F(LogTest, ASinkMayCallTheEngine) {
  auto engine = testing::OpenEngine();
  SetLogSink([&](LogLevel, absl::string_view) { engine->PrometheusText(); });
  const Tenant tenant = *engine->OpenTenant("one", {.max_sequences = 1});
  const Sequence sequence = *tenant.CreateSequence();
  EXPECT_FALSE(tenant.CreateSequence().ok());
  ASSERT_TRUE(testing::AppendRandom(*engine, sequence, 300, 1).ok());
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  ASSERT_TRUE(engine->WaitForBuilds(sequence).ok());
  EXPECT_TRUE(engine->CloseTenant(tenant).ok());
  SetLogSink({});
}

TEST_F(LogTest, SegmentsThatCannotBeSealedAreToldOnce) {
  auto engine = testing::OpenEngine();
  const Tenant tenant = *engine->OpenTenant("one");
  const Sequence sequence = *tenant.CreateSequence();
  ASSERT_TRUE(testing::AppendRandom(*engine, sequence, 100, 1).ok());
  EngineTestPeer::FailAllocations(*engine, 0, 1000);
  ASSERT_TRUE(engine->BuildSegments(sequence).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(engine->WaitForBuilds(sequence)));
  int warnings = 0;
  for (const auto& [level, message] : messages()) {
    if (level != LogLevel::kWarning) continue;
    ++warnings;
    EXPECT_THAT(message, HasSubstr("cannot be sealed and stay exact"));
  }
  EXPECT_EQ(warnings, 1);
}

}  // namespace
}  // namespace wavekv
