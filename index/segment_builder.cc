#include "index/segment_builder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "compute/rotation.h"
#include "index/super_clusters.h"
#include "storage/float16.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// A token's place in the caller's rows.
struct TokenRows {
  const std::byte* key;
  const std::byte* value;
  int64_t position;
};

std::vector<TokenRows> ListTokens(absl::Span<const KvRange> ranges, int64_t key_row_bytes,
                                  int64_t value_row_bytes) {
  std::vector<TokenRows> tokens;
  for (const KvRange& range : ranges) {
    for (int64_t i = 0; i < range.num_tokens; ++i) {
      tokens.push_back(
          {range.keys + i * key_row_bytes, range.values + i * value_row_bytes,
           range.position_begin + (range.positions == nullptr ? i : range.positions[i])});
    }
  }
  return tokens;
}

float ToFloat(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

// Sum of term(0) to term(dim - 1). Several partial sums, because one chain of additions would wait
// for each to finish; always the same ones, so that the sum is.
template <typename T, typename Term>
T SumOverRow(int dim, const Term& term) {
  T partial[kHeadDimStep] = {};
  for (int j = 0; j < dim; j += kHeadDimStep) {
    for (int lane = 0; lane < kHeadDimStep; ++lane) partial[lane] += term(j + lane);
  }
  T sum = 0;
  for (const T part : partial) sum += part;
  return sum;
}

// Calls use(load), where load(j) is element j of a row as it is stored.
template <typename Use>
void WithLoad(const std::byte* row, DType dtype, const Use& use) {
  const auto* halves = reinterpret_cast<const uint16_t*>(row);
  switch (dtype) {
    case DType::kFloat32:
      return use([row](int j) { return reinterpret_cast<const float*>(row)[j]; });
    case DType::kFloat16:
      return use([halves](int j) { return Float16ToFloat32(halves[j]); });
    case DType::kBFloat16:
      return use([halves](int j) { return BFloat16ToFloat32(halves[j]); });
  }
}

// The mean of all rows of one side, keys or values, and their largest element.
class SideSummary {
 public:
  SideSummary(int dim, DType dtype) : dim_(dim), dtype_(dtype), sum_(dim, 0.0), row_(dim) {}

  void Add(const std::byte* row) {
    WithLoad(row, dtype_, [&](const auto& load) {
      for (int j = 0; j < dim_; ++j) row_[j] = load(j);
    });
    for (int j = 0; j < dim_; ++j) sum_[j] += row_[j];
    for (int j = 0; j < dim_; j += kHeadDimStep) {
      for (int lane = 0; lane < kHeadDimStep; ++lane) {
        const float magnitude = std::abs(row_[j + lane]);
        largest_[lane] = magnitude > largest_[lane] ? magnitude : largest_[lane];
      }
    }
    ++num_rows_;
  }

  std::vector<float> Mean() const {
    std::vector<float> mean(dim_);
    for (int j = 0; j < dim_; ++j) mean[j] = ToFloat(sum_[j] / static_cast<double>(num_rows_));
    return mean;
  }

  // Whether squares of differences of such elements, and their sums over a row, stay far within the
  // range of float, large ones and small.
  bool SuitsFloat() const {
    const float largest = *std::max_element(std::begin(largest_), std::end(largest_));
    return largest == 0.0f || (largest > 1e-10f && largest < 1e15f);
  }

 private:
  const int dim_;
  const DType dtype_;
  std::vector<double> sum_;
  std::vector<float> row_;
  float largest_[kHeadDimStep] = {};
  int64_t num_rows_ = 0;
};

// Rows of one super-cluster without the segment's mean, rotated. T is float, or double where
// squares would leave the range of float. One object serves a whole segment, so that nothing is
// allocated per super-cluster.
template <typename T>
class RotatedRows {
 public:
  // Writes the mean, rotated.
  RotatedRows(int dim, DType dtype, std::vector<float> mean, float* rotated_mean)
      : dim_(dim), dtype_(dtype), rotation_(dim), mean_(std::move(mean)) {
    std::vector<double> rotated(mean_.begin(), mean_.end());
    rotation_.Apply(rotated.data());
    for (int j = 0; j < dim_; ++j) rotated_mean[j] = ToFloat(rotated[j]);
  }

  void Clear() { rows_.clear(); }

  // Appends rows that lie side by side.
  void Append(const std::byte* rows, int64_t num_rows) {
    const size_t first = rows_.size();
    rows_.resize(first + num_rows * dim_);
    for (int64_t i = 0; i < num_rows; ++i) {
      T* row = rows_.data() + first + i * dim_;
      WithLoad(rows + i * dim_ * DTypeBytes(dtype_), dtype_, [&](const auto& load) {
        for (int j = 0; j < dim_; ++j) row[j] = static_cast<T>(load(j)) - mean_[j];
      });
      rotation_.Apply(row);
    }
  }

  // The sum of rows [first, first + num_rows).
  std::vector<double> Sum(int64_t first, int64_t num_rows) const {
    std::vector<double> sum(dim_);
    for (int j = 0; j < dim_; j += kHeadDimStep) {
      double partial[kHeadDimStep] = {};
      for (int64_t i = first; i < first + num_rows; ++i) {
        for (int lane = 0; lane < kHeadDimStep; ++lane) partial[lane] += row(i)[j + lane];
      }
      std::copy_n(partial, kHeadDimStep, &sum[j]);
    }
    return sum;
  }

  // Of the distances of these rows to `origin` [dim].
  double SumOfSquares(const std::vector<float>& origin, int64_t first, int64_t num_rows) const {
    double sum = 0.0;
    for (int64_t i = first; i < first + num_rows; ++i) {
      sum += SumOverRow<T>(dim_, [from = row(i), to = origin.data()](int j) {
        const T difference = from[j] - to[j];
        return difference * difference;
      });
    }
    return sum;
  }

  // Makes of row i its distance to `origin` [dim].
  T* Subtract(const std::vector<float>& origin, int64_t i) {
    T* const distance = rows_.data() + i * dim_;
    for (int j = 0; j < dim_; ++j) distance[j] -= origin[j];
    return distance;
  }

  int dim() const { return dim_; }

 private:
  const T* row(int64_t i) const { return rows_.data() + i * dim_; }

  const int dim_;
  const DType dtype_;
  const Rotation rotation_;
  const std::vector<float> mean_;
  std::vector<T> rows_;
};

// Stores sum / count - origin as row i of the means, and returns origin and what was stored.
std::vector<float> StoreMean(const std::vector<double>& sum, int64_t count,
                             const std::vector<float>& origin, StatisticsFormat format,
                             const MutableStatisticsRows& means, int64_t i) {
  std::vector<float> mean(sum.size());
  for (size_t j = 0; j < sum.size(); ++j) {
    mean[j] = ToFloat(sum[j] / static_cast<double>(count) - origin[j]);
  }
  float scale;
  const auto dim = static_cast<int64_t>(mean.size());
  StoreStatisticsRow(mean.data(), dim, format, means.row(i), &scale);
  if (means.scales != nullptr) means.scales[i] = scale;
  LoadStatisticsRow(means.row(i), dim, format, scale, mean.data());
  for (size_t j = 0; j < sum.size(); ++j) {
    mean[j] = ToFloat(static_cast<double>(mean[j]) + origin[j]);
  }
  return mean;
}

// Bit 0 of each of 8 bytes side by side: the product moves that of byte i from 8 i to 56 + i.
uint64_t LowBits(uint64_t bytes) { return (bytes & 0x0101010101010101) * 0x0102040810204080 >> 56; }

// Writes the code of a distance of squared length `squared`, and returns its factor: between the
// one that makes products with it unbiased, |d|^2 / (u.d), and the one that keeps its length,
// |d| / |u|, by their geometric mean. The former's noise inflates a sum of exponentials, the
// latter's shortened products deflate it (docs/wave_index.md).
template <typename T>
double StoreCode(const T* distance, int dim, double squared, int bits, uint64_t* words) {
  const int64_t plane_words = CodeWords(dim);
  std::fill_n(words, bits * plane_words, 0);
  if (squared == 0.0) return 0.0;
  const auto inverse_step = static_cast<T>(1.0 / (CodeStep(bits) * std::sqrt(squared / dim)));
  const T greatest = static_cast<T>((1 << bits) - 1), middle = greatest / 2;
  T elements[kHeadDimMax];
  uint8_t code[kHeadDimMax];
  for (int j = 0; j < dim; ++j) {
    const T level = distance[j] * inverse_step + static_cast<T>(1 << bits >> 1);
    const T positive = level > T{0} ? level : T{0};
    const int u = static_cast<int>(positive < greatest ? positive : greatest);
    elements[j] = static_cast<T>(u) - middle;
    code[j] = static_cast<uint8_t>(u);
  }
  for (int j = 0; j < dim; j += static_cast<int>(sizeof(uint64_t))) {
    uint64_t bytes;
    std::memcpy(&bytes, code + j, sizeof(bytes));
    for (int p = 0; p < bits; ++p) {
      words[p * plane_words + j / 64] |= LowBits(bytes >> p) << (j % 64);
    }
  }
  const double product = SumOverRow<T>(dim, [&](int j) { return elements[j] * distance[j]; });
  const double code_squared = SumOverRow<T>(dim, [&](int j) { return elements[j] * elements[j]; });
  return std::sqrt(squared / product * std::sqrt(squared / code_squared));
}

// fp16 is enough for a factor; larger ones than it holds belong to keys that no logit survives.
uint16_t StoreFactor(double factor) {
  return Float32ToFloat16(static_cast<float>(std::min(factor, 65504.0)));
}

// What a segment's clusters are written with: the rows of the super-cluster at hand.
template <typename T>
struct Sides {
  RotatedRows<T> keys;
  RotatedRows<T> values;
};

// The stored means of a super-cluster.
struct SuperMeans {
  std::vector<float> key;
  std::vector<float> value;
};

// Loads the rows of a super-cluster and writes its statistics.
template <typename T>
SuperMeans WriteSuper(int64_t super, Sides<T>& sides, const MutableClusterIndex& out) {
  sides.keys.Clear();
  sides.values.Clear();
  for (int64_t cluster = out.super_offsets[super]; cluster < out.super_offsets[super + 1];
       ++cluster) {
    sides.keys.Append(out.cluster_keys(cluster), out.cluster_size(cluster));
    sides.values.Append(out.cluster_values(cluster), out.cluster_size(cluster));
  }
  const int64_t size = out.super_size(super);
  const StatisticsFormat format = SuperFormat(out.statistics);
  const std::vector<float> no_key(sides.keys.dim(), 0.0f), no_value(sides.values.dim(), 0.0f);
  SuperMeans means;
  means.key = StoreMean(sides.keys.Sum(0, size), size, no_key, format, out.super_centroids, super);
  means.value =
      StoreMean(sides.values.Sum(0, size), size, no_value, format, out.super_value_means, super);
  out.super_key_spreads[super] =
      ToFloat(sides.keys.SumOfSquares(means.key, 0, size) / static_cast<double>(size));
  return means;
}

double SquaredDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t j = 0; j < a.size(); ++j) {
    const double difference = static_cast<double>(a[j]) - b[j];
    sum += difference * difference;
  }
  return sum;
}

