// Every call of the backing file and every allocation fails once, and from then on: each call of
// the engine returns a status, no token is lost, nothing leaks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/tiered_engine.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::Digest;
using ::wavekv::testing::OpenEngine;
using ::wavekv::testing::Random;
using ::wavekv::testing::ResidentOptions;
using ::wavekv::testing::TieredOptions;
using ::wavekv::testing::WaysToAttend;
using Fault = BackingFaults::Fault;
using Site = BackingFaults::Site;

EngineOptions SmallArena(EngineOptions options) {
  options.arena_bytes = 4 << 20;
  return options;
}

constexpr int64_t kAlways = int64_t{1} << 40;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr double kStep = 6.0;
#else
constexpr double kStep = 2.0;
#endif

// 0, 1, 2, ..., then in geometric steps.
int64_t Next(int64_t n) {
  return std::max(n + 1, static_cast<int64_t>(std::ceil(kStep * static_cast<double>(n))));
}

// What a user does with two sequences and a fork, on two engines: one that meets failures, and one
// without tiers that does what the first has done.
class Scenario {
 public:
  explicit Scenario(Engine& engine, Engine& twin) : engine_(engine), twin_(twin) {
    tenant_ = *engine.OpenTenant("alice");
    twin_tenant_ = *twin.OpenTenant("alice");
  }

  // Meets failures from here...
  void Run() {
    const size_t a = Create();
    Append(a, 300);
    Build(a);
    AttendToAll();
    const size_t b = Fork(a, 300);
    const size_t c = Fork(a, 200);  // in the middle of a sealed segment
    Append(b, 64);
    Build(b);
    Append(b, 64);
    Build(b);  // two segments, and merges them
    if (c != kNone) Append(c, 10);
    AttendToAll();
    Truncate(a, 150);
    AttendToAll();
    Retrieve(b);
    Remove(a);
  }

  // ...to here. True when some call or build did not succeed.
  bool FailedSomewhere() const { return failed_; }

