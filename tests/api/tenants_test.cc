// Tenants: their lives, quotas, isolation, and what the statistics say about them.
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "proto/engine_stats.pb.h"
#include "tests/api/small_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::testing::AllOf;
using testing::AppendRandom;
using ::testing::ContainsRegex;
using testing::Digest;
using ::testing::HasSubstr;
using testing::OpenEngine;
using testing::Random;

constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;
constexpr absl::StatusCode kExhausted = absl::StatusCode::kResourceExhausted;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class TenantsTest : public ::testing::Test {
 protected:
  Tenant Open(const char* id, const TenantQuota& quota = {}) {
    const auto tenant = engine_->OpenTenant(id, quota);
    EXPECT_TRUE(tenant.ok()) << tenant.status();
    return *tenant;
  }
  Sequence Filled(Tenant& tenant, int64_t tokens, uint64_t seed) {
    const auto sequence = tenant.CreateSequence();
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    Append(*sequence, tokens, seed);
    return *sequence;
  }
  void Append(const Sequence& sequence, int64_t tokens, uint64_t seed) {
    const absl::Status status = AppendRandom(*engine_, sequence, tokens, seed);
    EXPECT_TRUE(status.ok()) << status;
    // Sealing reorders sums, so answers are compared bit for bit only while nothing is built.
    EXPECT_TRUE(engine_->WaitForBuilds(sequence).ok());
  }
  void Seal(const Sequence& sequence) {
    EXPECT_TRUE(engine_->BuildSegments(sequence).ok());
    const absl::Status status = engine_->WaitForBuilds(sequence);
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<float> DigestOf(const Sequence& sequence) {
    const auto digest = Digest(*engine_, sequence);
    EXPECT_TRUE(digest.ok()) << digest.status();
    return digest.ok() ? *digest : std::vector<float>();
  }
  static TenantStats StatsOf(const Tenant& tenant) {
    const auto stats = tenant.stats();
    EXPECT_TRUE(stats.ok()) << stats.status();
    return *stats;
  }
  // The invariants of api/stats.h, while nothing runs.
  void ExpectInvariants(const std::vector<Tenant>& tenants) {
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.arena_bytes_used + stats.arena_bytes_free, stats.arena_bytes);
    int64_t used = 0;
    int64_t sequences = 0;
    for (const Tenant& tenant : tenants) {
      used += StatsOf(tenant).host_bytes_used;
      sequences += StatsOf(tenant).sequences;
    }
    EXPECT_EQ(stats.arena_bytes_used, used);
    EXPECT_EQ(stats.sequences, sequences);
    EXPECT_EQ(stats.tenants, static_cast<int64_t>(tenants.size()));
    EXPECT_LE(stats.tokens_exact_total, stats.tokens_visible_total);
    EXPECT_EQ(stats.tokens_exact_total + stats.tokens_estimated_total, stats.tokens_visible_total);
  }

  const std::unique_ptr<Engine> engine_ = OpenEngine();
};

TEST_F(TenantsTest, NewEngineHoldsNothing) {
  ExpectInvariants({});
  EXPECT_EQ(engine_->stats().arena_bytes_used, 0);
  EXPECT_EQ(engine_->stats().arena_bytes, 4 << 20);
}

TEST_F(TenantsTest, ClosedIdCanBeOpenedAgainAndIsEmpty) {
  Tenant first = Open("alice");
  const Sequence sequence = Filled(first, 100, 1);
  ASSERT_TRUE(engine_->CloseTenant(first).ok());
  EXPECT_FALSE(sequence.valid());
  EXPECT_EQ(engine_->stats().arena_bytes_used, 0);
  Tenant second = Open("alice");
  EXPECT_EQ(StatsOf(second).sequences, 0);
  EXPECT_EQ(first.CreateSequence().status().code(), kNotFound) << "the old handle is stale";
  EXPECT_EQ(second.Remove(sequence).code(), kNotFound);
  ExpectInvariants({second});
}

