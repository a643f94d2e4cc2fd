#include "cuda/emulator/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace wavekv::emulator {
namespace {

namespace fc = boost::context::detail;

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr int kThreadsMax = 1024;
constexpr size_t kSharedBytesMax = size_t{160} << 10;
constexpr uintptr_t kCopyAlignment = 16;

struct Copy {
  void* target;
  const void* source;
  size_t bytes;
};

enum class State : uint8_t { kReady, kInBarrier, kInWarp, kDone };

struct Fiber {
  fc::fcontext_t context = nullptr;
  std::byte* stack = nullptr;  // the lowest byte
  Dim3 index;
  State state = State::kDone;
  const char* waits_in = "";
  std::vector<std::vector<Copy>> groups;  // the last one is open
  void* fake_stack = nullptr;             // of AddressSanitizer
};

struct Warp {
  uint32_t live = 0;     // lanes that have not returned
  uint32_t arrived = 0;  // lanes in the operation that is under way
  const char* operation = "";
  uint64_t generation = 0;
  alignas(16) std::byte slots[2][kWarpSize * kLaneBytes];
};

// The block that runs in this thread.
class Block {
 public:
  Block() {
    void* memory = mmap(nullptr, kStackBytes * kThreadsMax, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) Fail("no memory for the stacks of a block");
    stacks_ = static_cast<std::byte*>(memory);
  }
  ~Block() { munmap(stacks_, kStackBytes * kThreadsMax); }

  void RunGrid(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes,
               absl::FunctionRef<void()> thread) {
    kernel_ = kernel;
    grid_ = grid;
    dim_ = block;
    thread_ = &thread;
    if (block.x == 0 || block.x % kWarpSize != 0 || block.x > kThreadsMax || block.y * block.z != 1)
      Fail("a block's threads must be a multiple of 32 up to 1024, in x");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
      Fail("a grid is empty, or too large in y or z");
    }
    if (shared_bytes > kSharedBytesMax) Fail("a block has too much shared memory");
    shared_ = std::make_unique<std::byte[]>(std::max<size_t>(shared_bytes, 1));
    shared_bytes_ = shared_bytes;
    const int64_t num_blocks = int64_t{grid.x} * grid.y * grid.z;
    std::vector<int64_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    random_.seed(next_seed_++);
    std::shuffle(order.begin(), order.end(), random_);
    for (const int64_t number : order) {
      index_ = {static_cast<unsigned>(number % grid.x),
                static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
      RunBlock();
    }
    shared_.reset();
    kernel_ = nullptr;
  }

  void Wait(State state, const char* waits_in) {
    current_->state = state;
    current_->waits_in = waits_in;
    SwitchToScheduler();
  }

  const std::byte* Exchange(const char* operation, const void* value, size_t bytes) {
    if (bytes > kLaneBytes) Fail("a lane hands over too many bytes");
    const int lane = static_cast<int>(current_->index.x) % kWarpSize;
    Warp& warp = warps_[current_->index.x / kWarpSize];
    if (warp.arrived == 0) {
      warp.operation = operation;
    } else if (std::strcmp(warp.operation, operation) != 0) {
      Fail("lanes of a warp are in different operations", warp.operation, operation);
    }
    const uint64_t generation = warp.generation;
    std::byte* slots = warp.slots[generation % 2];
    if (bytes > 0) std::memcpy(slots + lane * kLaneBytes, value, bytes);
    warp.arrived |= uint32_t{1} << lane;
    if (warp.live != 0xffffffffu) Fail("a warp operation after lanes have returned", operation);
    if (warp.arrived == warp.live) {
      warp.arrived = 0;
      ++warp.generation;
      const unsigned first = current_->index.x / kWarpSize * kWarpSize;
      for (unsigned i = first; i < first + kWarpSize; ++i) {
        if (fibers_[i].state == State::kInWarp) fibers_[i].state = State::kReady;
      }
    } else {
      Wait(State::kInWarp, operation);
    }
    return slots;
  }

  [[noreturn]] void Fail(const char* what, const char* a = "", const char* b = "") const {
    std::fprintf(stderr, "emulated GPU: %s: %s %s %s (block %u %u %u", kernel_ ? kernel_ : "launch",
                 what, a, b, index_.x, index_.y, index_.z);
    if (current_ != nullptr) std::fprintf(stderr, ", thread %u", current_->index.x);
    std::fprintf(stderr, ")\n");
    std::abort();
  }

  Fiber* current_ = nullptr;
  Dim3 grid_, dim_, index_;
  std::unique_ptr<std::byte[]> shared_;
  size_t shared_bytes_ = 0;