  // All that was appended is there, and goes without trace.
  void Check() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      if (!sequences_[i].valid()) continue;
      SCOPED_TRACE(absl::StrCat("sequence ", i));
      ASSERT_EQ(sequences_[i].length(), twins_[i].length());
      ExpectSame(i, *Digest(engine_, sequences_[i]), *Digest(twin_, twins_[i]));
      // What could not be sealed can be now.
      ASSERT_TRUE(engine_.BuildSegments(sequences_[i]).ok());
      const absl::Status built = engine_.WaitForBuilds(sequences_[i]);
      EXPECT_TRUE(built.ok()) << built;
      ASSERT_TRUE(twin_.BuildSegments(twins_[i]).ok());
      ASSERT_TRUE(twin_.WaitForBuilds(twins_[i]).ok());
      for (const AttendOptions& way : WaysToAttend()) {
        const std::vector<float> got = *Digest(engine_, sequences_[i], way);
        const std::vector<float> want = *Digest(twin_, twins_[i], way);
        // Segments may have been cut and merged otherwise.
        if (!failed_) {
          EXPECT_EQ(got, want);
        }
        if (way.retrieval.is_ratio() && way.retrieval.ratio() == 1.0) ExpectSame(i, got, want);
      }
    }
    absl::Status audit = EngineTestPeer::Audit(engine_);
    EXPECT_TRUE(audit.ok()) << audit;
    ASSERT_TRUE(engine_.CloseTenant(tenant_).ok());
    ASSERT_TRUE(twin_.CloseTenant(twin_tenant_).ok());
    // With nobody to hold anything, it says that file, cache and arena are empty.
    audit = EngineTestPeer::Audit(engine_);
    EXPECT_TRUE(audit.ok()) << audit;
    EXPECT_EQ(engine_.stats().arena_bytes_used, 0);
    EXPECT_TRUE(EngineTestPeer::FreeBytesAreZero(engine_));
  }

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);

  bool Allowed(const absl::Status& status) {
    if (status.ok()) return true;
    failed_ = true;
    const absl::StatusCode code = status.code();
    EXPECT_TRUE(code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDataLoss ||
                code == absl::StatusCode::kResourceExhausted)
        << status;
    return false;
  }

  void ExpectSame(size_t i, const std::vector<float>& got, const std::vector<float>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t k = 0; k < got.size(); ++k) {
      ASSERT_NEAR(got[k], want[k], 2e-4) << "sequence " << i << " at " << k;
    }
  }

  size_t Create() {
    sequences_.push_back(*tenant_.CreateSequence());
    twins_.push_back(*twin_tenant_.CreateSequence());
    return sequences_.size() - 1;
  }

  // Layer by layer; what failed is done again once nothing fails any more.
  void Append(size_t i, int64_t num_rows) {
    if (i == kNone) return;
    const ModelSpec& model = engine_.options().model;
    Random random(++seed_);
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const auto keys = random.Gaussians(num_rows * model.num_kv_heads * model.head_dim_k);
      const auto values = random.Gaussians(num_rows * model.num_kv_heads * model.head_dim_v);
      const auto append = [&](Engine& engine, const Sequence& sequence) {
        return engine.Append({{&sequence, 1}, cu_seqlens}, layer,
                             TensorView::Dense(keys.data(), DType::kFloat32, num_rows,
                                               model.num_kv_heads, model.head_dim_k),
                             TensorView::Dense(values.data(), DType::kFloat32, num_rows,
                                               model.num_kv_heads, model.head_dim_v));
      };
      if (!Allowed(append(engine_, sequences_[i]))) {
        EngineTestPeer::FailAllocations(engine_, 0, 0);
        const absl::Status again = append(engine_, sequences_[i]);
        ASSERT_TRUE(again.ok()) << again;
      }
      ASSERT_TRUE(append(twin_, twins_[i]).ok());
    }
  }

  void Build(size_t i) {
    if (i == kNone) return;
    ASSERT_TRUE(engine_.BuildSegments(sequences_[i]).ok());
    Allowed(engine_.WaitForBuilds(sequences_[i]));
    ASSERT_TRUE(twin_.BuildSegments(twins_[i]).ok());
    ASSERT_TRUE(twin_.WaitForBuilds(twins_[i]).ok());
    failed_ |= engine_.stats().merge_failures_total != merge_failures_;
    merge_failures_ = engine_.stats().merge_failures_total;
  }

  size_t Fork(size_t i, int64_t prefix) {
    const auto child = tenant_.Fork(sequences_[i], prefix);
    if (!Allowed(child.status())) return kNone;
    sequences_.push_back(*child);
    twins_.push_back(*twin_tenant_.Fork(twins_[i], prefix));
    return sequences_.size() - 1;
  }

  void Truncate(size_t i, int64_t length) {
    const int64_t before = sequences_[i].length();
    if (!Allowed(tenant_.Truncate(sequences_[i], length))) {
      EXPECT_EQ(sequences_[i].length(), before);
      return;
    }
    ASSERT_TRUE(twin_tenant_.Truncate(twins_[i], length).ok());
  }

  void AttendToAll() {
    EngineTestPeer::EmptyCache(engine_);
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (const AttendOptions& way : WaysToAttend()) {
        const auto got = Digest(engine_, sequences_[i], way);
        if (!Allowed(got.status())) continue;
        if (failed_ && way.retrieval.ratio() < 1.0) continue;
        ExpectSame(i, *got, *Digest(twin_, twins_[i], way));
      }
      EngineTestPeer::EmptyCache(engine_);
    }
  }

  void Retrieve(size_t i) {
    if (i == kNone) return;
    const ModelSpec& model = engine_.options().model;
    AttendOptions options;
    options.target_error = 0.01;
    // Rows before the newest, for which parts of sealed segments are read before zones are known.
    const int32_t cu_seqlens[] = {0, 60};
    const auto queries = Random(9).Gaussians(60 * model.num_q_heads * model.head_dim_k);
    const auto plan = engine_.MakePlan({{&sequences_[i], 1}, cu_seqlens}, options);
    ASSERT_TRUE(plan.ok());
    Allowed(engine_
                .Retrieve(*plan, 0,
                          TensorView::Dense(queries.data(), DType::kFloat32, 60, model.num_q_heads,
                                            model.head_dim_k))
                .status());
  }

  void Remove(size_t i) {
    ASSERT_TRUE(tenant_.Remove(sequences_[i]).ok());
    ASSERT_TRUE(twin_tenant_.Remove(twins_[i]).ok());
  }

  Engine& engine_;
  Engine& twin_;
  Tenant tenant_;
  Tenant twin_tenant_;
  std::vector<Sequence> sequences_;
  std::vector<Sequence> twins_;
  uint64_t seed_ = 0;
  bool failed_ = false;
  int64_t merge_failures_ = engine_.stats().merge_failures_total;
};

