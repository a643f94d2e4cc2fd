#include "cpu/estimate_parts.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace wavekv::cpu {

void EstimateParts::Load(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  sketch_clusters.clear();
  answered.resize(index.num_clusters + kPadding);
  num_tokens = 0;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    const Zone zone = task.zones[i];
    answered[i] = zone == Zone::kEstimation || zone == Zone::kRemainder ? 1.0f : 0.0f;
    if (zone != Zone::kSketch) continue;
    SketchCluster& sketch = sketch_clusters.emplace_back();
    sketch.first_token = num_tokens;
    num_tokens += index.cluster_size(i);
    sketch.end_token = num_tokens;
  }
  std::fill_n(answered.begin() + index.num_clusters, kPadding, 0.0f);
  ListTaken(task);
  ListMeans(task);

  const int64_t num_batches = (task.num_queries + kBatch - 1) / kBatch;
  cluster_masses.resize((index.num_clusters + kPadding) * kBatch);
  token_masses.resize((num_tokens + kPadding) * kBatch);
  cluster_weights.resize(num_batches * index.num_clusters * kBatch);
  super_weights.resize(num_batches * index.num_supers * kBatch);
  taken_weights.resize(num_batches * taken_tokens.size() * kBatch);
  sums.assign(num_batches * kBatch, Sums());
}

void EstimateParts::ListTaken(const EstimateClustersTask& task) {
  left_tokens.assign(num_tokens + kPadding, 1.0f);
  std::fill_n(left_tokens.begin() + num_tokens, kPadding, 0.0f);
  taken_tokens.clear();
  const auto take = [&](int64_t token) {
    left_tokens[token] = 0.0f;
    taken_tokens.push_back({token, task.chosen_values[taken_tokens.size()]});
  };
  // Few are, so eight are asked about at once.
  int64_t token = 0;
  for (; token + 8 <= num_tokens; token += 8) {
    uint64_t flags;
    std::memcpy(&flags, task.chosen + token, 8);
    for (; flags != 0; flags &= flags - 1) take(token + std::countr_zero(flags) / 8);
  }
  for (; token < num_tokens; ++token) {
    if (task.chosen[token] != 0) take(token);
  }
  int64_t taken = 0;
  const auto num_taken = static_cast<int64_t>(taken_tokens.size());
  for (SketchCluster& sketch : sketch_clusters) {
    sketch.first_taken = taken;
    while (taken < num_taken && taken_tokens[taken].sketch_token < sketch.end_token) ++taken;
    sketch.end_taken = taken;
  }
}

void EstimateParts::ListMeans(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  clusters.clear();
  supers.clear();
  remainders.assign(index.num_supers, Remainder::kNone);
  for (int64_t s = 0; s < index.num_supers; ++s) {
    const uint32_t first = index.super_offsets[s], last = index.super_offsets[s + 1];
    const Zone* zones = task.zones;
    uint32_t num_remaining = 0;
    for (uint32_t i = first; i < last; ++i) num_remaining += zones[i] == Zone::kRemainder ? 1 : 0;
    if (num_remaining == last - first) {
      remainders[s] = Remainder::kWhole;
      supers.push_back(static_cast<uint32_t>(s));
      continue;
    }
    int64_t left = 0;
    for (uint32_t i = first; i < last && num_remaining > 0; ++i) {
      left += zones[i] == Zone::kRemainder ? index.cluster_size(i) : 0;
    }
    const int64_t size = index.super_size(s);
    if (left > 0) remainders[s] = 2 * left < size ? Remainder::kOwnMeans : Remainder::kSuperMean;
    const size_t num_listed = clusters.size();
    for (uint32_t i = first; i < last; ++i) {
      const Zone zone = zones[i];
      const bool answers = zone == Zone::kSketch || zone == Zone::kEstimation ||
                           (zone == Zone::kRemainder && remainders[s] == Remainder::kOwnMeans);
      const bool taken_out = (zone == Zone::kRetrieval || zone == Zone::kIgnored) &&
                             remainders[s] == Remainder::kSuperMean;
      if (answers || taken_out) clusters.push_back(i);
    }
    if (remainders[s] == Remainder::kSuperMean || clusters.size() > num_listed) {
      supers.push_back(static_cast<uint32_t>(s));
    }
  }
}

}  // namespace wavekv::cpu
