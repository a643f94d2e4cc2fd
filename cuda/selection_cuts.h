// The second half of a selection: where the ranking is cut.
#ifndef WAVEKV_CUDA_SELECTION_CUTS_H_
#define WAVEKV_CUDA_SELECTION_CUTS_H_

#include "cuda/selection.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE::selection {

// The bin in which the sums, from the highest bin down, reach a target, and what the bins above it
// leave of the target.
struct Found {
  int bin;  // kBins: no bin is needed; kAllBins: all are not enough
  int64_t left;
};

// amount: what the sums shall reach or, kOfRest, what those that are left may come to. The same in
// all threads; barriers on both ends.
template <bool kOfRest = false, typename Bin>
WAVEKV_DEVICE Found SearchBins(const Bin& bin, int64_t amount, const Workspace& workspace) {
  const int per_thread = kBins / BlockThreads();
  const int first = kBins - 1 - ThreadIndex() * per_thread;
  int64_t sum = 0;
  for (int b = first; b > first - per_thread; --b) sum += bin(b);
  int64_t total = 0;
  int64_t before = ExclusiveSumOfBlock(sum, workspace.sums, &total);
  const int64_t wanted = kOfRest ? total - amount : amount;
  if (wanted <= 0) return {kBins, 0};
  if (wanted > total) return {kAllBins, wanted - total};
  if (before < wanted && wanted <= before + sum) {
    int b = first;
    for (int64_t weight = bin(b); before + weight < wanted; weight = bin(--b)) before += weight;
    workspace.found[0] = b;
    workspace.found[1] = wanted - before;
  }
  SyncBlock();
  const Found found = {static_cast<int>(workspace.found[0]), workspace.found[1]};
  SyncBlock();
  return found;
}

// Sums of a whole task's bins.
template <typename Count, typename Tokens>
struct Bins {
  const Count* counts;
  const Tokens* tokens;
  const int64_t* units;
};

// The same in all threads.
template <typename Items, typename TaskBins>
WAVEKV_DEVICE Plan PlanCuts(const Items& items, const TaskBins& bins, const Workspace& workspace) {
  const auto count = [&](int b) { return static_cast<int64_t>(bins.counts[b]); };
  const auto tokens = [&](int b) {
    return static_cast<int64_t>(Items::kClusters ? bins.tokens[b] : bins.counts[b]);
  };
  const Found budget = SearchBins(tokens, items.task.token_budget, workspace);
  Plan plan = {budget.bin, true, false, budget.left, 0, 0, 0, -1};
  if (items.task.risk != nullptr) {
    const auto units = [&](int b) { return bins.units[b]; };
    // No rest is below a limit under 0.
    const int64_t rest = items.task.risk->limit >= 0.0 ? kLimitUnits : -1;
    const Found risk = SearchBins<true>(units, rest, workspace);
    plan.bin = Max(budget.bin, risk.bin);
    plan.by_budget = budget.bin == plan.bin;
    plan.by_risk = risk.bin == plan.bin;
    plan.units_left = risk.left;
  }
  int64_t above = 0;
  for (int b = ThreadIndex(); b < kBins; b += BlockThreads()) {
    if (b > plan.bin) above += count(b);
  }
  plan.num_above = SumOfBlock(above, workspace.sums);
  if (!Items::kClusters || items.num_estimation() <= 0 || plan.bin == kAllBins) return plan;

  // How many the first zone has is known to within its bin.
  const int64_t least = plan.num_above + Min(items.num_estimation(), items.count());
  const int64_t most = least + (plan.bin < kBins ? count(plan.bin) : 0);
  if (least >= items.count()) return plan;
  plan.estimation_high = SearchBins(count, least, workspace).bin;
  if (most < items.count()) plan.estimation_low = SearchBins(count, most, workspace).bin;
  return plan;
}

