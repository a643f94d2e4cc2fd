// Which means and values stand for the tokens of a segment that are not attended: what zones alone
// decide in compute/estimate_clusters.h, and room for the numbers that queries add to it.
#ifndef WAVEKV_CPU_ESTIMATE_PARTS_H_
#define WAVEKV_CPU_ESTIMATE_PARTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/estimate_clusters.h"
#include "compute/token_bits.h"

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
  // Elements behind an array of a number for each item that may be read and written, whatever they
  // are.
  static constexpr int64_t kPadding = 64;

  // A cluster that is not of the remainder zone.
  struct Part {
    uint32_t cluster = 0;
    Zone zone = Zone::kSketch;
    bool has_mean = false;    // in `clusters`
    int64_t first_token = 0;  // of the sketch zone: its first one's number there
    int64_t size = 0;
  };
  struct Super {
    Remainder remainder = Remainder::kNone;
    bool has_mean = false;    // in `supers`
    uint32_t first_part = 0;  // in `parts`
    uint32_t end_part = 0;
    int64_t remainder_tokens = 0;
  };

  void Load(const EstimateClustersTask& task);

  int64_t num_tokens = 0;  // of the sketch zone
  TokenBits chosen;        // of those
  int64_t num_taken = 0;   // so many: they are taken out of their cluster's mean
  std::vector<Part> parts;
  std::vector<Super> all_supers;
  std::vector<uint32_t> parts_with_chosen;  // numbers; filled while parts are weighed
  // 1 for clusters that are answered as a whole, else 0.
  std::vector<float> answered;

  // Means that have weights. Those of a super-cluster's parts come before those of its remainder. A
  // super-cluster's weight is its own and those of its clusters, whose means are stored as
  // differences from its mean.
  std::vector<uint32_t> clusters;
  std::vector<uint32_t> supers;

  // In batches: masses are relative to e^offset.
  std::vector<float> cluster_masses;   // of one batch
  std::vector<float> part_weights;     // of one batch, as `parts`, of those of the sketch zone
  std::vector<float> cluster_weights;  // as `clusters`
  std::vector<float> super_weights;    // as `supers`
  std::vector<float> taken_weights;
  // The items from one batch to the next.
  int64_t cluster_stride() const { return static_cast<int64_t>(clusters.size()) + kBatch; }
  int64_t super_stride() const { return static_cast<int64_t>(supers.size()) + kBatch; }
  int64_t taken_stride() const { return num_taken + kBatch; }

  // Of each query.
  struct Sums {
    float offset = 0.0f;  // of the masses' logarithms
    float mass = 0.0f;
    float of_means = 0.0f;  // the weight of the segment's mean, which all other means refer to
    // In double, as what clusters and what tokens add may differ in magnitude.
    double missing_mass = 0.0;  // without what ignored clusters miss
    double value_variance = 0.0;
  };
  std::vector<Sums> sums;

  // For the error terms: of each cluster the spread of its super-cluster's value means.
  std::vector<float> super_spreads;

 private:
  void ListParts(const EstimateClustersTask& task);
  void ListMeans(const ClusterIndex& index);
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_PARTS_H_