// Writes the statistics and codes of one cluster, whose rows begin at `first` of the loaded ones.
// Returns the squared distance of its value mean from that of its super-cluster.
template <typename T>
double WriteCluster(int64_t cluster, int64_t first, const SuperMeans& super, Sides<T>& sides,
                    const MutableClusterIndex& out) {
  const int64_t size = out.cluster_size(cluster);
  const auto count = static_cast<double>(size);
  out.log_sizes[cluster] = static_cast<float>(std::log(count));
  const std::vector<float> value_mean = StoreMean(sides.values.Sum(first, size), size, super.value,
                                                  out.statistics, out.value_means, cluster);
  out.value_spreads[cluster] = ToFloat(sides.values.SumOfSquares(value_mean, first, size) / count);
  const std::vector<float> centroid = StoreMean(sides.keys.Sum(first, size), size, super.key,
                                                out.statistics, out.centroids, cluster);
  const int dim = sides.keys.dim();
  double sum_of_squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    const T* const distance = sides.keys.Subtract(centroid, first + i);
    const double squared = SumOverRow<T>(dim, [&](int j) { return distance[j] * distance[j]; });
    sum_of_squares += squared;
    const int64_t token = out.offsets[cluster] + i;
    uint64_t* const words = out.codes + token * out.code_words();
    out.code_factors[token] = StoreFactor(StoreCode(distance, dim, squared, out.code_bits, words));
  }
  out.key_spreads[cluster] = ToFloat(sum_of_squares / count);
  return SquaredDistance(value_mean, super.value);
}

