#include "cuda/merge_states.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class MergeStatesOnGpu : public GpuFixture {};

TEST_P(MergeStatesOnGpu, GivesWhatTheCpuGives) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  const int dims[] = {8, 40, 64, 80, 96, 128, 256};
  std::vector<MergeStatesTask> tasks, expected;
  std::vector<std::vector<float>> outputs, lses;
  std::vector<std::vector<AttentionState>> states;
  constexpr int kTasks = 30;
  for (int i = 0; i < kTasks; ++i) {
    const int dim = dims[random.Integer(0, 6)];
    const int num_queries = static_cast<int>(random.Integer(0, 9));
    const int64_t num_states = random.Integer(0, 70);
    std::vector<AttentionState> on_device;
    states.emplace_back();
    for (int64_t s = 0; s < num_states; ++s) {
      outputs.push_back(random.Gaussians(num_queries * dim));
      lses.push_back(random.Gaussians(num_queries, 5.0f));
      for (float& lse : lses.back()) {
        if (random.Integer(0, 3) == 0) lse = -kInfinity;
      }
      states.back().push_back({outputs.back().data(), lses.back().data()});
      on_device.push_back({Upload(outputs.back()), Upload(lses.back())});
    }
    MergeStatesTask task;
    task.states = absl::MakeConstSpan(Upload(on_device), on_device.size());
    task.num_queries = num_queries;
    task.head_dim_v = dim;
    task.output = Poison<float>(num_queries * dim);
    task.lse = Poison<float>(num_queries);
    tasks.push_back(task);
  }
  TaskBounds bounds;
  bounds.num_queries = 9;
  Expect(operations().merge_states({Upload(tasks), kTasks}, bounds, stream()));
  for (int i = 0; i < kTasks; ++i) {
    SCOPED_TRACE(i);
    MergeStatesTask task = tasks[i];
    const int64_t size = int64_t{task.num_queries} * task.head_dim_v;
    std::vector<float> output(size), lse(task.num_queries);
    task.states = states[i];
    const std::vector<float> got = Download(task.output, size);
    const std::vector<float> got_lse = Download(task.lse, task.num_queries);
    task.output = output.data();
    task.lse = lse.data();
    Expect(cpu().MergeStates({&task, 1}));
    for (int64_t j = 0; j < size; ++j) ASSERT_NEAR(got[j], output[j], 1e-5f) << j;
    for (int q = 0; q < task.num_queries; ++q) {
      if (lse[q] == -kInfinity) {
        EXPECT_EQ(got_lse[q], lse[q]);
      } else {
        EXPECT_NEAR(got_lse[q], lse[q], 1e-5f);
      }
    }
  }
}

WAVEKV_ON_EACH_GPU(MergeStatesOnGpu);

}  // namespace
}  // namespace wavekv::testing
