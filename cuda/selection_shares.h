// The first half of a selection: probabilities, risks, and sums of the bins that they fall into.
#ifndef WAVEKV_CUDA_SELECTION_SHARES_H_
#define WAVEKV_CUDA_SELECTION_SHARES_H_

#include "cuda/selection.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE::selection {

WAVEKV_DEVICE void AddTo(Partial& sum, float score) {
  if (score == -kInfinity) return;
  if (score > sum.most) {
    sum.mass *= Exp(sum.most - score);
    sum.most = score;
  }
  sum.mass += Exp(score - sum.most);
}

// The block's part of the clusters that are neither attended nor in the sketch zone.
WAVEKV_DEVICE void AddOthers(const TokenItems& items, int h, const Chunk& chunk, Partial& sum) {
  const SelectTokensTask& task = items.task;
  const float* const log_masses = task.log_masses + h * task.log_masses_stride;
  const int64_t end = task.num_clusters * (chunk.index + 1) / chunk.num_chunks;
  for (int64_t i = task.num_clusters * chunk.index / chunk.num_chunks + ThreadIndex(); i < end;
       i += BlockThreads()) {
    const Zone zone = task.zones[i];
    if (zone == Zone::kEstimation || zone == Zone::kRemainder) AddTo(sum, log_masses[i]);
  }
}
WAVEKV_DEVICE void AddOthers(const ClusterItems&, int, const Chunk&, Partial&) {}

// partials[h * num_chunks_most + chunk.index] for all heads h. Ends without a barrier.
template <typename Items>
WAVEKV_DEVICE void SumMasses(const Items& items, const Chunk& chunk, int64_t num_chunks_most,
                             Partial* partials, const Workspace& workspace) {
  for (int h = 0; h < items.task.num_queries; ++h) {
    const float* const scores = items.scores() + h * items.task.stride;
    float values[kItemsPerThread];
    WAVEKV_UNROLL
    for (int k = 0; k < kItemsPerThread; ++k) {
      const int64_t i = ItemOf(chunk, k);
      values[k] = i < items.count() ? scores[i] : -kInfinity;
    }
    Partial sum = {-kInfinity, 0.0f};
    WAVEKV_UNROLL
    for (int k = 0; k < kItemsPerThread; ++k) sum.most = Max(sum.most, values[k]);
    if (sum.most != -kInfinity) {
      WAVEKV_UNROLL
      for (int k = 0; k < kItemsPerThread; ++k) sum.mass += Exp(values[k] - sum.most);
    }
    AddOthers(items, h, chunk, sum);
    const float most = MaxOfWarp(sum.most);
    const float mass = SumOfWarp(sum.mass > 0.0f ? sum.mass * Exp(sum.most - most) : 0.0f);
    if (LaneIndex() == 0) workspace.of_warps[h * BlockWarps() + WarpIndex()] = {most, mass};
  }
  SyncBlock();
  for (int h = ThreadIndex(); h < items.task.num_queries; h += BlockThreads()) {
    const Partial* const of_warps = workspace.of_warps + h * BlockWarps();
    Partial sum = {-kInfinity, 0.0f};
    for (int w = 0; w < BlockWarps(); ++w) sum.most = Max(sum.most, of_warps[w].most);
    for (int w = 0; w < BlockWarps(); ++w) {
      if (of_warps[w].mass > 0.0f) sum.mass += of_warps[w].mass * Exp(of_warps[w].most - sum.most);
    }
    partials[h * num_chunks_most + chunk.index] = sum;
  }
}

// of_heads[h]: what is subtracted from scores, and 1 / mass. REQUIRES: a barrier before use.
template <typename Items>
WAVEKV_DEVICE void CombineMasses(const Items& items, const Chunk& chunk, int64_t num_chunks_most,
                                 const Partial* partials, const Workspace& workspace) {
  for (int h = WarpIndex(); h < items.task.num_queries; h += BlockWarps()) {
    const Partial* const of_chunks = partials + h * num_chunks_most;
    float most = -kInfinity;
    for (int64_t c = LaneIndex(); c < chunk.num_chunks; c += kWarp) {
      most = Max(most, of_chunks[c].most);
    }
    most = MaxOfWarp(most);
    float mass = 0.0f;
    for (int64_t c = LaneIndex(); c < chunk.num_chunks; c += kWarp) {
      const Partial of_chunk = of_chunks[c];
      if (of_chunk.mass > 0.0f) mass += of_chunk.mass * Exp(of_chunk.most - most);
    }
    mass = SumOfWarp(mass);
    if (LaneIndex() == 0) {
      // Without any mass all scores are -infinity, and shares come to 0.
      workspace.of_heads[h] = {most == -kInfinity ? 0.0f : most, mass > 0.0f ? 1.0f / mass : 0.0f};
    }
  }
}