TEST_F(TenantsTest, IdsAreOpaqueBytesUpTo128) {
  const std::vector<std::string> ids = {"x", std::string(128, 'y'), std::string("\0\n\"{}", 5),
                                        "\xff\xfe"};
  for (const std::string& id : ids) {
    EXPECT_TRUE(engine_->OpenTenant(absl::string_view(id.data(), id.size())).ok());
  }
  EXPECT_EQ(engine_->stats().tenants, 4);
}

TEST_F(TenantsTest, ClosingOneTenantLeavesTheOthers) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob");
  const Sequence hers = Filled(alice, 200, 1);
  const Sequence his = Filled(bob, 200, 2);
  Seal(hers);
  const std::vector<float> before = DigestOf(hers);
  ASSERT_TRUE(engine_->CloseTenant(bob).ok());
  EXPECT_EQ(DigestOf(hers), before);
  EXPECT_EQ(Digest(*engine_, his).status().code(), kNotFound);
  ExpectInvariants({alice});
}

TEST_F(TenantsTest, TenantsWithoutAQuotaOfTheirOwnGetTheDefault) {
  EngineOptions options = testing::SmallEngineOptions();
  options.default_quota = {.host_bytes = 1 << 20, .max_sequences = 1};
  const auto engine = OpenEngine(options);
  Tenant plain = *engine->OpenTenant("plain");
  Tenant own = *engine->OpenTenant("own", {.max_sequences = 2});
  EXPECT_EQ(StatsOf(plain).host_bytes_quota, 1 << 20);
  EXPECT_EQ(StatsOf(own).host_bytes_quota, 0);
  ASSERT_TRUE(plain.CreateSequence().ok());
  EXPECT_EQ(plain.CreateSequence().status().code(), kExhausted);
  ASSERT_TRUE(own.CreateSequence().ok());
  EXPECT_TRUE(own.CreateSequence().ok());
}

TEST_F(TenantsTest, ForkIsChargedOnlyForWhatItDoesNotShare) {
  Tenant alice = Open("alice");
  const Sequence parent = Filled(alice, 300, 1);
  Seal(parent);
  const int64_t used = StatsOf(alice).host_bytes_used;
  const auto child = alice.Fork(parent);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(StatsOf(alice).host_bytes_used, used);
  EXPECT_EQ(DigestOf(*child), DigestOf(parent));
  ASSERT_TRUE(alice.Remove(parent).ok());
  EXPECT_EQ(StatsOf(alice).host_bytes_used, used);
  ASSERT_TRUE(alice.Remove(*child).ok());
  EXPECT_EQ(StatsOf(alice).host_bytes_used, 0);
  EXPECT_EQ(engine_->stats().segments_sealed, 0);
  ExpectInvariants({alice});
}

TEST_F(TenantsTest, FullQuotaRejectsWithNumbersAndEverySequenceStaysReadable) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob");
  std::vector<Sequence> sequences = {Filled(alice, 200, 1), Filled(alice, 90, 2),
                                     Filled(bob, 150, 3)};
  for (const Sequence& sequence : sequences) Seal(sequence);
  const int64_t used = StatsOf(alice).host_bytes_used;
  ASSERT_TRUE(alice.SetQuota({.host_bytes = used + 8192}).ok());
  std::vector<std::vector<float>> digests;
  for (const Sequence& sequence : sequences) digests.push_back(DigestOf(sequence));

  const absl::Status status = AppendRandom(*engine_, sequences[0], 1000, 4);
  EXPECT_EQ(status.code(), kExhausted);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("tenant quota"), ContainsRegex("requested [0-9]+"),
                                     ContainsRegex("available [0-9]+"),
                                     HasSubstr("quota " + std::to_string(used + 8192))));
  EXPECT_EQ(StatsOf(alice).host_bytes_used, used);
  EXPECT_EQ(StatsOf(alice).sequences, 2);
  EXPECT_EQ(StatsOf(alice).evicted_sequences_total, 0);
  EXPECT_GT(StatsOf(alice).quota_rejects_total, 0);
  EXPECT_EQ(StatsOf(bob).quota_rejects_total, 0);
  for (size_t i = 0; i < sequences.size(); ++i) {
    EXPECT_EQ(DigestOf(sequences[i]), digests[i]);
  }
  Append(sequences[2], 100, 5);  // the other tenant does not notice
  ExpectInvariants({alice, bob});
}