// Everything but the offsets, the positions and the rows, which have been written.
template <typename T>
void WriteStatistics(const SideSummary& keys, const SideSummary& values,
                     const MutableClusterIndex& out) {
  const KvShape& shape = out.shape;
  Sides<T> sides = {{shape.head_dim_k, shape.dtype, keys.Mean(), out.mean_key},
                    {shape.head_dim_v, shape.dtype, values.Mean(), out.mean_value}};
  for (int64_t super = 0; super < out.num_supers; ++super) {
    const SuperMeans means = WriteSuper(super, sides, out);
    int64_t first = 0;
    double value_spread = 0.0;
    for (int64_t cluster = out.super_offsets[super]; cluster < out.super_offsets[super + 1];
         ++cluster) {
      const auto size = static_cast<double>(out.cluster_size(cluster));
      value_spread += size * WriteCluster(cluster, first, means, sides, out);
      first += out.cluster_size(cluster);
    }
    out.super_value_spreads[super] = ToFloat(value_spread / static_cast<double>(first));
  }
}

}  // namespace

absl::StatusOr<Clustering> ClusterRows(absl::Span<const KvRange> rows, const KvShape& shape,
                                       const ClusteringOptions& options, int clusters_per_super,
                                       Backend& backend) {
  int64_t num_tokens = 0;
  for (const KvRange& range : rows) num_tokens += range.num_tokens;
  std::vector<float> keys(num_tokens * shape.head_dim_k);
  int64_t row = 0;
  for (const KvRange& range : rows) {
    const ConvertRowsTask task = {.source = range.keys,
                                  .source_dtype = shape.dtype,
                                  .source_stride = shape.head_dim_k,
                                  .target = keys.data() + row * shape.head_dim_k,
                                  .target_stride = shape.head_dim_k,
                                  .num_rows = range.num_tokens,
                                  .row_elements = shape.head_dim_k};
    WAVEKV_RETURN_IF_ERROR(backend.ConvertRows({&task, 1}));
    row += range.num_tokens;
  }
  WAVEKV_ASSIGN_OR_RETURN(Clustering clustering,
                          ClusterSegment(absl::MakeSpan(keys), shape.head_dim_k, options, backend));
  WAVEKV_RETURN_IF_ERROR(GroupClusters(keys, shape.head_dim_k, clusters_per_super, options.seed,
                                       backend, &clustering));
  return clustering;
}

