// Tensors in device memory, on several streams of the caller, while nothing is waited for: answers
// are those of the moment of the call.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/gpu.h"
#include "tests/api/engine_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr int kStreams = 3;

class GpuStreams : public EngineFixture {
 protected:
  struct Live {
    Sequence handle;
    ModelSequence model;
  };
  // A call that may be under way: its tensors, and what its answer is to be.
  struct Call {
    GpuMemory memory;
    std::vector<float> host;  // is copied to the memory
    int64_t output_at = 0;
    std::vector<double> output;
    GpuEvent event;
  };

  static EngineOptions Options() {
    EngineOptions options = SmallOptions();
    options.model.num_layers = 1;
    options.model.head_dim_k = 16;
    options.model.head_dim_v = 8;
    options.index.segment_tokens = 128;
    options.index.update_tokens = 64;
    options.index.window_tokens = 16;
    options.index.kmeans_iterations = 1;
    options.arena_bytes = int64_t{3} << 20;
    options.gpu.workspace_bytes = int64_t{16} << 20;
    options.gpu.staging_bytes = int64_t{1} << 20;
    options.build_threads = 1;
    return options;
  }

  void OpenStreams() {
    Open(Options());
    for (int i = 0; i < kStreams; ++i) streams_.push_back(*GpuOwnStream::Create(OfTest()));
    live_.push_back({sequence_, ModelSequence(model_)});
  }

  GpuStream AnyStream() { return streams_[random_.Integer(0, kStreams - 1)].get(); }
  Live& AnySequence() { return live_[random_.Integer(0, static_cast<int64_t>(live_.size()) - 1)]; }

  Call MakeCall(std::vector<float> host, int64_t num_outputs, GpuStream stream) {
    Call call;
    call.output_at = static_cast<int64_t>(host.size());
    host.resize(host.size() + num_outputs, NAN);
    call.host = std::move(host);
    const auto bytes = static_cast<int64_t>(call.host.size() * sizeof(float));
    call.memory = *GpuMemory::Device(OfTest(), bytes);
    call.event = *GpuEvent::Create(OfTest());
    EXPECT_TRUE(OfTest()->Copy(call.memory.data(), call.host.data(), bytes, stream).ok());
    return call;
  }
  TensorView View(const Call& call, int64_t at, int64_t rows, int64_t heads, int64_t dim) {
    TensorView view = TensorView::Dense(reinterpret_cast<const float*>(call.memory.data()) + at,
                                        DType::kFloat32, rows, heads, dim);
    view.memory = Memory::kDevice;
    return view;
  }
  void Queue(Call call, GpuStream stream) {
    EXPECT_TRUE(OfTest()->Record(call.event.get(), stream).ok());
    calls_.push_back(std::move(call));
  }

  absl::Status AppendOnDevice(Live& live, int64_t rows, bool paged) {
    const GpuStream stream = AnyStream();
    const int heads = model_.num_kv_heads, dim_k = model_.head_dim_k, dim_v = model_.head_dim_v;
    std::vector<float> keys = random_.Gaussians(rows * heads * dim_k);
    std::vector<float> values = random_.Gaussians(rows * heads * dim_v);
    std::vector<float> host(keys);
    host.insert(host.end(), values.begin(), values.end());
    Call call = MakeCall(std::move(host), 0, stream);
    const auto values_at = static_cast<int64_t>(keys.size());
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    absl::Status status;
    if (paged) {
      // A page a token, numbered by position; rows that the engine has already are not looked at.
      const int64_t length = live.model.length(0);
      std::vector<int32_t> pages(length + rows, -1);
      for (int64_t i = 0; i < rows; ++i) pages[length + i] = static_cast<int32_t>(i);
      const auto view = [&](int64_t at, int dim) {
        return PagedView{View(call, at, rows, heads, dim).data,
                         DType::kFloat32,
                         rows,
                         1,
                         heads,
                         dim,
                         int64_t{heads} * dim,
                         int64_t{heads} * dim,
                         dim,
                         Memory::kDevice};
      };
      status = engine_->AppendPaged({{&live.handle, 1}, cu_seqlens}, 0, view(0, dim_k),
                                    view(values_at, dim_v),
                                    {pages.data(), 1, length + rows, length + rows}, stream);
    } else {
      status =
          engine_->Append({{&live.handle, 1}, cu_seqlens}, 0, View(call, 0, rows, heads, dim_k),
                          View(call, values_at, rows, heads, dim_v), stream);
    }
    Queue(std::move(call), stream);
    if (status.ok()) live.model.Append(0, keys, values);
    return status;
  }

