#include "index/segment_builder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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

// Rows of one cluster without the segment's mean, rotated, in double: nothing overflows or is lost
// before the last rounding. One object serves a whole segment, so that nothing is allocated per
// cluster.
class RotatedRows {
 public:
  RotatedRows(int dim, DType dtype) : dim_(dim), dtype_(dtype), rotation_(dim), mean_(dim) {}

  // Takes the mean of the segment's rows, which lie at the addresses given, and writes it, rotated.
  void Centre(absl::Span<const std::byte* const> rows, float* rotated_mean) {
    std::fill(mean_.begin(), mean_.end(), 0.0);
    for (const std::byte* row : rows) {
      for (int j = 0; j < dim_; ++j) mean_[j] += LoadElement(row, dtype_, j);
    }
    for (double& sum : mean_) sum /= static_cast<double>(rows.size());
    std::vector<double> rotated = mean_;
    rotation_.Apply(rotated.data());
    for (int j = 0; j < dim_; ++j) rotated_mean[j] = ToFloat(rotated[j]);
  }

  void Load(const std::byte* rows, int64_t num_rows) {
    num_rows_ = num_rows;
    if (static_cast<int64_t>(rows_.size()) < num_rows * dim_) rows_.resize(num_rows * dim_);
    for (int64_t i = 0; i < num_rows; ++i) {
      double* row = rows_.data() + i * dim_;
      const std::byte* from = rows + i * dim_ * DTypeBytes(dtype_);
      for (int j = 0; j < dim_; ++j) row[j] = LoadElement(from, dtype_, j) - mean_[j];
      rotation_.Apply(row);
    }
  }

  // Adds the rows to `sum` [dim].
  void AddTo(std::vector<double>& sum) const {
    for (int64_t i = 0; i < num_rows_; ++i) {
      for (int j = 0; j < dim_; ++j) sum[j] += rows_[i * dim_ + j];
    }
  }

  // Makes of each row its distance to `origin` [dim].
  void Subtract(const std::vector<float>& origin) {
    for (int64_t i = 0; i < num_rows_; ++i) {
      for (int j = 0; j < dim_; ++j) rows_[i * dim_ + j] -= origin[j];
    }
  }

  double SumOfSquaresFrom(const std::vector<float>& origin) const {
    double sum = 0.0;
    for (int64_t i = 0; i < num_rows_; ++i) {
      for (int j = 0; j < dim_; ++j) {
        const double difference = rows_[i * dim_ + j] - origin[j];
        sum += difference * difference;
      }
    }
    return sum;
  }

  double SumOfSquares() const {
    double sum = 0.0;
    for (int64_t i = 0; i < num_rows_ * dim_; ++i) sum += rows_[i] * rows_[i];
    return sum;
  }

  int dim() const { return dim_; }
  int64_t num_rows() const { return num_rows_; }
  const double* row(int64_t i) const { return rows_.data() + i * dim_; }

