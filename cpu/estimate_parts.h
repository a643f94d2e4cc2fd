// Which means and values stand for the tokens of a segment that are not attended: what zones alone
// decide in compute/estimate_clusters.h, and room for the numbers that queries add to it.
#ifndef WAVEKV_CPU_ESTIMATE_PARTS_H_
#define WAVEKV_CPU_ESTIMATE_PARTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/estimate_clusters.h"

namespace wavekv::cpu {

// How a super-cluster's clusters of the remainder zone are answered.
enum class Remainder : uint8_t {
  kNone,       // there are none
  kOwnMeans,   // each by its own value mean
  kWhole,      // all of the super-cluster's clusters, by its mean
  kSuperMean,  // by what its mean leaves of the others
};

// Of one task. Buffers are kept from one to the next. Numbers of queries stand in batches of
// kBatch, [batch, item, kBatch], so that a batch is worked on in one vector.
struct EstimateParts {
  static constexpr int kBatch = 4;
  // Elements behind an array of a number for each cluster or token that may be read and written,
  // whatever they are.
  static constexpr int64_t kPadding = 64;

  // A cluster of the sketch zone: its tokens, and those of them that were chosen.
  struct SketchCluster {
    int64_t first_token = 0, end_token = 0;
    int64_t first_taken = 0, end_taken = 0;
  };
  // A token that was chosen, and is taken out of its cluster's mean.
  struct TakenToken {
    int64_t sketch_token;  // number among the tokens of the sketch zone
    const std::byte* value;
  };

  void Load(const EstimateClustersTask& task);

  int64_t num_tokens = 0;  // of the sketch zone
  std::vector<SketchCluster> sketch_clusters;
  std::vector<TakenToken> taken_tokens;
  std::vector<Remainder> remainders;  // of each super-cluster
  // 1 for clusters that are answered as a whole, for tokens of the sketch zone that were not
  // chosen; else 0.
  std::vector<float> answered;
  std::vector<float> left_tokens;

  // Means that have weights. A super-cluster's weights are its own and those of its clusters, whose
  // means are stored as differences from its mean.
  std::vector<uint32_t> clusters;
  std::vector<uint32_t> supers;

  // In batches: masses are relative to e^offset.
  std::vector<float> cluster_masses;
  std::vector<float> token_masses;  // of one batch
  std::vector<float> cluster_weights;
  std::vector<float> super_weights;
  std::vector<float> taken_weights;

  // Of each query.
  struct Sums {
    float offset = 0.0f;  // the greatest log of what is answered; 0 when there is none
    float mass = 0.0f;
    float of_means = 0.0f;  // the weight of the segment's mean, which all other means refer to
    // In double, as what clusters and what tokens add may differ in magnitude.
    double missing_mass = 0.0;  // without what ignored clusters miss
    double value_variance = 0.0;
  };
  std::vector<Sums> sums;

  // For the error terms: of each cluster the spread of its super-cluster's value means; of each
  // token what times |q|^2 is half the variance of its logit, and the variance of its value.
  std::vector<float> super_spreads;
  std::vector<float> token_doubts;
  std::vector<float> token_variances;

 private:
  void ListTaken(const EstimateClustersTask& task);
  void ListMeans(const EstimateClustersTask& task);
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_PARTS_H_
