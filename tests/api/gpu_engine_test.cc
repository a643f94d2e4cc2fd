// An engine on a GPU, or on the emulator, beside naive attention and beside an engine on the
// processor.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/api/engine_fixture.h"

namespace wavekv::testing {
namespace {

class GpuEngine : public EngineFixture {
 protected:
  bool is_quick_on_emulator() const override { return true; }

  static EngineOptions Options() {
    EngineOptions options = SmallOptions();
    options.model.num_layers = 1;
    options.arena_bytes = int64_t{16} << 20;
    return options;
  }
};

TEST_P(GpuEngine, AttendsExactlyWhatIsNotSealed) {
  Open(Options());
  AppendRandom(150);  // too few to be cut
  AppendRandom(1);
  ExpectExact(0, 1, {});
  AppendRandom(3);
  ExpectExact(0, 3, {});
}

TEST_P(GpuEngine, AttendsSealedSegmentsExactlyWhenAskedTo) {
  Open(Options());
  AppendRandom(700);
  AppendRandom(1);
  WaitForBuilds();
  ExpectExact(0, 1, AttendOptions::Exact());
  AppendRandom(200);
  ExpectExact(0, 200, AttendOptions::Exact());
}

// States in device memory and on the caller's stream give what the same states give on the host.
TEST_P(GpuEngine, MergesStatesThatLieOnTheDevice) {
  if (on_cpu()) GTEST_SKIP() << "nothing lies on a device";
  Open(Options());
  constexpr int64_t kRows = 5, kHeads = 3, kDim = 40, kStates = 7;
  const std::shared_ptr<Gpu> gpu = OfTest();
  const GpuOwnStream stream = *GpuOwnStream::Create(gpu);
  const GpuEvent event = *GpuEvent::Create(gpu);
  const int64_t of_output = kRows * kHeads * kDim, of_lse = kRows * kHeads;
  const int64_t of_state = of_output + of_lse;
  std::vector<float> host = random_.Gaussians((kStates + 1) * of_state, 3.0f);
  for (int64_t i = 0; i < kStates; ++i) host[i * of_state + of_output + i] = -INFINITY;
  const auto bytes = static_cast<int64_t>(host.size() * sizeof(float));
  const GpuMemory memory = *GpuMemory::Device(gpu, bytes);
  ASSERT_TRUE(gpu->Copy(memory.data(), host.data(), bytes, stream.get()).ok());
  for (const LseBase base : {LseBase::kE, LseBase::k2}) {
    const auto merge = [&](float* at, Memory where) {
      std::vector<TensorView> outputs;
      std::vector<PerHeadView> lses;
      MutableTensorView last;
      for (int64_t s = 0; s <= kStates; ++s) {
        last = MutableTensorView::Dense(at + s * of_state, DType::kFloat32, kRows, kHeads, kDim);
        last.memory = where;
        outputs.push_back(last);
        lses.push_back(PerHeadView::Dense(at + s * of_state + of_output, kRows, kHeads));
      }
      return engine_->MergeStates(absl::MakeConstSpan(outputs).first(kStates),
                                  absl::MakeConstSpan(lses).first(kStates), base, last, lses.back(),
                                  where == Memory::kDevice ? stream.get() : nullptr);
    };
    ASSERT_TRUE(merge(host.data(), Memory::kHost).ok());
    ASSERT_TRUE(merge(reinterpret_cast<float*>(memory.data()), Memory::kDevice).ok());
    std::vector<float> got(of_state);
    ASSERT_TRUE(gpu->Copy(got.data(), memory.data() + kStates * of_state * sizeof(float),
                          of_state * int64_t{sizeof(float)}, stream.get())
                    .ok());
    ASSERT_TRUE(gpu->Record(event.get(), stream.get()).ok());
    ASSERT_TRUE(gpu->Await(event.get()).ok());
    for (int64_t i = 0; i < of_state; ++i) {
      ASSERT_NEAR(got[i], host[kStates * of_state + i], 1e-5) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, GpuEngine, AllTestDevices(), DeviceName);

}  // namespace
}  // namespace wavekv::testing
