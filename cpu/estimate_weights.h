// Which means and values stand for the tokens of a segment that are not attended, and with what
// weights: the arithmetic of compute/estimate_clusters.h without the sums over rows.
#ifndef WAVEKV_CPU_ESTIMATE_WEIGHTS_H_
#define WAVEKV_CPU_ESTIMATE_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compute/estimate_clusters.h"
#include "compute/rotation.h"

namespace wavekv::cpu {

// Used in order: Load; for each query the caller fills in logs, offset, their exponentials in
// place, and the sketch zone's masses; Compute; results. The buffers are kept from one task to the
// next.
class EstimateWeights {
 public:
  // Elements behind a row of logs and behind left_tokens that may be read, whatever they are.
  static constexpr int64_t kPadding = 64;

  // Of a cluster of the sketch zone: the masses of its tokens, and of those not chosen.
  struct SketchMass {
    float whole;
    float left;
  };
  // A token that was chosen, and is taken out of its cluster's mean.
  struct TakenToken {
    int64_t sketch_token;  // number among the tokens of the sketch zone
    const std::byte* value;
  };

  void Load(const EstimateClustersTask& task);
  // Log-masses of all clusters, then the logits of all tokens of the sketch zone.
  absl::Span<float> logs(int query) {
    return absl::MakeSpan(logs_.data() + query * row_, static_cast<size_t>(row_));
  }
  absl::Span<const float> logs(int query) const {
    return absl::MakeConstSpan(logs_.data() + query * row_, static_cast<size_t>(row_));
  }
  // The greatest log of what is answered; 0 when there is none.
  float& offset(int query) { return offsets_[query]; }
  float offset(int query) const { return offsets_[query]; }
  // The first token of each cluster of the sketch zone, and the end.
  const std::vector<int64_t>& sketch_clusters() const { return sketch_clusters_; }
  int64_t num_sketch_clusters() const { return static_cast<int64_t>(sketch_clusters_.size()) - 1; }
  SketchMass* sketch_masses(int query) {
    return sketch_masses_.data() + query * num_sketch_clusters();
  }
  // 1 for clusters that are answered as a whole, for tokens of the sketch zone that were not
  // chosen; else 0.
  const std::vector<float>& answered() const { return answered_; }
  const std::vector<float>& left_tokens() const { return left_tokens_; }
  void Compute(const EstimateClustersTask& task);

  // All relative to e^offset.
  float mass(int query) const { return masses_[query]; }
  // The segment's mean, which all other means are relative to.
  float of_means(int query) const { return of_means_[query]; }

  // The clusters and super-clusters whose value means have weights, and the weights by number, as
  // the means are stored: a super-cluster's are its own and those of its clusters.
  const std::vector<uint32_t>& clusters() const { return clusters_; }
  const std::vector<uint32_t>& supers() const { return supers_; }
  const float* cluster_weights(int query) const {
    return cluster_weights_.data() + query * num_clusters_;
  }
  const float* super_weights(int query) const {
    return super_weights_.data() + query * num_supers_;
  }
  const std::vector<TakenToken>& taken_tokens() const { return taken_tokens_; }
  const float* taken_weights(int query) const {
    return taken_weights_.data() + query * static_cast<int64_t>(taken_tokens_.size());
  }

 private:
  // How a super-cluster's remainder is answered.
  enum class Remainder : uint8_t { kNone, kOwnMeans, kSuperMean };

  void ListMeans(const EstimateClustersTask& task);
  void ComputeQuery(const EstimateClustersTask& task, int query);
  void TakeRemainder(const EstimateClustersTask& task, int query, int64_t super,
                     float remainder_mass, int64_t remainder_tokens);
  float ComputeSketchCluster(const EstimateClustersTask& task, int query, int64_t cluster,
                             int64_t sketch_cluster, size_t* taken);

  int64_t num_clusters_ = 0;
  int64_t num_supers_ = 0;
  int64_t row_ = 0;
  std::vector<float> answered_;
  std::vector<float> left_tokens_;
  std::vector<int64_t> sketch_clusters_;
  std::vector<SketchMass> sketch_masses_;
  std::vector<float> logs_;
  std::vector<float> offsets_;
  std::vector<float> masses_;
  std::vector<float> of_means_;
  std::vector<Remainder> remainders_;
  std::vector<uint32_t> clusters_;
  std::vector<uint32_t> supers_;
  std::vector<float> cluster_weights_;
  std::vector<float> super_weights_;
  std::vector<float> whole_masses_;  // of each cluster, for one query
  std::vector<TakenToken> taken_tokens_;
  std::vector<float> taken_weights_;
};

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ESTIMATE_WEIGHTS_H_