 private:
  const int dim_;
  const DType dtype_;
  const Rotation rotation_;
  std::vector<double> mean_;
  std::vector<double> rows_;
  int64_t num_rows_ = 0;
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

// Writes the code of a distance, and returns its factor: between the one that makes products with
// it unbiased, |d|^2 / (u.d), and the one that keeps its length, |d| / |u|, by their geometric
// mean. The former's noise inflates a sum of exponentials, the latter's shortened products deflate
// it (docs/wave_index.md).
double StoreCode(const double* distance, int dim, int bits, uint64_t* words) {
  double squared = 0.0;
  for (int j = 0; j < dim; ++j) squared += distance[j] * distance[j];
  const int64_t plane_words = CodeWords(dim);
  std::fill_n(words, bits * plane_words, 0);
  if (squared == 0.0) return 0.0;
  const double inverse_step = 1.0 / (CodeStep(bits) * std::sqrt(squared / dim));
  const int levels = 1 << bits;
  double product = 0.0, code_squared = 0.0;
  for (int j = 0; j < dim; ++j) {
    const double level = std::floor(distance[j] * inverse_step) + levels / 2;
    const int u = static_cast<int>(std::clamp(level, 0.0, levels - 1.0));
    for (int p = 0; p < bits; ++p) {
      words[p * plane_words + j / 64] |= static_cast<uint64_t>(u >> p & 1) << (j % 64);
    }
    const double element = u - (levels - 1) / 2.0;
    product += element * distance[j];
    code_squared += element * element;
  }
  return std::sqrt(squared / product * std::sqrt(squared / code_squared));
}

// fp16 is enough for a factor; larger ones than it holds belong to keys that no logit survives.
uint16_t StoreFactor(double factor) {
  return Float32ToFloat16(static_cast<float>(std::min(factor, 65504.0)));
}

// What a segment's clusters are written with.
struct Sides {
  RotatedRows keys;
  RotatedRows values;
};

// The stored means of a super-cluster.
struct SuperMeans {
  std::vector<float> key;
  std::vector<float> value;
};

// Writes the means of a super-cluster, whose rows are in place.
SuperMeans WriteSuper(int64_t super, Sides& sides, const MutableClusterIndex& out) {
  std::vector<double> keys(sides.keys.dim()), values(sides.values.dim());
  const int64_t first = out.super_offsets[super], last = out.super_offsets[super + 1];
  for (int64_t cluster = first; cluster < last; ++cluster) {
    sides.keys.Load(out.cluster_keys(cluster), out.cluster_size(cluster));
    sides.keys.AddTo(keys);
    sides.values.Load(out.cluster_values(cluster), out.cluster_size(cluster));
    sides.values.AddTo(values);
  }
  const int64_t size = out.super_size(super);
  const StatisticsFormat format = SuperFormat(out.statistics);
  const std::vector<float> no_key(keys.size(), 0.0f), no_value(values.size(), 0.0f);
  return {StoreMean(keys, size, no_key, format, out.super_centroids, super),
          StoreMean(values, size, no_value, format, out.super_value_means, super)};
}

// Writes the statistics and codes of one cluster; returns the sum of its keys' squared distances
// from the centroid of its super-cluster.
double WriteCluster(int64_t cluster, const SuperMeans& super, Sides& sides,
                    const MutableClusterIndex& out) {
  const int64_t size = out.cluster_size(cluster);
  out.log_sizes[cluster] = static_cast<float>(std::log(static_cast<double>(size)));

  RotatedRows& values = sides.values;
  std::vector<double> sum(values.dim());
  values.Load(out.cluster_values(cluster), size);
  values.AddTo(sum);
  values.Subtract(StoreMean(sum, size, super.value, out.statistics, out.value_means, cluster));
  out.value_spreads[cluster] = ToFloat(values.SumOfSquares() / static_cast<double>(size));

  RotatedRows& keys = sides.keys;
  sum.assign(keys.dim(), 0.0);
  keys.Load(out.cluster_keys(cluster), size);
  keys.AddTo(sum);
  const double super_squares = keys.SumOfSquaresFrom(super.key);
  keys.Subtract(StoreMean(sum, size, super.key, out.statistics, out.centroids, cluster));
  out.key_spreads[cluster] = ToFloat(keys.SumOfSquares() / static_cast<double>(size));
  for (int64_t i = 0; i < size; ++i) {
    const int64_t token = out.offsets[cluster] + i;
    uint64_t* words = out.codes + token * out.code_words();
    out.code_factors[token] = StoreFactor(StoreCode(keys.row(i), keys.dim(), out.code_bits, words));
  }
  return super_squares;
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

  Sides sides = {{out.shape.head_dim_k, out.shape.dtype}, {out.shape.head_dim_v, out.shape.dtype}};
  {
    std::vector<const std::byte*> addresses;
    for (const TokenRows& token : tokens) addresses.push_back(token.key);
    sides.keys.Centre(addresses, out.mean_key);
    addresses.clear();
    for (const TokenRows& token : tokens) addresses.push_back(token.value);
    sides.values.Centre(addresses, out.mean_value);
  }

  for (int64_t cluster = 0; cluster < out.num_clusters; ++cluster) {
    const int64_t begin = out.offsets[cluster];
    std::byte* const cluster_keys = out.cluster_keys(cluster);
    std::byte* const cluster_values = out.cluster_values(cluster);
    for (int64_t i = 0; i < out.cluster_size(cluster); ++i) {
      const TokenRows& token = tokens[clustering.members[begin + i]];
      std::memcpy(cluster_keys + i * key_bytes, token.key, key_bytes);
      std::memcpy(cluster_values + i * value_bytes, token.value, value_bytes);
      out.positions[begin + i] = static_cast<uint16_t>(token.position - out.position_begin);
    }
  }
  for (int64_t super = 0; super < out.num_supers; ++super) {
    const SuperMeans means = WriteSuper(super, sides, out);
    double squares = 0.0;
    for (int64_t cluster = out.super_offsets[super]; cluster < out.super_offsets[super + 1];
         ++cluster) {
      squares += WriteCluster(cluster, means, sides, out);
    }
    out.super_key_spreads[super] = ToFloat(squares / static_cast<double>(out.super_size(super)));
  }
}

}  // namespace wavekv
