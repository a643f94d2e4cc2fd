// What a decode step allocates once its buffers have grown: nothing.
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"
#include "wavekv/engine.h"
#include "wavekv/executor.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> num_allocations{0};

void* Allocate(size_t bytes, size_t alignment) noexcept {
  if (counting.load(std::memory_order_relaxed)) num_allocations.fetch_add(1);
  if (bytes == 0) bytes = 1;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* AllocateOrThrow(size_t bytes, size_t alignment) {
  void* const data = Allocate(bytes, alignment);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

}  // namespace

void* operator new(size_t bytes) { return AllocateOrThrow(bytes, 1); }
void* operator new[](size_t bytes) { return AllocateOrThrow(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return AllocateOrThrow(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return AllocateOrThrow(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Allocate(bytes, 1); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return Allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete[](void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { std::free(data); }
void operator delete[](void* data, const std::nothrow_t&) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(data);
}
void operator delete[](void* data, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(data);
}

namespace wavekv::testing {
namespace {

// Of all threads, while it lives.
class AllocationCount {
 public:
  AllocationCount() {
    num_allocations.store(0);
    counting.store(true);
  }
  ~AllocationCount() { counting.store(false); }

  int64_t value() const { return num_allocations.load(); }
};

// Two workers of which each always gets the same tasks, so that buffers of a thread grow in the
// first steps and not in the one where it first happens to be quick enough.
class TwoWorkers final : public Executor {
 public:
  ~TwoWorkers() override {
    Post(nullptr, -1);
    other_.join();
  }

  int num_workers() const override { return 2; }

  void ParallelFor(int64_t num_tasks,
                   absl::FunctionRef<void(int64_t task, int worker)> task) override {
    Post(&task, num_tasks);
    for (int64_t i = 0; i < num_tasks; i += 2) task(i, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return task_ == nullptr; });
  }

 private:
  using Task = absl::FunctionRef<void(int64_t task, int worker)>;

  // num_tasks < 0: stop.
  void Post(const Task* task, int64_t num_tasks) {
    const std::lock_guard<std::mutex> lock(mutex_);
    task_ = task;
    num_tasks_ = num_tasks;
    changed_.notify_all();
  }

  void Main() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return task_ != nullptr || num_tasks_ < 0; });
      if (num_tasks_ < 0) return;
      lock.unlock();
      for (int64_t i = 1; i < num_tasks_; i += 2) (*task_)(i, 1);
      lock.lock();
      task_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const Task* task_ = nullptr;
  int64_t num_tasks_ = 0;
  std::thread other_{[this] { Main(); }};
};

class Allocations : public ::testing::Test {
 protected:
  static constexpr int kLayers = 2;
  static constexpr int kKvHeads = 4;
  static constexpr int kQHeads = 16;
  static constexpr int kDim = 64;
  static constexpr int64_t kSegments = 4;
  static constexpr int64_t kSegmentTokens = 1024;

  // A context of sealed segments, and a tail of which the last chunk has room for 54 rows.
  void Open(std::shared_ptr<Executor> executor) {
    EngineOptions options;
    options.model = {.num_layers = kLayers,
                     .num_q_heads = kQHeads,
                     .num_kv_heads = kKvHeads,
                     .head_dim_k = kDim,
                     .kv_dtype = DType::kBFloat16};
    options.index.segment_tokens = options.index.update_tokens = kSegmentTokens;
    options.worker_threads = 1;
    options.executor = std::move(executor);
    constexpr int64_t kTail = 64 + 10;
    const int64_t num_tokens = options.index.sink_tokens + kSegments * kSegmentTokens + kTail;
    options.arena_bytes = ArenaBytesFor(options, 2 * num_tokens);
    auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto tenant = engine_->OpenTenant("tenant");
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    auto sequence = tenant->CreateSequence();
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    sequence_ = *sequence;
    for (int layer = 0; layer < kLayers; ++layer) Append(layer, num_tokens);
    absl::Status status = engine_->BuildSegments(sequence_);
    ASSERT_TRUE(status.ok()) << status;
    status = engine_->WaitForBuilds(sequence_);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(engine_->stats().segments_sealed, kSegments * kLayers);
  }

  void Append(int layer, int64_t num_rows) {
    const std::vector<float> keys = random_.Gaussians(num_rows * kKvHeads * kDim);
    const std::vector<float> values = random_.Gaussians(num_rows * kKvHeads * kDim);
    const int32_t cu_seqlens[] = {0, static_cast<int32_t>(num_rows)};
    const auto view = [&](const std::vector<float>& tensor) {
      return TensorView::Dense(tensor.data(), DType::kFloat32, num_rows, kKvHeads, kDim);
    };
    const AllocationCount count;
    const absl::Status status =
        engine_->Append({{&sequence_, 1}, cu_seqlens}, layer, view(keys), view(values));
    allocated_by_append_ = count.value();
    ASSERT_TRUE(status.ok()) << status;
  }

  // Steps until the buffers have grown, which they do with the largest step seen, and more that are
  // counted: the same questions again.
  void Decode(const AttendOptions& options) {
    constexpr int kWarmUp = 8, kSteps = 40;
    std::vector<std::vector<float>> questions;
    for (int i = 0; i < kWarmUp * kLayers; ++i) {
      questions.push_back(random_.Gaussians(kQHeads * kDim));
    }
    const int32_t cu_seqlens[] = {0, 1};
    const auto plan = engine_->MakePlan({{&sequence_, 1}, cu_seqlens}, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    std::vector<float> output(kQHeads * kDim), lse(kQHeads), errors(kQHeads);
    for (int step = 0; step < kWarmUp + kSteps; ++step) {
      for (int layer = 0; layer < kLayers; ++layer) {
        Append(layer, 1);
        const std::vector<float>& queries = questions[step % kWarmUp * kLayers + layer];
        const AllocationCount count;
        const auto stats = engine_->Attend(
            *plan, layer, TensorView::Dense(queries.data(), DType::kFloat32, 1, kQHeads, kDim),
            MutableTensorView::Dense(output.data(), DType::kFloat32, 1, kQHeads, kDim),
            PerHeadView::Dense(lse.data(), 1, kQHeads),
            PerHeadView::Dense(errors.data(), 1, kQHeads));
        const int64_t allocated_by_attend = count.value();
        ASSERT_TRUE(stats.ok()) << stats.status();
        if (step < kWarmUp) continue;
        EXPECT_EQ(allocated_by_append_, 0) << "step " << step << ", layer " << layer;
        EXPECT_EQ(allocated_by_attend, 0) << "step " << step << ", layer " << layer;
      }
    }
  }

 private:
  Random random_{1};
  std::unique_ptr<Engine> engine_;
  Sequence sequence_;
  int64_t allocated_by_append_ = 0;
};

TEST_F(Allocations, AreNoneInADecodeStepOnOneThread) {
  Open(nullptr);
  Decode(AttendOptions());
}

TEST_F(Allocations, AreNoneInADecodeStepOnTwoThreads) {
  Open(std::make_shared<TwoWorkers>());
  Decode(AttendOptions());
}

TEST_F(Allocations, AreNoneInAnExactDecodeStep) {
  Open(std::make_shared<TwoWorkers>());
  Decode(AttendOptions::Exact());
}

TEST(ThreadPoolAllocations, AreNoneInAParallelFor) {
  const std::unique_ptr<Executor> pool = MakeThreadPool(2);
  std::atomic<int64_t> sum{0};
  const AllocationCount count;
  for (int i = 0; i < 100; ++i) {
    pool->ParallelFor(10, [&](int64_t task, int) { sum.fetch_add(task); });
  }
  EXPECT_EQ(count.value(), 0);
  EXPECT_EQ(sum.load(), 100 * 45);
}

}  // namespace
}  // namespace wavekv::testing
