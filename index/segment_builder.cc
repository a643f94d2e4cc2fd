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

// Sum of term(0) to term(dim - 1). Several partial sums, because one chain of additions would wait
// for each to finish.
template <typename Term>
double SumOverRow(int dim, const Term& term) {
  double partial[kHeadDimStep] = {};
  for (int j = 0; j < dim; j += kHeadDimStep) {
    for (int lane = 0; lane < kHeadDimStep; ++lane) partial[lane] += term(j + lane);
  }
  double sum = 0.0;
  for (const double part : partial) sum += part;
  return sum;
}

// row [dim] less `origin`, in double.
template <typename Load>
void Widen(const Load& load, int dim, const double* origin, double* row) {
  for (int j = 0; j < dim; ++j) row[j] = static_cast<double>(load(j)) - origin[j];
}

void Widen(const std::byte* from, DType dtype, int dim, const double* origin, double* row) {
  const auto* halves = reinterpret_cast<const uint16_t*>(from);
  switch (dtype) {
    case DType::kFloat32:
      return Widen([&](int j) { return reinterpret_cast<const float*>(from)[j]; }, dim, origin,
                   row);
    case DType::kFloat16:
      return Widen([&](int j) { return Float16ToFloat32(halves[j]); }, dim, origin, row);
    case DType::kBFloat16:
      return Widen([&](int j) { return BFloat16ToFloat32(halves[j]); }, dim, origin, row);
  }
}

// Rows of one super-cluster without the segment's mean, rotated, in double: nothing overflows or is
// lost before the last rounding. One object serves a whole segment, so that nothing is allocated
// per super-cluster.
class RotatedRows {
 public:
  RotatedRows(int dim, DType dtype) : dim_(dim), dtype_(dtype), rotation_(dim), mean_(dim) {}

  // Takes the mean of the segment's rows, which lie at the addresses given, and writes it, rotated.
  void Centre(absl::Span<const std::byte* const> rows, float* rotated_mean) {
    std::vector<double> row(dim_), sum(dim_, 0.0);
    const std::vector<double> zero(dim_, 0.0);
    for (const std::byte* from : rows) {
      Widen(from, dtype_, dim_, zero.data(), row.data());
      for (int j = 0; j < dim_; ++j) sum[j] += row[j];
    }
    for (int j = 0; j < dim_; ++j) mean_[j] = sum[j] / static_cast<double>(rows.size());
    std::vector<double> rotated = mean_;
    rotation_.Apply(rotated.data());
    for (int j = 0; j < dim_; ++j) rotated_mean[j] = ToFloat(rotated[j]);
  }

  void Clear() { rows_.clear(); }

  // Appends rows that lie side by side.
  void Append(const std::byte* rows, int64_t num_rows) {
    const size_t first = rows_.size();
    rows_.resize(first + num_rows * dim_);
    for (int64_t i = 0; i < num_rows; ++i) {
      double* row = rows_.data() + first + i * dim_;
      Widen(rows + i * dim_ * DTypeBytes(dtype_), dtype_, dim_, mean_.data(), row);
      rotation_.Apply(row);
    }
  }

  // The sum of rows [first, first + num_rows).
  std::vector<double> Sum(int64_t first, int64_t num_rows) const {
    std::vector<double> sum(dim_, 0.0);
    for (int64_t i = first; i < first + num_rows; ++i) {
      for (int j = 0; j < dim_; ++j) sum[j] += rows_[i * dim_ + j];
    }
    return sum;
  }

  // Makes of each of these rows its distance to `origin` [dim].
  void Subtract(const std::vector<float>& origin, int64_t first, int64_t num_rows) {
    for (int64_t i = first; i < first + num_rows; ++i) {
      for (int j = 0; j < dim_; ++j) rows_[i * dim_ + j] -= origin[j];
    }
  }

