// Which means count and with what weights, by one thread block: the arithmetic of
// compute/estimate_clusters.h without the sums over rows.
#ifndef WAVEKV_CUDA_ESTIMATE_WEIGHTS_H_
#define WAVEKV_CUDA_ESTIMATE_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

#include "compute/estimate_clusters.h"
#include "compute/score_tokens.h"
#include "cuda/estimate_rows.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE::estimate {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kGroup = 8;
inline constexpr int kGroupsOfWarp = kWarp / kGroup;
inline constexpr int kGroups = kThreads / kGroup;
// Chosen tokens whose weights and addresses are in shared memory at a time.
inline constexpr int kBatch = 256;

// As in the CPU's error terms: sums of so many variances stay far from where fp32 ends.
inline constexpr float kVarianceMax = 1e33f;
inline constexpr float kGrowthMax = 1e7f;

// What a block keeps of each cluster. A super-cluster's numbers are where its cluster's would be:
// there are no more of them.
template <int kQueries>
struct Work {
  OfQueries<kQueries>* masses;         // whole masses, then weights of the value means
  OfQueries<kQueries>* rests;          // of sketch clusters: mass per token that was not chosen,
  OfQueries<kQueries>* per_token;      // and weight per token of the cluster's rest
  OfQueries<kQueries>* super_weights;  // of super-clusters' value means
  uint32_t* sketch_clusters;
  uint32_t* first_tokens;   // of each of these, and the end: its first token in the sketch zone
  uint32_t* chosen_before;  // and the number of chosen tokens before it
  uint32_t* clusters;       // whose value means count
  uint32_t* supers;
  uint8_t* marked_clusters;
  uint8_t* marked_supers;

  static int64_t Bytes(int64_t capacity) {
    SharedSize size;
    size.Add<OfQueries<kQueries>>(capacity);
    size.Add<OfQueries<kQueries>>(capacity);
    size.Add<OfQueries<kQueries>>(capacity);
    size.Add<OfQueries<kQueries>>(capacity);
    size.Add<uint32_t>(capacity);
    size.Add<uint32_t>(capacity + 1);
    size.Add<uint32_t>(capacity + 1);
    size.Add<uint32_t>(capacity);
    size.Add<uint32_t>(capacity);
    size.Add<uint8_t>(capacity);
    size.Add<uint8_t>(capacity);
    return size.bytes();
  }
  WAVEKV_DEVICE Work(std::byte* memory, int64_t capacity) {
    Take(memory, capacity, &masses);
    Take(memory, capacity, &rests);
    Take(memory, capacity, &per_token);
    Take(memory, capacity, &super_weights);
    Take(memory, capacity, &sketch_clusters);
    Take(memory, capacity + 1, &first_tokens);
    Take(memory, capacity + 1, &chosen_before);
    Take(memory, capacity, &clusters);
    Take(memory, capacity, &supers);
    Take(memory, capacity, &marked_clusters);
    Take(memory, capacity, &marked_supers);
  }

 private:
  template <typename T>
  WAVEKV_DEVICE static void Take(std::byte*& memory, int64_t count, T** taken) {
    *taken = reinterpret_cast<T*>(memory);
    memory += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
  }
};

// The task as one block sees it: its queries are those of the tile.
struct View {
  const EstimateClustersTask* task;
  const ClusterIndex* index;
  int first_query;
  int num_queries;
  int num_clusters;
  const Zone* zones;
  const uint32_t* offsets;
  const float* log_masses;
  const float* token_logits;
  int64_t log_masses_stride;
  int64_t token_stride;
  const uint8_t* chosen;
  bool errors;

  WAVEKV_DEVICE uint32_t Size(uint32_t cluster) const {
    return offsets[cluster + 1] - offsets[cluster];
  }
};