TEST_F(TenantsTest, FullArenaRejectsWithNumbersAndEverySequenceStaysReadable) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob");
  const Sequence hers = Filled(alice, 200, 1);
  const Sequence his = Filled(bob, 100, 2);
  const std::vector<float> her_digest = DigestOf(hers);
  const int64_t used = engine_->stats().arena_bytes_used;
  const absl::Status status = AppendRandom(*engine_, his, 100000, 3);
  EXPECT_EQ(status.code(), kExhausted);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("arena"), ContainsRegex("requested [0-9]+"),
                                     ContainsRegex("available [0-9]+"), HasSubstr("4194304")));
  EXPECT_EQ(engine_->stats().arena_bytes_used, used);
  EXPECT_EQ(his.length(), 100);
  EXPECT_EQ(DigestOf(hers), her_digest);
  Append(his, 100, 4);
  ExpectInvariants({alice, bob});
}

TEST_F(TenantsTest, BatchThatFitsInPartChangesNoneOfItsSequences) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob", {.host_bytes = 65536});
  const std::vector<Sequence> sequences = {Filled(alice, 10, 1), Filled(bob, 10, 2)};
  const std::vector<std::vector<float>> before = {DigestOf(sequences[0]), DigestOf(sequences[1])};
  const int64_t used = engine_->stats().arena_bytes_used;
  constexpr int64_t kRows = 100 + 3000;
  const int32_t cu_seqlens[] = {0, 100, kRows};
  const auto keys = Random(1).Gaussians(kRows * 2 * 16);
  const auto values = Random(2).Gaussians(kRows * 2 * 8);
  const absl::Status status = engine_->Append(
      {sequences, cu_seqlens}, 0, TensorView::Dense(keys.data(), DType::kFloat32, kRows, 2, 16),
      TensorView::Dense(values.data(), DType::kFloat32, kRows, 2, 8));
  EXPECT_EQ(status.code(), kExhausted);
  EXPECT_EQ(engine_->stats().arena_bytes_used, used);
  EXPECT_EQ(DigestOf(sequences[0]), before[0]);
  EXPECT_EQ(DigestOf(sequences[1]), before[1]);
}

