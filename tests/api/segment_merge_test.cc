// Small segments of decoding become large ones, and nobody notices but by better answers.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/small_engine.h"

namespace wavekv {
namespace {

using ::wavekv::testing::AppendRandom;
using ::wavekv::testing::Digest;
using ::wavekv::testing::OpenEngine;
using ::wavekv::testing::SmallEngineOptions;

using Runs = std::vector<std::pair<int64_t, int64_t>>;

EngineOptions Options() {
  EngineOptions options = SmallEngineOptions();
  options.index.segment_tokens = 256;
  return options;
}

class SegmentMergeTest : public ::testing::Test {
 protected:
  void Open(const EngineOptions& options) {
    engine_ = OpenEngine(options);
    tenant_ = *engine_->OpenTenant("tenant");
    sequence_ = *tenant_.CreateSequence();
  }

  // One token after the other, as they are generated.
  void Generate(const Sequence& sequence, int64_t count, uint64_t seed) {
    for (int64_t i = 0; i < count; ++i) {
      const absl::Status status = AppendRandom(*engine_, sequence, 1, seed + i);
      ASSERT_TRUE(status.ok()) << status;
      const absl::Status built = engine_->WaitForBuilds(sequence);
      ASSERT_TRUE(built.ok()) << built;
    }
  }
  Runs RunsOf(const Sequence& sequence) { return EngineTestPeer::SealedRuns(sequence, 0); }
  std::vector<float> DigestOf(const Sequence& sequence, const AttendOptions& options = {}) {
    const auto digest = Digest(*engine_, sequence, options);
    EXPECT_TRUE(digest.ok()) << digest.status();
    return digest.ok() ? *digest : std::vector<float>();
  }
  void ExpectSound() {
    const absl::Status status = EngineTestPeer::Audit(*engine_);
    EXPECT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<Engine> engine_;
  Tenant tenant_;
  Sequence sequence_;
};

TEST_F(SegmentMergeTest, GeneratedTokensAnswerAsIfTheyHadBeenAppendedAtOnce) {
  EngineOptions options = Options();
  Open(options);
  Generate(sequence_, 4 + 512 + 16, 1);
  EXPECT_EQ(RunsOf(sequence_), (Runs{{4, 260}, {260, 516}}));
  EXPECT_EQ(engine_->stats().segment_merges_total, 2 * 2);
  EXPECT_EQ(engine_->stats().segments_sealed, 2 * 2);
  ExpectSound();
  const std::vector<float> merged = DigestOf(sequence_);

  options.index.update_tokens = options.index.segment_tokens;
  Open(options);
  Generate(sequence_, 4 + 512 + 16, 1);
  EXPECT_EQ(engine_->stats().segment_merges_total, 0);
  EXPECT_EQ(DigestOf(sequence_), merged);
}

TEST_F(SegmentMergeTest, SegmentsStayAsTheyAreWhenMergingIsOff) {
  EngineOptions options = Options();
  options.index.merge_segments = false;
  Open(options);
  Generate(sequence_, 4 + 256 + 16, 1);
  EXPECT_EQ(RunsOf(sequence_).size(), 4u);
}

TEST_F(SegmentMergeTest, ForksShareOneMergeAndAShorterForkKeepsItsSegments) {
  Open(Options());
  Generate(sequence_, 4 + 192 + 16, 1);
  const Sequence shorter = *tenant_.Fork(sequence_);
  EngineTestPeer::PauseBuilds(*engine_, true);
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(AppendRandom(*engine_, sequence_, 1, 500 + i).ok());
  const Sequence fork = *tenant_.Fork(sequence_);
  EngineTestPeer::PauseBuilds(*engine_, false);
  ASSERT_TRUE(engine_->WaitForBuilds(fork).ok());
  EXPECT_EQ(RunsOf(sequence_), (Runs{{4, 260}}));
  EXPECT_EQ(RunsOf(fork), (Runs{{4, 260}}));
  EXPECT_EQ(RunsOf(shorter).size(), 3u);
  EXPECT_EQ(engine_->stats().segment_merges_total, 2);
  EXPECT_EQ(DigestOf(fork), DigestOf(sequence_));
  while (engine_->stats().segments_pending > 0) {
  }
  ExpectSound();
}

TEST_F(SegmentMergeTest, TruncationInsideAMergedSegmentKeepsTheTokensBefore) {
  Open(Options());
  Generate(sequence_, 100, 1);
  const Sequence prefix = *tenant_.Fork(sequence_);
  Generate(sequence_, 4 + 256 + 16 - 100, 101);
  ASSERT_EQ(RunsOf(sequence_), (Runs{{4, 260}}));
  ASSERT_TRUE(tenant_.Truncate(sequence_, 100).ok());
  const auto kept = DigestOf(sequence_, AttendOptions::Exact());
  const auto expected = DigestOf(prefix, AttendOptions::Exact());
  ASSERT_EQ(kept.size(), expected.size());
  for (size_t i = 0; i < kept.size(); ++i) EXPECT_NEAR(kept[i], expected[i], 1e-4) << i;
  ExpectSound();
}

TEST_F(SegmentMergeTest, AMergeWithoutMemoryLeavesTheSegmentsAndIsTriedAgain) {
  Open(Options());
  Generate(sequence_, 4 + 255 + 16, 1);
  ASSERT_EQ(RunsOf(sequence_).size(), 3u);
  EngineTestPeer::PauseBuilds(*engine_, true);
  ASSERT_TRUE(AppendRandom(*engine_, sequence_, 1, 900).ok());
  // The last segment takes an extent per kv head and layer; all that comes then is refused.
  EngineTestPeer::FailAllocations(*engine_, 2, 1);
  EngineTestPeer::PauseBuilds(*engine_, false);
  (void)engine_->WaitForBuilds(sequence_);
  EngineTestPeer::FailAllocations(*engine_, 0, 0);
  EXPECT_EQ(engine_->stats().merge_failures_total + engine_->stats().seal_failures_total, 1);
  EXPECT_TRUE(engine_->WaitForBuilds(sequence_).ok());
  ExpectSound();
  ASSERT_TRUE(engine_->BuildSegments(sequence_).ok());
  ASSERT_TRUE(engine_->WaitForBuilds(sequence_).ok());
  EXPECT_EQ(RunsOf(sequence_), (Runs{{4, 260}}));
  EXPECT_EQ(engine_->stats().segment_merges_total, 2);
  ExpectSound();
}

}  // namespace
}  // namespace wavekv