  // A plan on whatever stream, while its last call may be under way.
  absl::Status AttendOnDevice(const Live& live, const AttendOptions& options) {
    const GpuStream stream = AnyStream();
    const int heads = model_.num_q_heads;
    const int64_t rows = random_.Integer(1, 2);
    const std::vector<float> queries = random_.Gaussians(rows * heads * model_.head_dim_k);
    const int64_t num_outputs = rows * heads * model_.head_dim_v;
    Call call = MakeCall(queries, num_outputs, stream);
    const bool exact = options.retrieval.is_ratio() && options.retrieval.ratio() >= 1.0;
    if (exact) call.output = live.model.Attend(0, queries, rows, options.causal).output;
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(rows)};
    std::optional<Plan>& plan = plans_[{live.handle.id(), rows, exact}];
    if (!plan.has_value()) {
      auto made = engine_->MakePlan({{&live.handle, 1}, cu_seqlens}, options);
      if (!made.ok()) return made.status();
      plan = *std::move(made);
    }
    MutableTensorView output =
        MutableTensorView::Dense(reinterpret_cast<float*>(call.memory.data()) + call.output_at,
                                 DType::kFloat32, rows, heads, model_.head_dim_v);
    output.memory = Memory::kDevice;
    const absl::Status status =
        engine_
            ->Attend(*plan, 0, View(call, 0, rows, heads, model_.head_dim_k), output, {}, {},
                     stream)
            .status();
    Queue(std::move(call), stream);
    return status;
  }

  // Any of the calls, in whatever order.
  void CheckOne() {
    const auto at = calls_.begin() + random_.Integer(0, static_cast<int64_t>(calls_.size()) - 1);
    // Memory is given back in the end: that waits for the device.
    spent_.push_back(std::move(*at));
    calls_.erase(at);
    const Call& call = spent_.back();
    ASSERT_TRUE(OfTest()->Await(call.event.get()).ok());
    const auto num = static_cast<int64_t>(call.host.size()) - call.output_at;
    if (num == 0) return;
    std::vector<float> got(num);
    const GpuStream stream = AnyStream();
    ASSERT_TRUE(OfTest()
                    ->Copy(got.data(), call.memory.data() + call.output_at * sizeof(float),
                           num * int64_t{sizeof(float)}, stream)
                    .ok());
    ASSERT_TRUE(OfTest()->Record(call.event.get(), stream).ok());
    ASSERT_TRUE(OfTest()->Await(call.event.get()).ok());
    for (int64_t i = 0; i < num; ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << i;
      if (!call.output.empty()) {
        ASSERT_NEAR(got[i], call.output[i], 2e-4) << i;
      }
    }
  }

  void Walk(int num_operations) {
    for (int i = 0; i < num_operations && !HasFatalFailure(); ++i) {
      Live& live = AnySequence();
      const int64_t length = live.model.length(0);
      const int64_t dice = random_.Integer(0, 99);
      absl::Status status;
      if (dice < 35) {
        const int64_t rows = random_.Integer(0, 3) == 0 && length < 300 ? 70 : 1;
        status = AppendOnDevice(live, rows, /*paged=*/dice < 8);
      } else if (dice < 70) {
        AttendOptions options = AttendOptions::Exact();
        if (random_.Integer(0, 3) == 0) options = AttendOptions();
        for (int64_t times = random_.Integer(1, 3); times > 0 && status.ok(); --times) {
          status = AttendOnDevice(live, options);
        }
      } else if (dice < 80) {
        const int64_t left = length - random_.Integer(0, length / 3);
        status = tenant_.Truncate(live.handle, left);
        if (status.ok()) live.model.Truncate(left);
      } else if (dice < 88 && live_.size() < 4) {
        const int64_t prefix = random_.Integer(0, length);
        auto child = tenant_.Fork(live.handle, prefix);
        status = child.status();
        if (child.ok()) {
          Live fork{*child, live.model};
          fork.model.Truncate(prefix);
          live_.push_back(std::move(fork));
        }
      } else if (dice < 93 && live_.size() > 1) {
        // With calls on it under way.
        ASSERT_TRUE(tenant_.Remove(live_.back().handle).ok());
        live_.pop_back();
      } else if (dice < 95) {
        EngineTestPeer::FailAllocations(*engine_, random_.Integer(0, 3), random_.Integer(1, 3));
      } else {
        status = engine_->BuildSegments(live.handle);
      }
      ASSERT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << i << ": " << status;
      while (!calls_.empty() && (calls_.size() > 30 || random_.Integer(0, 4) == 0)) CheckOne();
    }
    EngineTestPeer::FailAllocations(*engine_, 0, 0);
    while (!calls_.empty() && !HasFatalFailure()) CheckOne();
  }

  std::vector<GpuOwnStream> streams_;
  std::deque<Live> live_;
  std::vector<Call> calls_;
  std::deque<Call> spent_;
  std::map<std::tuple<uint64_t, int64_t, bool>, std::optional<Plan>>
      plans_;  // used again and again
};

TEST_P(GpuStreams, CallsSeeWhatWasThereWhenTheyWereMade) {
  if (on_cpu()) GTEST_SKIP() << "has no streams";
  OpenStreams();
  Walk(250);
  if (HasFatalFailure()) return;
  // Nothing is kept once all has run.
  for (const Live& live : live_) ASSERT_TRUE(tenant_.Remove(live.handle).ok());
  while (engine_->stats().segments_pending > 0) absl::SleepFor(absl::Milliseconds(1));
  EngineTestPeer::WaitUntilAdmitted(*engine_);
  EXPECT_EQ(engine_->stats().arena_bytes_used, 0);
  EXPECT_TRUE(EngineTestPeer::FreeBytesAreZero(*engine_));
}

TEST_P(GpuStreams, AnEngineIsDestroyedWhileItsCallsAreUnderWay) {
  if (on_cpu()) GTEST_SKIP() << "has no streams";
  OpenStreams();
  Live& live = live_.front();
  ASSERT_TRUE(AppendOnDevice(live, 200, false).ok());
  ASSERT_TRUE(AttendOnDevice(live, AttendOptions::Exact()).ok());
  ASSERT_TRUE(AppendOnDevice(live, 3, false).ok());
  ASSERT_TRUE(AttendOnDevice(live, AttendOptions::Exact()).ok());
  engine_.reset();
  while (!calls_.empty()) CheckOne();
  // The handles that are left hold none of the device's memory that a new engine would need.
  EXPECT_FALSE(live.handle.valid());
  plans_.clear();
}

INSTANTIATE_TEST_SUITE_P(Devices, GpuStreams, AllTestDevices(), DeviceName);

}  // namespace
}  // namespace wavekv::testing
