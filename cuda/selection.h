// What the kernels of select_items.cu work on: items, their keys, scratch and shared memory.
#ifndef WAVEKV_CUDA_SELECTION_H_
#define WAVEKV_CUDA_SELECTION_H_

#include "compute/select_clusters.h"
#include "compute/select_tokens.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE::selection {

inline constexpr int kItemsPerThread = 8;
inline constexpr int kThreads = 256;
inline constexpr int kThreadsMax = 512;  // of a block that does a task alone
inline constexpr int kBins = 2048;
inline constexpr int kKeyShift = 52;                      // a key's upper 11 bits number its bin
inline constexpr int kAllBins = -1;                       // the cut is behind all bins
inline constexpr uint64_t kNoItem = ~uint64_t{0};         // the cut is before all keys
inline constexpr uint64_t kEveryItem = 0;                 // the cut is behind all keys
inline constexpr int64_t kLimitUnits = int64_t{1} << 40;  // of risk, that make the limit
inline constexpr float kRiskMost = std::numeric_limits<float>::max();

// What both operations have in common, read from the task where it is needed.
class ClusterItems {
 public:
  using Task = SelectClustersTask;
  static constexpr bool kClusters = true;
  WAVEKV_DEVICE explicit ClusterItems(const Task& t) : task(t) {}

  WAVEKV_DEVICE const float* scores() const { return task.scores; }
  WAVEKV_DEVICE int64_t count() const { return task.num_clusters; }
  WAVEKV_DEVICE int64_t num_estimation() const { return task.num_estimation; }
  WAVEKV_DEVICE int64_t* num_selected() const { return task.num_retrieved; }

  const Task& task;
};

class TokenItems {
 public:
  using Task = SelectTokensTask;
  static constexpr bool kClusters = false;
  WAVEKV_DEVICE explicit TokenItems(const Task& t) : task(t) {}

  WAVEKV_DEVICE const float* scores() const { return task.rank_scores; }
  WAVEKV_DEVICE int64_t count() const { return task.num_tokens; }
  WAVEKV_DEVICE int64_t num_estimation() const { return 0; }
  WAVEKV_DEVICE int64_t* num_selected() const { return task.num_chosen; }

  const Task& task;
};

WAVEKV_DEVICE uint32_t SizeOf(const ClusterItems& items, int64_t i) { return items.task.sizes[i]; }
WAVEKV_DEVICE uint32_t SizeOf(const TokenItems&, int64_t) { return 1; }

// A task's scratch: offsets in bytes.
struct ScratchLayout {
  int64_t cuts;        // uint64_t [2]: of the first zone, of the estimation zone
  int64_t num_done;    // uint32_t: blocks; then num_candidates
  int64_t counts;      // uint32_t [kBins]
  int64_t tokens;      // int64_t [kBins]
  int64_t units;       // int64_t [kBins]
  int64_t selected;    // uint32_t [num_chunks]: in a chunk, later before it
  int64_t partials;    // Partial [num_queries, num_chunks]
  int64_t candidates;  // uint64_t [num_items]
  int64_t risks;       // float [num_items]
  int64_t num_bytes;
  int64_t num_chunks;
};

// The mass of some items: mass e^most.
struct Partial {
  float most;
  float mass;
};

inline ScratchLayout LayoutOf(const TaskBounds& bounds, int64_t num_chunks) {
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 255) / 256 * 256;
    return begin;
  };
  ScratchLayout layout = {};
  layout.cuts = take(2 * sizeof(uint64_t));
  layout.num_done = take(2 * sizeof(uint32_t));
  layout.counts = take(kBins * sizeof(uint32_t));
  layout.tokens = take(kBins * sizeof(int64_t));
  layout.units = take(kBins * sizeof(int64_t));
  layout.selected = take(num_chunks * static_cast<int64_t>(sizeof(uint32_t)));
  layout.partials = take(bounds.num_queries * num_chunks * static_cast<int64_t>(sizeof(Partial)));
  layout.candidates = take(bounds.num_items * static_cast<int64_t>(sizeof(uint64_t)));
  layout.risks = take(bounds.num_items * static_cast<int64_t>(sizeof(float)));
  layout.num_bytes = end;
  layout.num_chunks = num_chunks;
  return layout;
}

// Of one task. The layout is a kernel's parameter, so that pointers need no registers.
class Scratch {
 public:
  WAVEKV_DEVICE Scratch(std::byte* memory, const ScratchLayout& layout, int64_t task)
      : base_(memory + task * layout.num_bytes), layout_(layout) {}