TEST_F(TenantsTest, EvictOwnRemovesTheLeastRecentlyUsedSequence) {
  Tenant alice = Open("alice", {.max_sequences = 3, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  const Sequence a = Filled(alice, 50, 1);
  const Sequence b = Filled(alice, 50, 2);
  const Sequence c = Filled(alice, 50, 3);
  DigestOf(a);  // asking is using
  const Sequence d = Filled(alice, 50, 4);
  EXPECT_FALSE(b.valid());
  EXPECT_TRUE(a.valid() && c.valid() && d.valid());
  Append(c, 1, 5);  // so is appending
  const Sequence e = Filled(alice, 50, 6);
  EXPECT_FALSE(a.valid());
  EXPECT_TRUE(c.valid() && d.valid() && e.valid());
  EXPECT_EQ(StatsOf(alice).evicted_sequences_total, 2);
  ExpectInvariants({alice});
}

TEST_F(TenantsTest, EvictOwnMakesRoomForAnAppendAndKeepsTheCallsSequences) {
  Tenant alice = Open("alice", {.on_limit = TenantQuota::OnLimit::kEvictOwn});
  Tenant bob = Open("bob");
  const Sequence his = Filled(bob, 100, 9);
  const Sequence growing = Filled(alice, 200, 1);  // the oldest
  const Sequence old = Filled(alice, 200, 2);
  const Sequence young = Filled(alice, 200, 3);
  ASSERT_TRUE(alice
                  .SetQuota({.host_bytes = StatsOf(alice).host_bytes_used,
                             .on_limit = TenantQuota::OnLimit::kEvictOwn})
                  .ok());
  Append(growing, 100, 4);
  EXPECT_EQ(growing.length(), 300);
  EXPECT_FALSE(old.valid());
  EXPECT_TRUE(young.valid());
  EXPECT_TRUE(his.valid());
  EXPECT_LE(StatsOf(alice).host_bytes_used, StatsOf(alice).host_bytes_quota);
  ExpectInvariants({alice, bob});
}

TEST_F(TenantsTest, EvictedHandleIsNotFoundLikeAnUnknownOne) {
  Tenant alice = Open("alice", {.max_sequences = 1, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  const Sequence a = Filled(alice, 20, 1);
  const Sequence b = Filled(alice, 20, 2);
  EXPECT_FALSE(a.valid());
  EXPECT_EQ(a.length(), 0);
  EXPECT_EQ(AppendRandom(*engine_, a, 1, 1), AppendRandom(*engine_, Sequence(), 1, 1));
}

TEST_F(TenantsTest, QuotaBelowWhatIsInUseRemovesNothingAndStopsGrowth) {
  Tenant alice = Open("alice", {.on_limit = TenantQuota::OnLimit::kReject});
  const Sequence sequence = Filled(alice, 300, 1);
  const std::vector<float> before = DigestOf(sequence);
  ASSERT_TRUE(alice.SetQuota({.host_bytes = 4096}).ok());
  EXPECT_EQ(DigestOf(sequence), before);
  EXPECT_EQ(AppendRandom(*engine_, sequence, 100, 2).code(), kExhausted);
  EXPECT_EQ(DigestOf(sequence), before);
  ASSERT_TRUE(alice.SetQuota({}).ok());
  Append(sequence, 100, 2);
}

TEST_F(TenantsTest, SegmentThatCannotBeSealedStaysExactUntilThereIsRoom) {
  Tenant alice = Open("alice");
  const Sequence sequence = Filled(alice, 130, 1);  // too short to be cut as a prompt
  ASSERT_TRUE(alice.SetQuota({.host_bytes = StatsOf(alice).host_bytes_used + 4096}).ok());
  const std::vector<float> before = DigestOf(sequence);
  ASSERT_TRUE(engine_->BuildSegments(sequence).ok());
  const absl::Status built = engine_->WaitForBuilds(sequence);
  EXPECT_EQ(built.code(), kExhausted);
  EXPECT_THAT(Message(built), AllOf(HasSubstr("segments could not be sealed"), HasSubstr("quota"),
                                    HasSubstr("available"), HasSubstr("used")));
  EXPECT_EQ(DigestOf(sequence), before);
  EXPECT_GT(engine_->stats().seal_failures_total, 0);
  EXPECT_THAT(*engine_->Describe(sequence), HasSubstr("UNSEALABLE"));

  ASSERT_TRUE(alice.SetQuota({}).ok());
  Seal(sequence);
  EXPECT_THAT(*engine_->Describe(sequence), ::testing::Not(HasSubstr("UNSEALABLE")));
  ExpectInvariants({alice});
}

TEST_F(TenantsTest, ForeignUnknownAndRemovedSequencesCannotBeToldApart) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob");
  const Sequence hers = Filled(alice, 100, 1);
  const Sequence gone = Filled(bob, 10, 2);
  ASSERT_TRUE(bob.Remove(gone).ok());
  const std::vector<float> before = DigestOf(hers);
  const std::vector<std::pair<const char*, std::function<absl::Status(const Sequence&)>>> calls = {
      {"fork", [&](const Sequence& s) { return bob.Fork(s).status(); }},
      {"fork a prefix", [&](const Sequence& s) { return bob.Fork(s, 1000000).status(); }},
      {"truncate", [&](const Sequence& s) { return bob.Truncate(s, -1); }},
      {"remove", [&](const Sequence& s) { return bob.Remove(s); }},
  };
  for (const auto& [name, call] : calls) {
    const absl::Status unknown = call(Sequence());
    EXPECT_EQ(unknown.code(), kNotFound) << name;
    EXPECT_EQ(call(hers), unknown) << name;
    EXPECT_EQ(call(gone), unknown) << name;
  }
  EXPECT_EQ(DigestOf(hers), before);
}

TEST_F(TenantsTest, SequenceIdsAreNeverReused) {
  Tenant alice = Open("alice");
  Tenant bob = Open("bob");
  std::set<uint64_t> ids = {0};
  for (int i = 0; i < 20; ++i) {
    const Sequence a = *alice.CreateSequence();
    const Sequence b = *bob.CreateSequence();
    EXPECT_TRUE(ids.insert(a.id()).second);
    EXPECT_TRUE(ids.insert(b.id()).second);
    ASSERT_TRUE(alice.Remove(a).ok());
  }
}

TEST_F(TenantsTest, AccountsHoldAfterEveryRandomOperation) {
  Random random(2024);
  WAVEKV_TRACE_SEED(random);
  std::vector<Tenant> tenants = {Open("rejecting", {.host_bytes = 1 << 20}),
                                 Open("evicting", {.host_bytes = 1 << 20,
                                                   .max_sequences = 5,
                                                   .on_limit = TenantQuota::OnLimit::kEvictOwn})};
  std::vector<std::vector<Sequence>> sequences(2);
  for (int operation = 0; operation < 300; ++operation) {
    SCOPED_TRACE(operation);
    const int who = static_cast<int>(random.Integer(0, 1));
    Tenant& tenant = tenants[who];
    const int64_t dice = random.Integer(0, 9);
    if (sequences[who].empty() || dice == 0) {
      const auto sequence = tenant.CreateSequence();
      ASSERT_TRUE(sequence.ok()) << sequence.status();
      sequences[who].push_back(*sequence);
    } else {
      const size_t chosen = random.Integer(0, static_cast<int64_t>(sequences[who].size()) - 1);
      const Sequence sequence = sequences[who][chosen];
      absl::Status status;
      if (dice < 6) {
        status = AppendRandom(*engine_, sequence, random.Integer(1, 200), operation);
        // Layers appended before the quota was met are taken back, as a caller does.
        if (status.code() == kExhausted) {
          EXPECT_TRUE(tenant.Truncate(sequence, sequence.length()).ok());
        }
      } else if (dice == 6) {
        const auto child = tenant.Fork(sequence, sequence.length() / 2);
        status = child.status();
        if (child.ok()) sequences[who].push_back(*child);
      } else if (dice == 7) {
        status = tenant.Truncate(sequence, sequence.length() / 2);
      } else if (dice == 8) {
        status = tenant.Remove(sequence);
        sequences[who].erase(sequences[who].begin() + static_cast<int64_t>(chosen));
      } else if (sequence.valid()) {
        status = engine_->BuildSegments(sequence);
      }
      EXPECT_TRUE(status.ok() || status.code() == kExhausted || status.code() == kNotFound)
          << status;
      EXPECT_TRUE(status.code() != kNotFound || who == 1) << "only evicted handles are stale";
    }
    // Builds charge and free bytes in the background; wait until nothing moves.
    for (const auto& of_tenant : sequences) {
      for (const Sequence& sequence : of_tenant) {
        if (sequence.valid()) (void)engine_->WaitForBuilds(sequence);
      }
    }
    while (engine_->stats().segments_pending > 0) absl::SleepFor(absl::Microseconds(100));
    ExpectInvariants(tenants);
    for (const Tenant& each : tenants) EXPECT_LE(StatsOf(each).host_bytes_used, 1 << 20);
    EXPECT_LE(StatsOf(tenants[1]).sequences, 5);
    if (HasFailure()) return;
  }
  for (const Tenant& tenant : tenants) ASSERT_TRUE(engine_->CloseTenant(tenant).ok());
  EXPECT_EQ(engine_->stats().arena_bytes_used, 0);
  EXPECT_EQ(engine_->stats().segments_sealed, 0);
}

// A parsed line of the Prometheus text format.
using Samples = std::map<std::string, double>;  // "name{labels}" -> value

Samples ParsePrometheus(const std::string& text) {
  static const std::regex kHelp(R"(# HELP ([a-z_]+) (.+))");
  static const std::regex kType(R"(# TYPE ([a-z_]+) (gauge|counter))");
  static const std::regex kSample(
      R"(([a-z_]+)(\{[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*\})? ([0-9][0-9.e+-]*))");
  Samples samples;
  std::set<std::string> typed;
  std::string open;  // the metric whose samples may come now
  std::string type;
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(text.back(), '\n');
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_match(line, match, kHelp)) {
      EXPECT_TRUE(typed.insert(match[1]).second) << "described twice: " << line;
      open.clear();
    } else if (std::regex_match(line, match, kType)) {
      EXPECT_TRUE(typed.contains(match[1])) << "no help before: " << line;
      open = match[1];
      type = match[2];
    } else if (std::regex_match(line, match, kSample)) {
      EXPECT_EQ(match[1], open) << "not under its own type: " << line;
      EXPECT_EQ(open.rfind("wavekv_", 0), 0u) << line;
      EXPECT_EQ(type == "counter", open.ends_with("_total")) << line;
      const std::string name = match[1].str() + match[2].str();
      EXPECT_TRUE(samples.emplace(name, std::stod(match[4])).second) << "twice: " << line;
    } else {
      ADD_FAILURE() << "not a line of the format: " << line;
    }
  }
  return samples;
}

TEST_F(TenantsTest, PrometheusTextIsWellFormedAndSaysWhatTheStatisticsSay) {
  Tenant alice = Open("alice", {.host_bytes = 1 << 20});
  Tenant bob = Open("bob \"the\nquoted\"",
                    {.max_sequences = 1, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  const Sequence sequence = Filled(alice, 300, 1);
  Seal(sequence);
  DigestOf(sequence);
  EXPECT_TRUE(Digest(*engine_, sequence, AttendOptions()).ok());
  Filled(bob, 10, 2);
  Filled(bob, 10, 3);
  const std::string text = engine_->PrometheusText();
  EXPECT_THAT(text, ::testing::Not(HasSubstr("alice"))) << "ids may be personal";
  const Samples samples = ParsePrometheus(text);
  const EngineStats stats = engine_->stats();
  const auto at = [&samples](const std::string& name) {
    const auto found = samples.find(name);
    EXPECT_TRUE(found != samples.end()) << name;
    return found == samples.end() ? -1 : static_cast<int64_t>(found->second);
  };
  EXPECT_EQ(at("wavekv_tenants"), 2);
  EXPECT_EQ(at("wavekv_sequences"), 2);
  EXPECT_EQ(at("wavekv_bytes{tier=\"host\",state=\"free\"}"), stats.arena_bytes_free);
  EXPECT_EQ(at("wavekv_segments{state=\"sealed\"}"), stats.segments_sealed);
  EXPECT_EQ(at("wavekv_segments{state=\"pending\"}"), 0);
  EXPECT_EQ(at("wavekv_sealed_segments_total"), stats.segments_sealed_total);
  EXPECT_EQ(at("wavekv_seal_failures_total"), 0);
  EXPECT_EQ(at("wavekv_appended_tokens_total"), 2 * 320);
  EXPECT_EQ(at("wavekv_attend_calls_total"), 4);
  EXPECT_EQ(at("wavekv_attend_rows_total"), 4);
  EXPECT_EQ(at("wavekv_lookup_tokens_total"), 4 * 2 * 300);
  EXPECT_EQ(at("wavekv_answered_tokens_total{zone=\"exact\"}") +
                at("wavekv_answered_tokens_total{zone=\"estimation\"}"),
            at("wavekv_lookup_tokens_total"));
  EXPECT_EQ(at("wavekv_dense_bytes_total"), stats.bytes_dense_total);
  EXPECT_EQ(at("wavekv_read_bytes_total"), stats.bytes_read_total);
  EXPECT_GT(at("wavekv_sealed_segments_total"), 0);

  double tenant_bytes = 0;
  double evicted = 0;
  int num_tenants = 0;
  for (const auto& [name, value] : samples) {
    if (name.rfind("wavekv_bytes{tier=\"host\",state=\"live\",tenant=\"", 0) == 0) {
      tenant_bytes += value;
      ++num_tenants;
    }
    if (name.rfind("wavekv_evicted_sequences_total{", 0) == 0) evicted += value;
  }
  EXPECT_EQ(num_tenants, 2);
  EXPECT_EQ(static_cast<int64_t>(tenant_bytes), stats.arena_bytes_used);
  EXPECT_EQ(evicted, 1);
  double phases = 0;
  for (const char* phase : {"pin", "load", "rank", "read", "estimate", "merge", "store"}) {
    const double seconds =
        samples.at("wavekv_attend_seconds_total{phase=\"" + std::string(phase) + "\"}");
    EXPECT_GT(seconds, 0.0) << phase;
    phases += seconds;
  }
  EXPECT_LE(phases, samples.at("wavekv_attend_call_seconds_total"));
  EXPECT_GT(samples.at("wavekv_append_seconds_total"), 0.0);
}

TEST_F(TenantsTest, StatisticsAsAMessageHoldTheTenants) {
  Tenant alice = Open("alice", {.host_bytes = 1 << 20});
  const Sequence sequence = Filled(alice, 300, 1);
  Seal(sequence);
  v1::EngineStats proto;
  ASSERT_TRUE(proto.ParseFromString(engine_->StatsProto()));
  EXPECT_EQ(proto.arena_bytes_used(), engine_->stats().arena_bytes_used);
  ASSERT_EQ(proto.tenant_size(), 1);
  EXPECT_EQ(proto.tenant(0).sequences(), 1);
  EXPECT_EQ(proto.tenant(0).host_bytes_used(), alice.stats()->host_bytes_used);
  EXPECT_EQ(proto.tenant(0).host_bytes_quota(), 1 << 20);
  EXPECT_THAT(proto.tenant(0).label(), ::testing::Not(HasSubstr("alice")));
  v1::EngineStats from_text;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(engine_->StatsText(), &from_text));
  EXPECT_EQ(from_text.SerializeAsString(), engine_->StatsProto());
}

TEST_F(TenantsTest, PrometheusTextOfAnIdleEngineIsWellFormed) {
  const Samples samples = ParsePrometheus(engine_->PrometheusText());
  EXPECT_EQ(samples.at("wavekv_tenants"), 0);
}

TEST_F(TenantsTest, CountersNeverFall) {
  Tenant alice = Open("alice", {.max_sequences = 1, .on_limit = TenantQuota::OnLimit::kEvictOwn});
  std::map<std::string, double> highest;
  for (int round = 0; round < 5; ++round) {
    const Sequence sequence = Filled(alice, 200, round);
    Seal(sequence);
    DigestOf(sequence);
    for (const auto& [name, value] : ParsePrometheus(engine_->PrometheusText())) {
      if (name.find("_total") == std::string::npos) continue;
      EXPECT_GE(value, highest[name]) << name;
      highest[name] = value;
    }
  }
  EXPECT_EQ(highest["wavekv_attend_calls_total"], 10);
}

}  // namespace
}  // namespace wavekv