WAVEKV_DEVICE View ViewOf(const EstimateClustersTask& task, int first_query, int num_queries) {
  const bool tokens = task.token_logits != nullptr;
  return {&task,
          task.index,
          first_query,
          num_queries,
          static_cast<int>(task.index->num_clusters),
          task.zones,
          task.index->offsets,
          task.log_masses + first_query * task.log_masses_stride,
          tokens ? task.token_logits + first_query * task.token_stride : nullptr,
          task.log_masses_stride,
          task.token_stride,
          task.chosen,
          task.missing_lse != nullptr};
}

// Shared memory besides. What differs between blocks only stands there too, not in registers.
// totals: see Totals.
inline constexpr int kTotals = 4;
template <int kQueries>
struct Shared {
  View* view;
  Work<kQueries>* work;
  int64_t* scan;                       // [33]
  int* count_scan;                     // [33]
  float* partial;                      // [kWarps, kTotals, kQueries]
  float* totals;                       // [kTotals, kQueries]
  float* offsets;                      // the greatest log of what is answered; 0 when there is none
  float* ignored_most;                 // the same of ignored clusters; maybe -infinity
  float* ignored_mass;                 // relative to it
  float* logit_spreads;                // |q|^2 / head_dim_k
  float* shares;                       // [SharesFloats]
  OfQueries<kQueries>* batch_weights;  // [kBatch]
  const std::byte** batch_rows;
  float* sums;  // [kQueries, head_dim_v]

  static SharedSize Size(int dim) {
    SharedSize size;
    size.Add<View>(1);
    size.Add<Work<kQueries>>(1);
    size.Add<int64_t>(33);
    size.Add<int>(33);
    size.Add<float>(kWarps * kTotals * kQueries);
    size.Add<float>(kTotals * kQueries);
    size.Add<float>(kQueries);
    size.Add<float>(kQueries);
    size.Add<float>(kQueries);
    size.Add<float>(kQueries);
    size.Add<float>(SharesFloats(kThreads));
    size.Add<OfQueries<kQueries>>(kBatch);
    size.Add<const std::byte*>(kBatch);
    size.Add<float>(int64_t{kQueries} * dim);
    return size;
  }
  WAVEKV_DEVICE Shared(SharedMemory& memory, int dim)
      : view(memory.Take<View>(1)),
        work(memory.Take<Work<kQueries>>(1)),
        scan(memory.Take<int64_t>(33)),
        count_scan(memory.Take<int>(33)),
        partial(memory.Take<float>(kWarps * kTotals * kQueries)),
        totals(memory.Take<float>(kTotals * kQueries)),
        offsets(memory.Take<float>(kQueries)),
        ignored_most(memory.Take<float>(kQueries)),
        ignored_mass(memory.Take<float>(kQueries)),
        logit_spreads(memory.Take<float>(kQueries)),
        shares(memory.Take<float>(SharesFloats(kThreads))),
        batch_weights(memory.Take<OfQueries<kQueries>>(kBatch)),
        batch_rows(memory.Take<const std::byte*>(kBatch)),
        sums(memory.Take<float>(int64_t{kQueries} * dim)) {}
};

// How far a part of the given mass per token is taken out of a whole.
WAVEKV_DEVICE float Deduction(float rest_mass, float part_mass) {
  return part_mass > rest_mass ? rest_mass / part_mass : 1.0f;
}

// e^{log - offset}, at most e^80; 0 below what fp32 holds in full.
WAVEKV_DEVICE float MassOf(float log, float offset) {
  const float x = Min(log - offset, 80.0f);
  return x < -87.33f ? 0.0f : Exp(x);
}

WAVEKV_DEVICE bool IsAnswered(Zone zone) {
  return zone == Zone::kEstimation || zone == Zone::kRemainder;
}

