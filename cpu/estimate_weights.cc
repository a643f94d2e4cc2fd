#include "cpu/estimate_weights.h"

#include <algorithm>

namespace wavekv::cpu {
namespace {

// How far a part of the given mass per token is taken out of a whole.
float Deduction(float rest_mass, float part_mass) {
  return part_mass > rest_mass ? rest_mass / part_mass : 1.0f;
}

}  // namespace

void EstimateWeights::Load(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  num_clusters_ = index.num_clusters;
  num_supers_ = index.num_supers;
  taken_tokens_.clear();
  sketch_clusters_.clear();
  answered_.resize(num_clusters_);
  int64_t num_tokens = 0;
  for (int64_t i = 0; i < num_clusters_; ++i) {
    const Zone zone = task.zones[i];
    answered_[i] = zone == Zone::kEstimation || zone == Zone::kRemainder ? 1.0f : 0.0f;
    if (zone != Zone::kSketch) continue;
    sketch_clusters_.push_back(num_tokens);
    num_tokens += index.cluster_size(i);
  }
  left_tokens_.resize(num_tokens + kPadding);
  int64_t token = 0;
  for (int64_t i = 0; i < num_clusters_; ++i) {
    if (task.zones[i] != Zone::kSketch) continue;
    for (int64_t t = 0; t < index.cluster_size(i); ++t, ++token) {
      left_tokens_[token] = task.chosen[token] == 0 ? 1.0f : 0.0f;
      if (task.chosen[token] == 0) continue;
      taken_tokens_.push_back({token, task.chosen_values[taken_tokens_.size()]});
    }
  }
  std::fill(left_tokens_.begin() + num_tokens, left_tokens_.end(), 0.0f);
  sketch_clusters_.push_back(num_tokens);

  row_ = num_clusters_ + num_tokens;
  logs_.resize(task.num_queries * row_ + kPadding);
  offsets_.resize(task.num_queries);
  sketch_masses_.resize(task.num_queries * num_sketch_clusters());
}

void EstimateWeights::Compute(const EstimateClustersTask& task) {
  ListMeans(task);
  cluster_weights_.assign(task.num_queries * num_clusters_, 0.0f);
  super_weights_.assign(task.num_queries * num_supers_, 0.0f);
  taken_weights_.assign(task.num_queries * taken_tokens_.size(), 0.0f);
  whole_masses_.resize(num_clusters_);
  masses_.assign(task.num_queries, 0.0f);
  of_means_.assign(task.num_queries, 0.0f);
  for (int h = 0; h < task.num_queries; ++h) ComputeQuery(task, h);
}

void EstimateWeights::ListMeans(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  clusters_.clear();
  supers_.clear();
  remainders_.assign(num_supers_, Remainder::kNone);
  for (int64_t s = 0; s < num_supers_; ++s) {
    const uint32_t first = index.super_offsets[s], last = index.super_offsets[s + 1];
    int64_t left = 0;
    for (uint32_t i = first; i < last; ++i) {
      if (task.zones[i] == Zone::kRemainder) left += index.cluster_size(i);
    }
    if (left > 0) {
      remainders_[s] =
          2 * left < index.super_size(s) ? Remainder::kOwnMeans : Remainder::kSuperMean;
    }
    const size_t num_listed = clusters_.size();
    for (uint32_t i = first; i < last; ++i) {
      const Zone zone = task.zones[i];
      const bool answers = zone == Zone::kSketch || zone == Zone::kEstimation ||
                           (zone == Zone::kRemainder && remainders_[s] == Remainder::kOwnMeans);
      const bool taken_out = (zone == Zone::kRetrieval || zone == Zone::kIgnored) &&
                             remainders_[s] == Remainder::kSuperMean;
      if (answers || taken_out) clusters_.push_back(i);
    }
    // Clusters' means are stored as differences from their super-cluster's.
    if (remainders_[s] == Remainder::kSuperMean || clusters_.size() > num_listed) {
      supers_.push_back(static_cast<uint32_t>(s));
    }
  }
}

float EstimateWeights::ComputeSketchCluster(const EstimateClustersTask& task, int query,
                                            int64_t cluster, int64_t sketch_cluster,
                                            size_t* taken) {
  const float* masses = logs_.data() + query * row_ + num_clusters_;
  const float mass = sketch_masses(query)[sketch_cluster].left;
  const int64_t size = task.index->cluster_size(cluster);
  const size_t first_taken = *taken;
  while (*taken < taken_tokens_.size() &&
         taken_tokens_[*taken].sketch_token < sketch_clusters_[sketch_cluster + 1]) {
    ++*taken;
  }
  const auto num_left = static_cast<float>(size - static_cast<int64_t>(*taken - first_taken));
  if (num_left == 0.0f) return 0.0f;
  // The rest's mean: the whole without what was taken out of it.
  const auto deduction = [&](size_t i) {
    return Deduction(mass / num_left, masses[taken_tokens_[i].sketch_token]);
  };
  float left = static_cast<float>(size);
  for (size_t i = first_taken; i < *taken; ++i) left -= deduction(i);
  const float per_token = mass / left;
  cluster_weights_[query * num_clusters_ + cluster] = per_token * static_cast<float>(size);
  for (size_t i = first_taken; i < *taken; ++i) {
    taken_weights_[query * taken_tokens_.size() + i] = -per_token * deduction(i);
  }
  return mass;
}

void EstimateWeights::ComputeQuery(const EstimateClustersTask& task, int query) {
  const ClusterIndex& index = *task.index;
  const float* cluster_masses = logs_.data() + query * row_;
  float* weights = cluster_weights_.data() + query * num_clusters_;
  double mass = 0.0, of_means = 0.0;
  int64_t sketch_cluster = 0;
  size_t taken = 0;
  for (int64_t s = 0; s < num_supers_; ++s) {
    float remainder_mass = 0.0f;
    int64_t remainder_tokens = 0;
    for (int64_t i = index.super_offsets[s]; i < index.super_offsets[s + 1]; ++i) {
      const float cluster_mass = cluster_masses[i];
      whole_masses_[i] = cluster_mass;
      switch (task.zones[i]) {
        case Zone::kSketch:
          whole_masses_[i] = sketch_masses(query)[sketch_cluster].whole;
          mass += ComputeSketchCluster(task, query, i, sketch_cluster++, &taken);
          break;
        case Zone::kEstimation:
          weights[i] = cluster_mass;
          mass += cluster_mass;
          break;
        case Zone::kRemainder:
          mass += cluster_mass;
          if (remainders_[s] == Remainder::kOwnMeans) {
            weights[i] = cluster_mass;
          } else {
            remainder_mass += cluster_mass;
            remainder_tokens += index.cluster_size(i);
          }
          break;
        case Zone::kRetrieval:
        case Zone::kIgnored:
          break;
      }
    }
    if (remainders_[s] == Remainder::kSuperMean) {
      TakeRemainder(task, query, s, remainder_mass, remainder_tokens);
    }
    float* super_weight = super_weights_.data() + query * num_supers_ + s;
    for (int64_t i = index.super_offsets[s]; i < index.super_offsets[s + 1]; ++i) {
      *super_weight += weights[i];
    }
    of_means += *super_weight;
  }
  masses_[query] = static_cast<float>(mass);
  of_means_[query] = static_cast<float>(of_means);
}

void EstimateWeights::TakeRemainder(const EstimateClustersTask& task, int query, int64_t super,
                                    float remainder_mass, int64_t remainder_tokens) {
  const ClusterIndex& index = *task.index;
  float* weights = cluster_weights_.data() + query * num_clusters_;
  const int64_t first = index.super_offsets[super], last = index.super_offsets[super + 1];
  const float rest = remainder_mass / static_cast<float>(remainder_tokens);
  const auto deduction = [&](int64_t i) {
    const auto size = static_cast<float>(index.cluster_size(i));
    return size * Deduction(rest, whole_masses_[i] / size);
  };
  auto left = static_cast<float>(index.super_size(super));
  for (int64_t i = first; i < last; ++i) {
    if (task.zones[i] != Zone::kRemainder) left -= deduction(i);
  }
  const float per_token = remainder_mass / left;
  super_weights_[query * num_supers_ + super] =
      per_token * static_cast<float>(index.super_size(super));
  for (int64_t i = first; i < last; ++i) {
    if (task.zones[i] != Zone::kRemainder) weights[i] -= per_token * deduction(i);
  }
}

}  // namespace wavekv::cpu
