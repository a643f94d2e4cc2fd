// Random operations on an engine and on the simplest model of it, compared after every step.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "api/engine_test_peer.h"
#include "gtest/gtest.h"
#include "tests/api/random_world.h"
#include "tests/api/random_world_shape.h"
#include "tests/api/random_world_threads.h"

namespace wavekv {
namespace {

using ::wavekv::testing::DrawShape;
using ::wavekv::testing::RandomWorld;
using ::wavekv::testing::SharedWorld;
using ::wavekv::testing::WorldShape;

// Sanitizers are ten times slower and look for other things.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int64_t kOperationsPerWorld = 300;
constexpr int64_t kSharedOperations = 150;
#else
constexpr int64_t kOperationsPerWorld = 10000;
constexpr int64_t kSharedOperations = 4000;
#endif

// Writing to a file takes its time.
int64_t DefaultOperations(int64_t in_memory, const WorldShape& shape) {
  return shape.options.tiers.directory.empty() ? in_memory : std::max<int64_t>(in_memory / 3, 200);
}

// WAVEKV_MODEL_OPS runs longer, or one failure again.
int64_t OperationsOr(int64_t otherwise) {
  const char* text = std::getenv("WAVEKV_MODEL_OPS");
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

class EngineModelTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  void Walk(RandomWorld::Builds builds) {
    const WorldShape shape = DrawShape(GetParam());
    RandomWorld world(GetParam(), shape, builds);
    const int64_t num_operations = OperationsOr(DefaultOperations(kOperationsPerWorld, shape));
    for (int64_t i = 0; i < num_operations; ++i) {
      const absl::Status status = world.Step();
      ASSERT_TRUE(status.ok()) << "seed " << GetParam() << ", operation " << i + 1 << ": " << status
                               << "\nshape: " << ToString(shape) << "\nlast operations:\n"
                               << world.History();
    }
    const auto counts = world.counts();
    RecordProperty("counts", ToString(counts));
    // The walk went where it was meant to.
    EXPECT_GT(counts.appended, num_operations / 10);
    EXPECT_GT(counts.attended, num_operations / 10);
    EXPECT_GT(counts.retrieved, num_operations / 50);
    EXPECT_GT(counts.sealed, num_operations / 100);
    // A short one may meet no limit.
    if (num_operations >= 1000) {
      EXPECT_GT(counts.refused, 0);
    }
    const absl::Status finished = world.Finish();
    EXPECT_TRUE(finished.ok()) << finished << "\nlast operations:\n" << world.History();
  }
};

TEST_P(EngineModelTest, RandomOperationsEqualTheModel) { Walk(RandomWorld::Builds::kBetweenSteps); }

TEST_P(EngineModelTest, RandomOperationsEqualTheModelWhileBuildsRun) {
  Walk(RandomWorld::Builds::kAnyTime);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EngineModelTest, ::testing::Values(1, 2, 3, 4, 5));

class EngineModelThreadsTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(EngineModelThreadsTest, ReadersBesideAWriterSeeWhatWasCurrentDuringTheirCall) {
  WorldShape shape = DrawShape(GetParam());
  shape.options.build_threads = 2;
  shape.length_max = 400;
  SharedWorld world(GetParam(), shape, /*num_readers=*/3);
  const absl::Status status = world.Run(OperationsOr(DefaultOperations(kSharedOperations, shape)));
  EXPECT_TRUE(status.ok()) << "seed " << GetParam() << ": " << status
                           << "\nshape: " << ToString(shape);
  EXPECT_GT(world.counts().answers, 0);
  EXPECT_GT(world.counts().forks, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EngineModelThreadsTest, ::testing::Values(1, 2, 3));

TEST(RandomWorldTest, AWorldFollowsFromItsSeed) {
  std::string histories[2];
  for (std::string& history : histories) {
    RandomWorld world(7, DrawShape(7), RandomWorld::Builds::kBetweenSteps);
    for (int i = 0; i < 200; ++i) {
      const absl::Status status = world.Step();
      ASSERT_TRUE(status.ok()) << status;
    }
    history = world.History() + ToString(world.counts());
  }
  EXPECT_EQ(histories[0], histories[1]);
}

}  // namespace
}  // namespace wavekv