template <typename T>
WAVEKV_DEVICE T SumOfGroup(T value) {
  WAVEKV_UNROLL
  for (int mask = kGroup / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}
template <int kQueries>
WAVEKV_DEVICE void SumOfGroup(float (&values)[kQueries]) {
  WAVEKV_UNROLL
  for (int q = 0; q < kQueries; ++q) values[q] = SumOfGroup(values[q]);
}

// result[i] = values[i] combined over the block. partial: [kWarps, kCount]. A meeting of the block.
template <int kCount, typename Combine>
WAVEKV_DEVICE void CombineOverBlock(const float (&values)[kCount], float* partial, float* result,
                                    const Combine& combine) {
  WAVEKV_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const float of_warp = ReduceWarp(values[i], combine);
    if (LaneIndex() == 0) partial[WarpIndex() * kCount + i] = of_warp;
  }
  SyncBlock();
  for (int i = ThreadIndex(); i < kCount; i += kThreads) {
    float value = partial[i];
    for (int w = 1; w < kWarps; ++w) value = combine(value, partial[w * kCount + i]);
    result[i] = value;
  }
  SyncBlock();
}

// Lists the sketch zone's clusters and the first token of each. Returns how many.
template <int kQueries>
WAVEKV_DEVICE int ListSketchClusters(const View& view, const Work<kQueries>& work, int64_t* scan) {
  // Clusters in the upper half of the sum, tokens in the lower.
  int64_t before = 0;
  for (int base = 0; base < view.num_clusters; base += kThreads) {
    const int i = base + ThreadIndex();
    const bool mine = i < view.num_clusters && view.zones[i] == Zone::kSketch;
    const int64_t counts = mine ? (int64_t{1} << 32) + view.Size(i) : 0;
    int64_t total;
    const int64_t at = before + ExclusiveSumOfBlock(counts, scan, &total);
    if (mine) {
      work.sketch_clusters[at >> 32] = static_cast<uint32_t>(i);
      work.first_tokens[at >> 32] = static_cast<uint32_t>(at);
    }
    before += total;
  }
  if (ThreadIndex() == 0) work.first_tokens[before >> 32] = static_cast<uint32_t>(before);
  SyncBlock();
  return static_cast<int>(before >> 32);
}

// shared.offsets and, with error terms, what is shared of ignored clusters and queries.
template <int kQueries>
WAVEKV_DEVICE void FindOffsets(const View& view, int num_tokens, const Shared<kQueries>& shared) {
  const auto greater = [](float a, float b) { return a < b ? b : a; };
  float most[2 * kQueries];  // of what is answered, of what is ignored
  WAVEKV_UNROLL
  for (float& log : most) log = -kInfinity;
  for (int i = ThreadIndex(); i < view.num_clusters; i += kThreads) {
    const Zone zone = view.zones[i];
    if (!IsAnswered(zone) && zone != Zone::kIgnored) continue;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      if (q >= view.num_queries) break;
      const float log = view.log_masses[q * view.log_masses_stride + i];
      if (IsAnswered(zone)) {
        most[q] = Max(most[q], log);
      } else {
        most[kQueries + q] = Max(most[kQueries + q], log);
      }
    }
  }
  for (int t = ThreadIndex(); t < num_tokens; t += kThreads) {
    if (view.chosen[t] != 0) continue;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      if (q < view.num_queries) {
        most[q] = Max(most[q], view.token_logits[q * view.token_stride + t]);
      }
    }
  }
  CombineOverBlock(most, shared.partial, shared.totals, greater);
  if (ThreadIndex() < kQueries) {
    const float of_answered = shared.totals[ThreadIndex()];
    shared.offsets[ThreadIndex()] = of_answered == -kInfinity ? 0.0f : of_answered;
    shared.ignored_most[ThreadIndex()] = shared.totals[kQueries + ThreadIndex()];
  }
  const int dim = view.index->shape.head_dim_k;
  if (view.errors && WarpIndex() < view.num_queries) {
    const float* query = view.task->queries + (view.first_query + WarpIndex()) * int64_t{dim};
    float squared = 0.0f;
    for (int d = LaneIndex(); d < dim; d += kWarp) squared = MulAdd(query[d], query[d], squared);
    squared = SumOfWarp(squared);
    if (LaneIndex() == 0) shared.logit_spreads[WarpIndex()] = squared / static_cast<float>(dim);
  }
  SyncBlock();
}