  WAVEKV_DEVICE uint64_t* cuts() const { return At<uint64_t>(layout_.cuts); }
  WAVEKV_DEVICE uint32_t* num_done() const { return At<uint32_t>(layout_.num_done); }
  WAVEKV_DEVICE uint32_t* num_candidates() const { return num_done() + 1; }
  WAVEKV_DEVICE uint32_t* counts() const { return At<uint32_t>(layout_.counts); }
  WAVEKV_DEVICE int64_t* tokens() const { return At<int64_t>(layout_.tokens); }
  WAVEKV_DEVICE int64_t* units() const { return At<int64_t>(layout_.units); }
  WAVEKV_DEVICE uint32_t* selected() const { return At<uint32_t>(layout_.selected); }
  WAVEKV_DEVICE Partial* partials() const { return At<Partial>(layout_.partials); }
  WAVEKV_DEVICE uint64_t* candidates() const { return At<uint64_t>(layout_.candidates); }
  WAVEKV_DEVICE float* risks() const { return At<float>(layout_.risks); }

 private:
  template <typename T>
  WAVEKV_DEVICE T* At(int64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

  std::byte* base_;
  const ScratchLayout& layout_;
};

// The items of a block: number k of a thread is begin + k * threads + thread.
struct Chunk {
  int64_t index;
  int64_t begin;
  int64_t num_chunks;  // of the task
};

WAVEKV_DEVICE int64_t ChunkItems() { return int64_t{BlockThreads()} * kItemsPerThread; }
WAVEKV_DEVICE Chunk ChunkOf(int64_t index, int64_t count) {
  const int64_t items = ChunkItems();
  return {index, index * items, (count + items - 1) / items};
}
WAVEKV_DEVICE int64_t ItemOf(const Chunk& chunk, int k) {
  return chunk.begin + k * BlockThreads() + ThreadIndex();
}

WAVEKV_DEVICE uint32_t RankBits(float probability) { return FloatBits(probability) & 0x7fffffffu; }
WAVEKV_DEVICE uint64_t KeyOf(uint32_t bits, int64_t item) {
  return uint64_t{bits} << 32 | static_cast<uint32_t>(~item);
}
WAVEKV_DEVICE int64_t ItemOfKey(uint64_t key) { return static_cast<uint32_t>(~key); }
WAVEKV_DEVICE int BinOf(uint64_t key) { return static_cast<int>(key >> kKeyShift); }

WAVEKV_DEVICE double InverseOf(double limit) { return 1.0 / (limit > 0.0 ? limit : 0.0); }
// A risk in parts of its limit: integers, for sums that depend on no order.
WAVEKV_DEVICE int64_t RiskUnits(float risk, double inverse) {
  if (!(risk > 0.0f)) return 0;
  const double limits = static_cast<double>(risk) * inverse;
  if (!(limits < 2.0)) return 2 * kLimitUnits;
  const double units = limits * static_cast<double>(kLimitUnits);
  const auto whole = static_cast<int64_t>(units);
  return whole + (static_cast<double>(whole) < units ? 1 : 0);
}

// Where the cuts fall.
struct Plan {
  int bin;         // that the first zone ends in
  bool by_budget;  // the budget may end it, with budget_left tokens from the bin
  bool by_risk;    // the limit may
  int64_t budget_left;
  int64_t units_left;
  int64_t num_above;  // items in higher bins
  // Bins that the estimation zone may end in.
  int estimation_low;
  int estimation_high;
};

// Shared memory. `tokens` and `units` hold the sums of the chunk's bins; later, when the cuts are
// looked for, counts and weights of candidates.
struct Workspace {
  uint32_t* counts;  // [kBins]
  uint32_t* tokens;  // [kBins]: of a chunk, so less than 2^32
  int64_t* units;    // [kBins]
  int64_t* sums;     // [33]
  int64_t* found;    // [2]
  Plan* plan;
  uint32_t* prefixes;  // [kItemsPerThread * warps]
  Partial* of_warps;   // [num_queries, warps]
  Partial* of_heads;   // [num_queries]: most and 1 / mass
};

WAVEKV_DEVICE Workspace TakeWorkspace(int num_queries) {
  SharedMemory shared;
  Workspace workspace;
  workspace.counts = shared.Take<uint32_t>(kBins);
  workspace.tokens = shared.Take<uint32_t>(kBins);
  workspace.units = shared.Take<int64_t>(kBins);
  workspace.sums = shared.Take<int64_t>(33);
  workspace.found = shared.Take<int64_t>(2);
  workspace.plan = shared.Take<Plan>(1);
  workspace.prefixes = shared.Take<uint32_t>(kItemsPerThread * BlockWarps());
  workspace.of_warps = shared.Take<Partial>(int64_t{num_queries} * BlockWarps());
  workspace.of_heads = shared.Take<Partial>(num_queries);
  return workspace;
}
inline int64_t WorkspaceBytes(int num_queries, int threads) {
  const int64_t warps = threads / kWarp;
  return SharedSize()
      .Add<uint32_t>(kBins)
      .Add<uint32_t>(kBins)
      .Add<int64_t>(kBins)
      .Add<int64_t>(33)
      .Add<int64_t>(2)
      .Add<Plan>(1)
      .Add<uint32_t>(kItemsPerThread * warps)
      .Add<Partial>(num_queries * warps)
      .Add<Partial>(num_queries)
      .bytes();
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE::selection

#endif  // WAVEKV_CUDA_SELECTION_H_