ClusterIndexShape IndexShape(const Clustering& clustering, const KvShape& shape,
                             StatisticsFormat statistics, int code_bits) {
  return {shape,
          statistics,
          code_bits,
          clustering.num_clusters(),
          clustering.num_supers(),
          static_cast<int64_t>(clustering.members.size())};
}

void WriteClusterIndex(absl::Span<const KvRange> rows, const Clustering& clustering,
                       MutableClusterIndex out) {
  const int64_t key_bytes = out.key_row_bytes();
  const int64_t value_bytes = out.value_row_bytes();
  const std::vector<TokenRows> tokens = ListTokens(rows, key_bytes, value_bytes);
  std::copy(clustering.offsets.begin(), clustering.offsets.end(), out.offsets);
  std::copy(clustering.super_offsets.begin(), clustering.super_offsets.end(), out.super_offsets);

  SideSummary keys(out.shape.head_dim_k, out.shape.dtype);
  SideSummary values(out.shape.head_dim_v, out.shape.dtype);
  for (int64_t cluster = 0; cluster < out.num_clusters; ++cluster) {
    const int64_t begin = out.offsets[cluster];
    std::byte* const cluster_keys = out.cluster_keys(cluster);
    std::byte* const cluster_values = out.cluster_values(cluster);
    for (int64_t i = 0; i < out.cluster_size(cluster); ++i) {
      const TokenRows& token = tokens[clustering.members[begin + i]];
      std::memcpy(cluster_keys + i * key_bytes, token.key, key_bytes);
      std::memcpy(cluster_values + i * value_bytes, token.value, value_bytes);
      keys.Add(token.key);
      values.Add(token.value);
      out.positions[begin + i] = static_cast<uint16_t>(token.position - out.position_begin);
    }
  }
  if (keys.SuitsFloat() && values.SuitsFloat()) {
    WriteStatistics<float>(keys, values, out);
  } else {
    WriteStatistics<double>(keys, values, out);
  }
}

}  // namespace wavekv
