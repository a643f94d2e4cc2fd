// Random operations on an engine on an emulated GPU and on the simplest model of it, whatever the
// order in which streams get on.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <tuple>

#include "api/engine_test_peer.h"
#include "cuda/emulator/emulated_gpu.h"
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

constexpr int64_t kOperations = 50;
constexpr int64_t kSharedOperations = 20;

// WAVEKV_MODEL_OPS runs longer, or one failure again.
int64_t OperationsOr(int64_t otherwise) {
  const char* text = std::getenv("WAVEKV_MODEL_OPS");
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

class GpuModelTest : public ::testing::TestWithParam<std::tuple<uint64_t, EmulatedOrder>> {
 protected:
  void SetUp() override { EngineTestPeer::UseGpu(MakeEmulatedGpu(std::get<1>(GetParam()))); }
  void TearDown() override { EngineTestPeer::UseGpu(nullptr); }

  static uint64_t seed() { return std::get<0>(GetParam()); }

  // Threads of the emulator take their time: less of everything.
  static WorldShape Shape() {
    WorldShape shape = DrawShape(seed());
    shape.options.device = Device::kCuda;
    shape.options.tiers = TierOptions();
    shape.options.gpu.workspace_bytes = int64_t{24} << 20;
    shape.options.gpu.staging_bytes = int64_t{4} << 20;
    shape.options.index.kmeans_iterations = std::min(shape.options.index.kmeans_iterations, 1);
    shape.length_max = 300;
    shape.prompt_rows_max = 120;
    return shape;
  }

  void Walk(RandomWorld::Builds builds) {
    const WorldShape shape = Shape();
    RandomWorld world(seed(), shape, builds);
    const int64_t num_operations = OperationsOr(kOperations);
    for (int64_t i = 0; i < num_operations; ++i) {
      const absl::Status status = world.Step();
      ASSERT_TRUE(status.ok()) << "seed " << seed() << ", operation " << i + 1 << ": " << status
                               << "\nshape: " << ToString(shape) << "\nlast operations:\n"
                               << world.History();
    }
    RecordProperty("counts", ToString(world.counts()));
    EXPECT_GT(world.counts().attended, 0);
    const absl::Status finished = world.Finish();
    EXPECT_TRUE(finished.ok()) << finished << "\nlast operations:\n" << world.History();
  }
};

TEST_P(GpuModelTest, RandomOperationsEqualTheModel) { Walk(RandomWorld::Builds::kBetweenSteps); }

TEST_P(GpuModelTest, RandomOperationsEqualTheModelWhileBuildsRun) {
  Walk(RandomWorld::Builds::kAnyTime);
}

TEST_P(GpuModelTest, ReadersBesideAWriterSeeWhatWasCurrentDuringTheirCall) {
  WorldShape shape = Shape();
  shape.options.build_threads = 2;
  SharedWorld world(seed(), shape, /*num_readers=*/2);
  const absl::Status status = world.Run(OperationsOr(kSharedOperations));
  EXPECT_TRUE(status.ok()) << "seed " << seed() << ": " << status << "\nshape: " << ToString(shape);
}

INSTANTIATE_TEST_SUITE_P(Seeds, GpuModelTest,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::Values(EmulatedOrder::kAtOnce,
                                                              EmulatedOrder::kDelayed)));

}  // namespace
}  // namespace wavekv