struct Plant {
  Site site;
  Fault fault;
  int64_t count;  // failures from the n-th on
};

class TierFaultsTest : public ::testing::TestWithParam<Plant> {};

TEST_P(TierFaultsTest, EveryFailureIsAStatusAndLosesNothing) {
  const Plant plant = GetParam();
  const auto engine = OpenEngine(SmallArena(TieredOptions(2 << 20)));
  const auto twin = OpenEngine(SmallArena(ResidentOptions()));
  BackingFaults& faults = EngineTestPeer::Faults(*engine);
  int64_t num_failed = 0;
  int64_t n = 0;
  while (true) {
    SCOPED_TRACE(absl::StrCat("failure ", n));
    Scenario scenario(*engine, *twin);
    faults.Plant(plant.site, plant.fault, n, plant.count);
    scenario.Run();
    const int64_t num_met = faults.num_met(plant.site);
    faults.Clear();
    EngineTestPeer::WaitUntilAdmitted(*engine);
    scenario.Check();
    if (HasFailure()) return;
    num_failed += scenario.FailedSomewhere();
    if (num_met == 0) {
      EXPECT_FALSE(scenario.FailedSomewhere());
      break;
    }
    // Few are made, some of them for merges, which are not tried again: one by one.
    n = plant.site == Site::kAllocate && kStep < 3.0 ? n + 1 : Next(n);
  }
  EXPECT_GT(n, 0);
  // Short and transient ones are tried again until they succeed; so are builds.
  if (plant.fault == Fault::kShort || plant.fault == Fault::kTransient) {
    EXPECT_EQ(num_failed, 0);
  } else if (plant.count > 1 || plant.site > Site::kWrite) {
    EXPECT_GT(num_failed, 0);
  }
}

std::string Name(const ::testing::TestParamInfo<Plant>& info) {
  static constexpr const char* kSites[] = {"Allocate", "Write", "Submit", "Run", "Complete"};
  static constexpr const char* kFaults[] = {"None",  "IoError", "DiskFull", "Transient",
                                            "Short", "Corrupt", "Delay"};
  return absl::StrCat(kSites[static_cast<int>(info.param.site)],
                      kFaults[static_cast<int>(info.param.fault)],
                      info.param.count == 1 ? "Once" : "FromThereOn");
}

INSTANTIATE_TEST_SUITE_P(
    Sites, TierFaultsTest,
    ::testing::Values(
        Plant{Site::kAllocate, Fault::kIoError, 1},
        Plant{Site::kAllocate, Fault::kDiskFull, kAlways}, Plant{Site::kWrite, Fault::kIoError, 1},
        Plant{Site::kWrite, Fault::kDiskFull, kAlways}, Plant{Site::kWrite, Fault::kShort, 1},
        Plant{Site::kSubmit, Fault::kIoError, 1}, Plant{Site::kSubmit, Fault::kTransient, 1},
        Plant{Site::kRun, Fault::kIoError, 1}, Plant{Site::kRun, Fault::kIoError, kAlways},
        Plant{Site::kRun, Fault::kShort, 1}, Plant{Site::kComplete, Fault::kTransient, 1},
        Plant{Site::kComplete, Fault::kShort, 1}, Plant{Site::kComplete, Fault::kIoError, kAlways},
        Plant{Site::kComplete, Fault::kCorrupt, kAlways}),
    Name);

TEST(TierAllocationsTest, EveryRefusedAllocationIsAStatusAndLosesNothing) {
  for (const int64_t count : {int64_t{1}, kAlways}) {
    const auto engine = OpenEngine(SmallArena(TieredOptions(2 << 20)));
    const auto twin = OpenEngine(SmallArena(ResidentOptions()));
    for (int64_t n = 0; n < 200; n = Next(n)) {
      SCOPED_TRACE(absl::StrCat("allocation ", n, " x ", count));
      Scenario scenario(*engine, *twin);
      EngineTestPeer::FailAllocations(*engine, n, count);
      scenario.Run();
      EngineTestPeer::FailAllocations(*engine, 0, 0);
      scenario.Check();
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace wavekv