// Masses of all clusters but those of the sketch zone; shared.ignored_mass.
template <int kQueries>
WAVEKV_DEVICE void TakeExponentials(const View& view, const Work<kQueries>& work,
                                    const Shared<kQueries>& shared) {
  float ignored[kQueries] = {};
  for (int i = ThreadIndex(); i < view.num_clusters; i += kThreads) {
    const Zone zone = view.zones[i];
    if (zone == Zone::kSketch) continue;
    OfQueries<kQueries> masses;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      masses.of[q] = 0.0f;
      if (q >= view.num_queries) continue;
      const float log = view.log_masses[q * view.log_masses_stride + i];
      masses.of[q] = MassOf(log, shared.offsets[q]);
      // No ignored log is above the greatest: -infinity - -infinity is left out.
      if (zone == Zone::kIgnored && log != -kInfinity) {
        ignored[q] += MassOf(log, shared.ignored_most[q]);
      }
    }
    work.masses[i] = masses;
  }
  if (view.errors) {
    CombineOverBlock(ignored, shared.partial, shared.ignored_mass,
                     [](float a, float b) { return a + b; });
  }
}

// What each thread has added up of a block's totals.
template <int kQueries>
struct Totals {
  float masses[kQueries] = {};
  float of_means[kQueries] = {};  // weights of all means, which the segment's mean is added to
  float missing[kQueries] = {};
  float variances[kQueries] = {};
};

// Of each sketch cluster the whole mass, that of its rest, and what its rest weighs per token.
template <int kQueries>
WAVEKV_DEVICE void WeighSketchClusters(const View& view, int num_sketch_clusters,
                                       const Work<kQueries>& work, const Shared<kQueries>& shared,
                                       Totals<kQueries>& totals) {
  const int lane = LaneIndex() % kGroup;
  const float* value_spreads = view.index->value_spreads;
  // Times |q|^2 / head_dim_k and a factor's square, half the variance of a logit.
  const float noise = CodeNoise(view.index->code_bits);
  const float doubt_scale = 0.5f * noise * noise * view.index->shape.head_dim_k;
  for (int base = WarpIndex() * kGroupsOfWarp; base < num_sketch_clusters; base += kGroups) {
    const int c = base + LaneIndex() / kGroup;
    const bool active = c < num_sketch_clusters;
    const uint32_t cluster = active ? work.sketch_clusters[c] : 0;
    const uint32_t begin = active ? work.first_tokens[c] : 0;
    const uint32_t end = active ? work.first_tokens[c + 1] : 0;
    const float spread =
        active && view.errors ? Min(kTokenVariance * value_spreads[cluster], kVarianceMax) : 0.0f;
    const uint16_t* const factors = view.index->code_factors + view.offsets[cluster];
    float whole[kQueries] = {}, left[kQueries] = {};
    int num_chosen = 0;
    for (uint32_t t = begin + lane; t < end; t += kGroup) {
      const bool is_chosen = view.chosen[t] != 0;
      num_chosen += is_chosen;
      const float factor = view.errors ? HalfToFloat(factors[t - begin]) : 0.0f;
      const float doubt = factor * factor * doubt_scale;
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        if (q >= view.num_queries) break;
        const int64_t at = q * view.token_stride + t;
        const float logit = view.token_logits[at];
        const float mass = MassOf(logit, shared.offsets[q]);
        whole[q] += mass;
        if (is_chosen) continue;
        left[q] += mass;
        if (view.errors) {
          const float gain = Min(doubt * shared.logit_spreads[q], kLogMassGainMax);
          totals.missing[q] = MulAdd(kDoubt * mass, gain, totals.missing[q]);
          totals.variances[q] = MulAdd(mass * mass, spread, totals.variances[q]);
        }
      }
    }
    num_chosen = SumOfGroup(num_chosen);
    SumOfGroup(whole);
    SumOfGroup(left);
    const auto num_left = static_cast<float>(static_cast<int>(end - begin) - num_chosen);
    OfQueries<kQueries> rests;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) rests.of[q] = num_left > 0.0f ? left[q] / num_left : 0.0f;
    // What of the chosen tokens is not taken out.
    float kept[kQueries] = {};
    if (Ballot(num_chosen > 0) != 0) {
      for (uint32_t t = begin + lane; t < end; t += kGroup) {
        if (view.chosen[t] == 0) continue;
        WAVEKV_UNROLL
        for (int q = 0; q < kQueries; ++q) {
          if (q >= view.num_queries) break;
          const float logit = view.token_logits[q * view.token_stride + t];
          kept[q] += 1.0f - Deduction(rests.of[q], MassOf(logit, shared.offsets[q]));
        }
      }
      SumOfGroup(kept);
    }
    if (!active || lane != 0) continue;
    OfQueries<kQueries> masses, per_token;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      masses.of[q] = whole[q];
      per_token.of[q] = num_left > 0.0f ? left[q] / (num_left + kept[q]) : 0.0f;
      if (num_left > 0.0f) totals.masses[q] += left[q];
    }
    work.masses[cluster] = masses;
    work.rests[cluster] = rests;
    work.per_token[cluster] = per_token;
    work.chosen_before[c] = static_cast<uint32_t>(num_chosen);
  }
  SyncBlock();
}