// Keeps the plan where it takes no registers. Ends with a barrier.
template <typename Items, typename TaskBins>
WAVEKV_DEVICE void KeepPlan(const Items& items, const TaskBins& bins, const Workspace& workspace) {
  const Plan plan = PlanCuts(items, bins, workspace);
  if (ThreadIndex() == 0) *workspace.plan = plan;
  SyncBlock();
}

// The rank bits of the thread's items, 0 where there is none: all loads before any store.
WAVEKV_DEVICE void LoadRanks(const float* probabilities, int64_t count, const Chunk& chunk,
                             uint32_t (&bits)[kItemsPerThread]) {
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const int64_t i = ItemOf(chunk, k);
    bits[k] = i < count ? RankBits(probabilities[i]) : 0;
  }
}

// Adds the chunk's candidates to the task's, and counts what is in the first zone for certain.
template <typename Items>
WAVEKV_DEVICE void GatherCandidates(const Items& items, const Chunk& chunk, const Scratch& scratch,
                                    const Workspace& workspace) {
  const int64_t count = items.count();
  const int last_bin = workspace.plan->bin;
  const int low = workspace.plan->estimation_low, high = workspace.plan->estimation_high;
  uint32_t bits[kItemsPerThread];
  LoadRanks(items.task.probabilities, count, chunk, bits);
  uint32_t candidates = 0, above = 0;
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const int64_t i = ItemOf(chunk, k);
    const int bin = BinOf(KeyOf(bits[k], i));
    if (i < count && (bin == last_bin || (bin <= high && bin >= low))) candidates |= 1u << k;
    if (i < count && bin > last_bin) ++above;
  }
  if (Items::kClusters) {
    above = SumOfWarp(above);
    if (LaneIndex() == 0 && above > 0) AtomicAdd(scratch.selected() + chunk.index, above);
  }
  const auto mine = static_cast<uint32_t>(PopCount(candidates));
  const uint32_t upto = InclusiveSumOfWarp(mine);
  uint32_t at = 0;
  if (LaneIndex() == kWarp - 1 && upto > 0) at = AtomicAdd(scratch.num_candidates(), upto);
  at = Shuffle(at, kWarp - 1) + upto - mine;
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    if ((candidates >> k & 1u) != 0) scratch.candidates()[at++] = KeyOf(bits[k], ItemOf(chunk, k));
  }
}

// The key of the candidate of bin found.bin with which weights, from the greatest key down, reach
// found.left. REQUIRES: a barrier since the workspace's tokens and units were read.
template <typename Items, typename Weight>
WAVEKV_DEVICE uint64_t ResolveCut(const Items& items, const Found& found, const Scratch& scratch,
                                  const Workspace& workspace, const Weight& weight) {
  const uint64_t* const candidates = scratch.candidates();
  const uint32_t num_candidates = *scratch.num_candidates();
  uint32_t* const counts = workspace.tokens;
  int64_t* const weights = workspace.units;
  uint64_t cut = static_cast<uint64_t>(found.bin) << kKeyShift;
  int64_t left = found.left;
  // The key's bits from `known` up are settled; ten more each time, and 11 of the last 22.
  for (int known = kKeyShift; known > 0;) {
    const int width = known > 22 ? 10 : 11, shift = known - width;
    const uint32_t mask = (1u << width) - 1;
    if (shift > 0 && shift < 32 && (items.count() - 1) >> shift == 0) {
      cut |= uint64_t{mask} << shift;  // as the index is inverted
      known = shift;
      continue;
    }
    for (int b = ThreadIndex(); b < kBins; b += BlockThreads()) {
      counts[b] = 0;
      weights[b] = 0;
    }
    SyncBlock();
    for (uint32_t c = ThreadIndex(); c < num_candidates; c += BlockThreads()) {
      const uint64_t key = candidates[c];
      if ((key ^ cut) >> known != 0) continue;
      const auto bin = static_cast<uint32_t>(key >> shift) & mask;
      AtomicAdd(counts + bin, 1u);
      AtomicAdd(weights + bin, weight(key));
    }
    SyncBlock();
    const Found next = SearchBins([&](int b) { return weights[b]; }, left, workspace);
    cut |= static_cast<uint64_t>(next.bin) << shift;
    left = next.left;
    known = shift;
    const bool alone = counts[next.bin] == 1;
    SyncBlock();
    if (!alone) continue;
    for (uint32_t c = ThreadIndex(); c < num_candidates; c += BlockThreads()) {
      const uint64_t key = candidates[c];
      if ((key ^ cut) >> known == 0) workspace.found[0] = static_cast<int64_t>(key);
    }
    SyncBlock();
    cut = static_cast<uint64_t>(workspace.found[0]);
    SyncBlock();
    return cut;
  }
  return cut;
}