  // Of the distances of these rows to `origin`.
  double SumOfSquares(const std::vector<float>& origin, int64_t first, int64_t num_rows) const {
    double sum = 0.0;
    for (int64_t i = first; i < first + num_rows; ++i) {
      sum += SumOverRow(dim_, [&](int j) {
        const double difference = rows_[i * dim_ + j] - origin[j];
        return difference * difference;
      });
    }
    return sum;
  }

  int dim() const { return dim_; }
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()) / dim_; }
  const double* row(int64_t i) const { return rows_.data() + i * dim_; }

 private:
  const int dim_;
  const DType dtype_;
  const Rotation rotation_;
  std::vector<double> mean_;
  std::vector<double> rows_;
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
  const double squared = SumOverRow(dim, [&](int j) { return distance[j] * distance[j]; });
  const int64_t plane_words = CodeWords(dim);
  std::fill_n(words, bits * plane_words, 0);
  if (squared == 0.0) return 0.0;
  double product, code_squared;
  if (bits == 1) {
    for (int j = 0; j < dim; ++j) {
      words[j / 64] |= static_cast<uint64_t>(distance[j] >= 0.0) << (j % 64);
    }
    product = 0.5 * SumOverRow(dim, [&](int j) { return std::abs(distance[j]); });
    code_squared = 0.25 * dim;
  } else {
    const double inverse_step = 1.0 / (CodeStep(bits) * std::sqrt(squared / dim));
    const int levels = 1 << bits;
    product = code_squared = 0.0;
    for (int j = 0; j < dim; ++j) {
      const double level = distance[j] * inverse_step + levels / 2;
      const int u = level <= 0.0 ? 0 : std::min(static_cast<int>(level), levels - 1);
      for (int p = 0; p < bits; ++p) {
        words[p * plane_words + j / 64] |= static_cast<uint64_t>(u >> p & 1) << (j % 64);
      }
      const double element = u - (levels - 1) / 2.0;
      product += element * distance[j];
      code_squared += element * element;
    }
  }
  return std::sqrt(squared / product * std::sqrt(squared / code_squared));
}

// fp16 is enough for a factor; larger ones than it holds belong to keys that no logit survives.
uint16_t StoreFactor(double factor) {
  return Float32ToFloat16(static_cast<float>(std::min(factor, 65504.0)));
}

// What a segment's clusters are written with: the rows of the super-cluster at hand.
struct Sides {
  RotatedRows keys;
  RotatedRows values;
};

// The stored means of a super-cluster.
struct SuperMeans {
  std::vector<float> key;
  std::vector<float> value;
};

// Loads the rows of a super-cluster and writes its statistics.
SuperMeans WriteSuper(int64_t super, Sides& sides, const MutableClusterIndex& out) {
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
double WriteCluster(int64_t cluster, int64_t first, const SuperMeans& super, Sides& sides,
                  const MutableClusterIndex& out) {
  const int64_t size = out.cluster_size(cluster);
  const auto count = static_cast<double>(size);
  out.log_sizes[cluster] = static_cast<float>(std::log(count));
  const std::vector<float> value_mean = StoreMean(sides.values.Sum(first, size), size, super.value,
                                                  out.statistics, out.value_means, cluster);
  out.value_spreads[cluster] = ToFloat(sides.values.SumOfSquares(value_mean, first, size) / count);
  const std::vector<float> centroid = StoreMean(sides.keys.Sum(first, size), size, super.key,
                                                out.statistics, out.centroids, cluster);
  out.key_spreads[cluster] = ToFloat(sides.keys.SumOfSquares(centroid, first, size) / count);
  sides.keys.Subtract(centroid, first, size);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t token = out.offsets[cluster] + i;
    uint64_t* words = out.codes + token * out.code_words();
    out.code_factors[token] =
        StoreFactor(StoreCode(sides.keys.row(first + i), sides.keys.dim(), out.code_bits, words));
  }
  return SquaredDistance(value_mean, super.value);
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

}  // namespace wavekv