// work.chosen_before from the number in each sketch cluster. Returns how many tokens were chosen.
template <int kQueries>
WAVEKV_DEVICE int CountChosen(int num_sketch_clusters, const Work<kQueries>& work, int* scan) {
  int before = 0;
  for (int base = 0; base < num_sketch_clusters; base += kThreads) {
    const int c = base + ThreadIndex();
    const bool mine = c < num_sketch_clusters;
    int total;
    const int upto =
        ExclusiveSumOfBlock(mine ? static_cast<int>(work.chosen_before[c]) : 0, scan, &total);
    if (mine) work.chosen_before[c] = static_cast<uint32_t>(before + upto);
    before += total;
  }
  if (ThreadIndex() == 0) work.chosen_before[num_sketch_clusters] = static_cast<uint32_t>(before);
  SyncBlock();
  return before;
}

// growth(x) of the contract.
WAVEKV_DEVICE float Growth(float x) {
  float growth = MulAdd(Min(x, 16.0f), 1.0f / 256.0f, 1.0f);
  WAVEKV_UNROLL
  for (int i = 0; i < 8; ++i) growth *= growth;
  return growth;
}

// The error terms of a cluster that is answered as a whole.
template <int kQueries>
WAVEKV_DEVICE void AddClusterErrors(const View& view, int super, uint32_t cluster,
                                    const OfQueries<kQueries>& masses,
                                    const Shared<kQueries>& shared, Totals<kQueries>& totals) {
  const ClusterIndex& index = *view.index;
  const float super_spread = index.super_value_spreads[super];
  const float variance = Min(kClusterVariance * super_spread, kVarianceMax);
  const float hidden = Min(kHiddenVariance * (index.value_spreads[cluster] + super_spread) /
                               static_cast<float>(view.Size(cluster)),
                           kVarianceMax / kGrowthMax);
  const float key_spread = index.key_spreads[cluster];
  const bool bound = view.task->mass == MassEstimate::kLowerBound;
  WAVEKV_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    if (q >= view.num_queries) break;
    const float x = shared.logit_spreads[q] * key_spread;
    const float gain = Min(0.5f * x, kLogMassGainMax);
    const float lacking = bound ? gain : kDoubt * gain / (1.0f + gain);
    totals.missing[q] = MulAdd(masses.of[q], lacking, totals.missing[q]);
    const float factor = MulAdd(hidden, Growth(x), variance);
    totals.variances[q] = MulAdd(masses.of[q] * masses.of[q], factor, totals.variances[q]);
  }
}