 private:
  void RunBlock() {
    std::memset(shared_.get(), 0xff, shared_bytes_);
    fibers_.resize(std::max<size_t>(fibers_.size(), dim_.x));
    warps_.resize(std::max<size_t>(warps_.size(), dim_.x / kWarpSize));
    for (unsigned i = 0; i < dim_.x; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.index = {i, 0, 0};
      fiber.state = State::kReady;
      fiber.groups.assign(1, {});
      fiber.stack = stacks_ + i * kStackBytes;
      fiber.fake_stack = nullptr;
      fiber.context = fc::make_fcontext(fiber.stack + kStackBytes, kStackBytes, &Block::Enter);
    }
    for (unsigned w = 0; w < dim_.x / kWarpSize; ++w) {
      warps_[w].live = 0xffffffffu;
      warps_[w].arrived = 0;
    }
    std::vector<unsigned> order(dim_.x);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    while (true) {
      bool progress = false;
      unsigned in_barrier = 0, done = 0;
      for (const unsigned i : order) {
        if (fibers_[i].state == State::kReady) {
          progress = true;
          SwitchTo(fibers_[i]);
        }
      }
      for (unsigned i = 0; i < dim_.x; ++i) {
        in_barrier += fibers_[i].state == State::kInBarrier;
        done += fibers_[i].state == State::kDone;
      }
      if (done == dim_.x) return;
      if (in_barrier == dim_.x) {
        for (unsigned i = 0; i < dim_.x; ++i) fibers_[i].state = State::kReady;
        continue;
      }
      if (!progress) ReportDeadlock();
    }
  }

  void ReportDeadlock() {
    for (unsigned i = 0; i < dim_.x; ++i) {
      if (i > 0 && fibers_[i].state == fibers_[i - 1].state) continue;
      std::fprintf(stderr, "  thread %u: %s\n", i,
                   fibers_[i].state == State::kDone ? "returned" : fibers_[i].waits_in);
    }
    current_ = nullptr;
    Fail("not all threads reach a barrier or a warp operation");
  }

  static void Enter(fc::transfer_t from);

  void SwitchTo(Fiber& fiber) {
    current_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
    const fc::transfer_t back = fc::jump_fcontext(fiber.context, this);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    fiber.context = back.fctx;
    current_ = nullptr;
  }

  void SwitchToScheduler() {
#if defined(__SANITIZE_ADDRESS__)
    Fiber& fiber = *current_;
    __sanitizer_start_switch_fiber(fiber.state == State::kDone ? nullptr : &fiber.fake_stack,
                                   scheduler_stack_, scheduler_stack_bytes_);
#endif
    const fc::transfer_t back = fc::jump_fcontext(scheduler_, this);
    scheduler_ = back.fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  const char* kernel_ = nullptr;
  absl::FunctionRef<void()>* thread_ = nullptr;
  std::byte* stacks_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  fc::fcontext_t scheduler_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  std::mt19937_64 random_;
  static inline std::atomic<uint64_t> next_seed_{1};
};

Block& ThisBlock() {
  thread_local Block block;
  return block;
}

void Block::Enter(fc::transfer_t from) {
  Block& block = *static_cast<Block*>(from.data);
  block.scheduler_ = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack_, &block.scheduler_stack_bytes_);
#endif
  (*block.thread_)();
  Fiber& fiber = *block.current_;
  const bool has_copies = std::any_of(fiber.groups.begin(), fiber.groups.end(),
                                      [](const auto& group) { return !group.empty(); });
  if (has_copies) block.Fail("a thread returns before its asynchronous copies were waited for");
  const unsigned x = fiber.index.x;
  block.warps_[x / kWarpSize].live &= ~(uint32_t{1} << x % kWarpSize);
  fiber.state = State::kDone;
  block.SwitchToScheduler();
}

}  // namespace

const Dim3& ThreadIdx() { return ThisBlock().current_->index; }
const Dim3& BlockIdx() { return ThisBlock().index_; }
const Dim3& BlockDim() { return ThisBlock().dim_; }
const Dim3& GridDim() { return ThisBlock().grid_; }
std::byte* SharedMemory() { return ThisBlock().shared_.get(); }
size_t SharedBytes() { return ThisBlock().shared_bytes_; }

void SyncBlock() { ThisBlock().Wait(State::kInBarrier, "block barrier"); }

const std::byte* ExchangeInWarp(const char* operation, const void* value, size_t bytes) {
  return ThisBlock().Exchange(operation, value, bytes);
}

void CopyAsync(void* target, const void* source, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source)) %
          kCopyAlignment !=
      0) {
    ThisBlock().Fail("an asynchronous copy is not aligned to 16 bytes");
  }
  ThisBlock().current_->groups.back().push_back({target, source, bytes});
}

void CommitCopies() { ThisBlock().current_->groups.emplace_back(); }

void WaitForCopies(int groups_that_may_be_under_way) {
  auto& groups = ThisBlock().current_->groups;
  // The open group is not among those that are counted.
  while (static_cast<int>(groups.size()) - 1 > groups_that_may_be_under_way) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.target, copy.source, copy.bytes);
    groups.erase(groups.begin());
  }
}

void RunGrid(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes,
             absl::FunctionRef<void()> thread) {
  ThisBlock().RunGrid(kernel, grid, block, shared_bytes, thread);
}

void Stream::Submit(std::function<void()> work) {
  if (capturing_) {
    noted_.push_back(std::move(work));
  } else if (scheduler_ != nullptr) {
    scheduler_->Submit(*this, std::move(work));
  } else {
    work();
  }
}

void Stream::Launch(const char* kernel, std::function<void()> work) {
  if (scheduler_ != nullptr) scheduler_->CheckLaunch(kernel);
  Submit(std::move(work));
}

std::function<void()> Stream::EndCapture() {
  capturing_ = false;
  return [noted = std::exchange(noted_, {})] {
    for (const auto& work : noted) work();
  };
}

}  // namespace wavekv::emulator