// By the task's last block: the cuts, how many are before the first, and how many of these are
// before each chunk. Ends with a barrier.
template <typename Items, typename TaskBins>
WAVEKV_DEVICE void FindCuts(const Items& items, const Chunk& chunk, const TaskBins& bins,
                            const Scratch& scratch, const Workspace& workspace) {
  const Plan& plan = *workspace.plan;
  uint64_t cut = plan.bin == kBins ? kNoItem : kEveryItem;
  if (plan.bin < kBins && plan.bin > kAllBins) {
    if (plan.by_budget) {
      const auto tokens = [&](uint64_t key) { return int64_t{SizeOf(items, ItemOfKey(key))}; };
      cut = ResolveCut(items, {plan.bin, plan.budget_left}, scratch, workspace, tokens);
    }
    if (plan.by_risk) {
      const double inverse = InverseOf(items.task.risk->limit);
      const auto units = [&](uint64_t key) {
        return RiskUnits(scratch.risks()[ItemOfKey(key)], inverse);
      };
      cut = Max(cut, ResolveCut(items, {plan.bin, plan.units_left}, scratch, workspace, units));
    }
  }
  const uint32_t num_candidates = *scratch.num_candidates();
  int64_t num_selected = 0;
  for (uint32_t c = ThreadIndex(); c < num_candidates; c += BlockThreads()) {
    const uint64_t key = scratch.candidates()[c];
    if (key < cut) continue;
    ++num_selected;
    if (Items::kClusters) AtomicAdd(scratch.selected() + ItemOfKey(key) / ChunkItems(), 1u);
  }
  num_selected = plan.num_above + SumOfBlock(num_selected, workspace.sums);

  uint64_t estimation_cut = kNoItem;
  if (Items::kClusters && items.num_estimation() > 0) {
    const int64_t answered = num_selected + Min(items.num_estimation(), items.count());
    estimation_cut = kEveryItem;
    if (answered < items.count()) {
      const auto count = [&](int b) { return static_cast<int64_t>(bins.counts[b]); };
      const Found found = SearchBins(count, answered, workspace);
      const auto each = [](uint64_t) { return int64_t{1}; };
      estimation_cut = ResolveCut(items, found, scratch, workspace, each);
    }
  }
  if (Items::kClusters) {
    int64_t before = 0;
    for (int64_t first = 0; first < chunk.num_chunks; first += BlockThreads()) {
      const int64_t c = first + ThreadIndex();
      const int64_t of_chunk = c < chunk.num_chunks ? int64_t{scratch.selected()[c]} : 0;
      int64_t total = 0;
      const int64_t sum = before + ExclusiveSumOfBlock(of_chunk, workspace.sums, &total);
      if (c < chunk.num_chunks) scratch.selected()[c] = static_cast<uint32_t>(sum);
      before += total;
    }
  }
  if (ThreadIndex() == 0) {
    scratch.cuts()[0] = cut;
    scratch.cuts()[1] = estimation_cut;
    *items.num_selected() = num_selected;
  }
  SyncBlock();
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE::selection

#endif  // WAVEKV_CUDA_SELECTION_CUTS_H_