// Masses become weights, a super-cluster in each group; which means count is marked.
template <int kQueries>
WAVEKV_DEVICE void WeighSupers(const View& view, const Work<kQueries>& work,
                               const Shared<kQueries>& shared, Totals<kQueries>& totals) {
  const int lane = LaneIndex() % kGroup;
  const auto num_supers = static_cast<int>(view.index->num_supers);
  const uint32_t* super_offsets = view.index->super_offsets;
  for (int base = WarpIndex() * kGroupsOfWarp; base < num_supers; base += kGroups) {
    const int s = base + LaneIndex() / kGroup;
    const bool active = s < num_supers;
    const uint32_t begin = active ? super_offsets[s] : 0;
    const uint32_t end = active ? super_offsets[s + 1] : 0;
    float remainder_masses[kQueries] = {};
    uint32_t remainder_tokens = 0;
    for (uint32_t i = begin + lane; i < end; i += kGroup) {
      const Zone zone = view.zones[i];
      if (!IsAnswered(zone)) continue;
      const OfQueries<kQueries> masses = work.masses[i];
      if (zone == Zone::kRemainder) remainder_tokens += view.Size(i);
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        totals.masses[q] += masses.of[q];
        if (zone == Zone::kRemainder) remainder_masses[q] += masses.of[q];
      }
      if (view.errors) AddClusterErrors(view, s, i, masses, shared, totals);
    }
    remainder_tokens = SumOfGroup(remainder_tokens);
    SumOfGroup(remainder_masses);
    const uint32_t super_size = view.offsets[end] - view.offsets[begin];
    // Whether the remainder is answered by the super-cluster's mean, less what was taken out.
    const bool by_super = remainder_tokens > 0 && 2 * remainder_tokens >= super_size;
    float rests[kQueries], kept[kQueries] = {};
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      rests[q] = by_super ? remainder_masses[q] / static_cast<float>(remainder_tokens) : 0.0f;
    }
    for (uint32_t i = begin + lane; by_super && i < end; i += kGroup) {
      if (view.zones[i] == Zone::kRemainder) continue;
      const OfQueries<kQueries> masses = work.masses[i];
      const auto size = static_cast<float>(view.Size(i));
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        kept[q] += size * (1.0f - Deduction(rests[q], masses.of[q] / size));
      }
    }
    SumOfGroup(kept);
    float per_token[kQueries], weights[kQueries];
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      per_token[q] =
          by_super ? remainder_masses[q] / (static_cast<float>(remainder_tokens) + kept[q]) : 0.0f;
      weights[q] = lane == 0 ? per_token[q] * static_cast<float>(super_size) : 0.0f;
    }
    int num_marked = 0;
    for (uint32_t i = begin + lane; i < end; i += kGroup) {
      const Zone zone = view.zones[i];
      const auto size = static_cast<float>(view.Size(i));
      const bool own_mean = zone == Zone::kSketch || zone == Zone::kEstimation ||
                            (zone == Zone::kRemainder && !by_super);
      const bool taken_out = by_super && zone != Zone::kRemainder;
      work.marked_clusters[i] = own_mean || taken_out;
      num_marked += own_mean || taken_out;
      const OfQueries<kQueries> masses = work.masses[i];
      OfQueries<kQueries> own = {};
      if (zone == Zone::kSketch) {
        own = work.per_token[i];
        WAVEKV_UNROLL
        for (int q = 0; q < kQueries; ++q) own.of[q] *= size;
      } else if (own_mean) {
        own = masses;
      }
      WAVEKV_UNROLL
      for (int q = 0; q < kQueries; ++q) {
        if (taken_out) {
          own.of[q] -= per_token[q] * size * Deduction(rests[q], masses.of[q] / size);
        }
        weights[q] += own.of[q];
      }
      work.masses[i] = own;
    }
    num_marked = SumOfGroup(num_marked);
    SumOfGroup(weights);
    if (!active || lane != 0) continue;
    // Clusters' means are stored as differences from their super-cluster's.
    work.marked_supers[s] = by_super || num_marked > 0;
    OfQueries<kQueries> super_weights;
    WAVEKV_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      super_weights.of[q] = weights[q];
      totals.of_means[q] += weights[q];
    }
    work.super_weights[s] = super_weights;
  }
  SyncBlock();
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE::estimate

#endif  // WAVEKV_CUDA_ESTIMATE_WEIGHTS_H_