WAVEKV_DEVICE float RiskOf(const RiskLimit& limit, int num_queries, int64_t i) {
  // Also of what is no number.
  const auto at_most = [](float x, float most) { return x < most ? x : most; };
  const float variance = limit.variances[i];
  const float hidden = limit.hidden_variances == nullptr ? 0.0f : limit.hidden_variances[i];
  const float key_spread = limit.hidden_variances == nullptr ? 0.0f : limit.key_spreads[i];
  float greatest = 0.0f;
  for (int h = 0; h < num_queries; ++h) {
    const float log_share = limit.log_masses[h * limit.stride + i] - limit.lses[h];
    const float log_square = log_share + log_share;
    const float inverse = limit.inverse_squares[h];
    float risk = Exp(at_most(log_square, 80.0f)) * (variance * inverse);
    if (limit.hidden_variances != nullptr) {
      const float x = limit.logit_spreads[h] * key_spread;
      risk = MulAdd(Exp(at_most(log_square + x, 80.0f)), hidden * inverse, risk);
    }
    greatest = Max(greatest, at_most(risk, kRiskMost));
  }
  return greatest;
}

// Probabilities, risks, and the sums of the chunk's bins in shared memory. Ends with a barrier.
template <typename Items>
WAVEKV_DEVICE void ComputeShares(const Items& items, const Chunk& chunk, float* risks,
                                 const Workspace& workspace) {
  for (int b = ThreadIndex(); b < kBins; b += BlockThreads()) {
    workspace.counts[b] = 0;
    if (Items::kClusters) workspace.tokens[b] = 0;
    if (items.task.risk != nullptr) workspace.units[b] = 0;
  }
  const int64_t count = items.count();
  float* const probabilities = items.task.probabilities;
  float sums[kItemsPerThread] = {};
  uint32_t has_score = 0;
  SyncBlock();
  for (int h = 0; h < items.task.num_queries; ++h) {
    const float* const scores = items.scores() + h * items.task.stride;
    const Partial of_head = workspace.of_heads[h];
    float values[kItemsPerThread];
    WAVEKV_UNROLL
    for (int k = 0; k < kItemsPerThread; ++k) {
      const int64_t i = ItemOf(chunk, k);
      values[k] = i < count ? scores[i] : -kInfinity;
    }
    WAVEKV_UNROLL
    for (int k = 0; k < kItemsPerThread; ++k) {
      sums[k] = MulAdd(Exp(values[k] - of_head.most), of_head.mass, sums[k]);
      if (values[k] != -kInfinity) has_score |= 1u << k;
    }
  }
  WAVEKV_UNROLL
  for (int k = 0; k < kItemsPerThread; ++k) {
    const int64_t i = ItemOf(chunk, k);
    if (i >= count) continue;
    constexpr float kLeast = std::numeric_limits<float>::min();
    // Of clusters, what has a score at all ranks before what has none.
    if (Items::kClusters && sums[k] < kLeast && (has_score >> k & 1u) != 0) sums[k] = kLeast;
    probabilities[i] = sums[k];
    const int bin = BinOf(KeyOf(RankBits(sums[k]), i));
    AtomicAdd(workspace.counts + bin, 1u);
    if (Items::kClusters) AtomicAdd(workspace.tokens + bin, SizeOf(items, i));
  }
  if (items.task.risk != nullptr) {
    const double inverse = InverseOf(items.task.risk->limit);
    const int64_t end = Min(chunk.begin + ChunkItems(), count);
    for (int64_t i = ItemOf(chunk, 0); i < end; i += BlockThreads()) {
      const float risk = RiskOf(*items.task.risk, items.task.num_queries, i);
      risks[i] = risk;
      const int64_t units = RiskUnits(risk, inverse);
      if (units == 0) continue;
      AtomicAdd(workspace.units + BinOf(KeyOf(RankBits(probabilities[i]), i)), units);
    }
  }
  SyncBlock();
}

template <typename Items>
WAVEKV_DEVICE void AddToTask(const Items& items, const Workspace& workspace,
                             const Scratch& scratch) {
  for (int b = ThreadIndex(); b < kBins; b += BlockThreads()) {
    const uint32_t count = workspace.counts[b];
    if (count == 0) continue;
    AtomicAdd(scratch.counts() + b, count);
    if (Items::kClusters) AtomicAdd(scratch.tokens() + b, int64_t{workspace.tokens[b]});
    if (items.task.risk != nullptr && workspace.units[b] != 0) {
      AtomicAdd(scratch.units() + b, workspace.units[b]);
    }
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE::selection

#endif  // WAVEKV_CUDA_SELECTION_SHARES_H_
