// A sealed cluster index with random contents, and its numbers as plain vectors.
#ifndef WAVEKV_TESTS_CPU_RANDOM_INDEX_H_
#define WAVEKV_TESTS_CPU_RANDOM_INDEX_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "storage/cluster_index.h"
#include "tests/testing/random.h"

namespace wavekv::testing {

// Clusters of 1 to 64 tokens. The statistics are independent random numbers, not those of the rows:
// the operations that read them do not read the rows.
class RandomIndex {
 public:
  RandomIndex(Random& random, KvShape shape, DType statistics_dtype, int64_t num_clusters) {
    std::vector<uint32_t> offsets = {0};
    for (int64_t i = 0; i < num_clusters; ++i) {
      offsets.push_back(offsets.back() + static_cast<uint32_t>(random.Integer(1, 64)));
    }
    const int64_t num_tokens = offsets.back();
    const int64_t bytes = ClusterIndexBytes(shape, statistics_dtype, num_clusters, num_tokens);
    extent_.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
    MutableClusterIndex index = FormatClusterIndex(extent_.get(), shape, statistics_dtype,
                                                   /*position_begin=*/0, num_clusters, num_tokens);
    for (int64_t i = 0; i <= num_clusters; ++i) index.offsets[i] = offsets[i];
    for (int64_t i = 0; i < num_clusters; ++i) {
      index.log_sizes[i] = std::log(static_cast<float>(index.cluster_size(i)));
      index.key_spreads[i] = std::fabs(random.Gaussian());
      index.key_radii[i] = 2 * index.key_spreads[i];
      index.value_spreads[i] = std::fabs(random.Gaussian());
    }
    for (int d = 0; d < shape.head_dim_v; ++d) index.mean_value[d] = random.Gaussian();
    centroids_ = Fill(random, index.centroids, statistics_dtype, num_clusters * shape.head_dim_k);
    value_means_ =
        Fill(random, index.value_means, statistics_dtype, num_clusters * shape.head_dim_v);
    index_ = ReadOnly(index);
  }

  const ClusterIndex& index() const { return index_; }
  const std::vector<float>& centroids() const { return centroids_; }
  const std::vector<float>& value_means() const { return value_means_; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };

  static std::vector<float> Fill(Random& random, std::byte* to, DType dtype, int64_t count) {
    for (int64_t i = 0; i < count; ++i) StoreElement(to, dtype, i, random.Gaussian());
    return Decode(to, dtype, count);
  }

  std::unique_ptr<std::byte, Free> extent_;
  ClusterIndex index_;
  std::vector<float> centroids_;
  std::vector<float> value_means_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CPU_RANDOM_INDEX_H_
