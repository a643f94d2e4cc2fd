// A sealed cluster index with random contents, and its numbers as plain vectors.
#ifndef WAVEKV_TESTS_CPU_RANDOM_INDEX_H_
#define WAVEKV_TESTS_CPU_RANDOM_INDEX_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "compute/rotation.h"
#include "storage/cluster_index.h"
#include "storage/float16.h"
#include "tests/testing/random.h"

namespace wavekv::testing {

inline constexpr StatisticsFormat kAllStatistics[] = {
    StatisticsFormat::kFloat32, StatisticsFormat::kInt8, StatisticsFormat::kInt4};

// Clusters of 1 to 64 tokens, super-clusters of 1 to 30 clusters. The statistics and codes are
// independent random numbers, not those of the rows: the operations that read them do not compare.
class RandomIndex {
 public:
  RandomIndex(Random& random, KvShape kv, StatisticsFormat statistics, int64_t num_clusters,
              int code_bits = 1) {
    std::vector<uint32_t> offsets = {0}, super_offsets = {0};
    for (int64_t i = 0; i < num_clusters; ++i) {
      offsets.push_back(offsets.back() + static_cast<uint32_t>(random.Integer(1, 64)));
    }
    while (super_offsets.back() < num_clusters) {
      const int64_t end = super_offsets.back() + random.Integer(1, 30);
      super_offsets.push_back(static_cast<uint32_t>(std::min(end, num_clusters)));
    }
    const ClusterIndexShape shape = {kv,
                                     statistics,
                                     code_bits,
                                     num_clusters,
                                     static_cast<int64_t>(super_offsets.size()) - 1,
                                     offsets.back()};
    extent_.reset(static_cast<std::byte*>(std::aligned_alloc(64, ClusterIndexBytes(shape))));
    MutableClusterIndex index = FormatClusterIndex(extent_.get(), shape, /*position_begin=*/0);
    std::copy(offsets.begin(), offsets.end(), index.offsets);
    std::copy(super_offsets.begin(), super_offsets.end(), index.super_offsets);
    for (int64_t i = 0; i < num_clusters; ++i) {
      index.log_sizes[i] = std::log(static_cast<float>(index.cluster_size(i)));
      index.key_spreads[i] = std::fabs(random.Gaussian());
      index.value_spreads[i] = std::fabs(random.Gaussian());
    }
    for (int64_t i = 0; i < shape.num_supers; ++i) {
      index.super_key_spreads[i] = std::fabs(random.Gaussian());
      index.super_value_spreads[i] = std::fabs(random.Gaussian());
    }
    for (int d = 0; d < kv.head_dim_k; ++d) index.mean_key[d] = random.Gaussian();
    for (int d = 0; d < kv.head_dim_v; ++d) index.mean_value[d] = random.Gaussian();
    super_centroids_ =
        Fill(random, index.super_centroids, SuperFormat(statistics), shape.num_supers,
             kv.head_dim_k, [&](int64_t, int d) { return index.mean_key[d]; });
    super_value_means_ =
        Fill(random, index.super_value_means, SuperFormat(statistics), shape.num_supers,
             kv.head_dim_v, [&](int64_t, int d) { return index.mean_value[d]; });
    const auto super_of = [&](int64_t cluster) {
      return std::upper_bound(super_offsets.begin(), super_offsets.end(), cluster) -
             super_offsets.begin() - 1;
    };
    centroids_ = Fill(random, index.centroids, statistics, num_clusters, kv.head_dim_k,
                      [&](int64_t cluster, int d) {
                        return super_centroids_[super_of(cluster) * kv.head_dim_k + d];
                      });
    value_means_ = Fill(random, index.value_means, statistics, num_clusters, kv.head_dim_v,
                        [&](int64_t cluster, int d) {
                          return super_value_means_[super_of(cluster) * kv.head_dim_v + d];
                        });
    const Rotation rotation(kv.head_dim_v);
    for (auto* means : {&value_means_, &super_value_means_}) {
      for (size_t i = 0; i < means->size(); i += kv.head_dim_v) {
        rotation.ApplyInverse(means->data() + i);
      }
    }
    FillCodes(random, index);
    index_ = ReadOnly(index);
  }

  const ClusterIndex& index() const { return index_; }
  // With the segment's mean; the centroids rotated, the value means not.
  const std::vector<double>& centroids() const { return centroids_; }
  const std::vector<double>& super_centroids() const { return super_centroids_; }
  const std::vector<double>& value_means() const { return value_means_; }
  const std::vector<double>& super_value_means() const { return super_value_means_; }
  // The elements of a token's code, and element d of its value.
  int code(int64_t token, int d) const {
    int u = 0;
    for (int p = 0; p < index_.code_bits; ++p) {
      const uint64_t word =
          index_
              .codes[token * index_.code_words() + p * CodeWords(index_.shape.head_dim_k) + d / 64];
      u |= static_cast<int>(word >> (d % 64) & 1) << p;
    }
    return u;
  }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };

  // Random means as stored; returned with origin(row, element) added.
  template <typename Origin>
  static std::vector<double> Fill(Random& random, const MutableStatisticsRows& rows,
                                  StatisticsFormat format, int64_t count, int dim,
                                  const Origin& origin) {
    std::vector<double> numbers;
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> row = random.Gaussians(dim, 0.5f);
      float scale;
      StoreStatisticsRow(row.data(), dim, format, rows.row(i), &scale);
      if (rows.scales != nullptr) rows.scales[i] = scale;
      LoadStatisticsRow(rows.row(i), dim, format, scale, row.data());
      for (int d = 0; d < dim; ++d) numbers.push_back(row[d] + static_cast<double>(origin(i, d)));
    }
    return numbers;
  }

  static void FillCodes(Random& random, const MutableClusterIndex& index) {
    const int dim = index.shape.head_dim_k;
    std::fill_n(index.codes, index.num_tokens * index.code_words(), 0);
    for (int64_t t = 0; t < index.num_tokens; ++t) {
      index.code_factors[t] = Float32ToFloat16(std::fabs(random.Gaussian()) + 0.01f);
      for (int p = 0; p < index.code_bits; ++p) {
        for (int d = 0; d < dim; ++d) {
          const auto bit = static_cast<uint64_t>(random.Integer(0, 1));
          index.codes[t * index.code_words() + p * CodeWords(dim) + d / 64] |= bit << (d % 64);
        }
      }
    }
    const int64_t num_elements = index.num_tokens * (dim + index.shape.head_dim_v);
    for (int64_t i = 0; i < num_elements; ++i) {
      StoreElement(index.rows, index.shape.dtype, i, random.Gaussian());
    }
  }

  std::unique_ptr<std::byte, Free> extent_;
  ClusterIndex index_;
  std::vector<double> centroids_;
  std::vector<double> super_centroids_;
  std::vector<double> value_means_;
  std::vector<double> super_value_means_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CPU_RANDOM_INDEX_H_
