#include "index/segment_builder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "storage/float16.h"

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

// The largest finite magnitude that a mean may be rounded to: a wider range of keys than fp16 has
// must not become an infinity, which would turn scores into NaN.
double LargestStatistic(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 65504.0;
    case DType::kBFloat16:
      return BFloat16ToFloat32(0x7f7f);
    case DType::kFloat32:
      break;
  }
  return std::numeric_limits<float>::max();
}

// Rows of one cluster widened to fp32, and the sums taken over them. One object serves a whole
// segment, so that nothing is allocated per cluster.
class MeanAndSpread {
 public:
  MeanAndSpread(int dim, DType dtype, DType statistics_dtype)
      : dim_(dim),
        dtype_(dtype),
        statistics_dtype_(statistics_dtype),
        mean_(dim),
        sum_(dim),
        total_(dim, 0.0) {}

  // Reads `rows` [num_rows, dim] and writes their mean to `mean`.
  void Compute(const std::byte* rows, int64_t num_rows, std::byte* mean) {
    Widen(rows, num_rows);
    std::fill(sum_.begin(), sum_.end(), 0.0);
    for (int64_t i = 0; i < num_rows; ++i) {
      for (int j = 0; j < dim_; ++j) sum_[j] += rows_[i * dim_ + j];
    }
    const double largest = LargestStatistic(statistics_dtype_);
    for (int j = 0; j < dim_; ++j) {
      total_[j] += sum_[j];
      const double exact = std::clamp(sum_[j] / static_cast<double>(num_rows), -largest, largest);
      StoreElement(mean, statistics_dtype_, j, static_cast<float>(exact));
      mean_[j] = LoadElement(mean, statistics_dtype_, j);
    }

    double sum_of_squares = 0.0;
    double largest_square = 0.0;
    for (int64_t i = 0; i < num_rows; ++i) {
      const double square = SquaredDistance(rows_.data() + i * dim_);
      sum_of_squares += square;
      largest_square = std::max(largest_square, square);
    }
    spread_ = ToFloat(sum_of_squares / static_cast<double>(num_rows));
    radius_ = ToFloat(std::sqrt(largest_square));
  }

  float spread() const { return spread_; }  // mean squared distance from the mean as stored
  float radius() const { return radius_; }  // largest distance from it
  const std::vector<double>& total() const { return total_; }  // sum of all rows seen so far

 private:
  void Widen(const std::byte* rows, int64_t num_rows) {
    const int64_t num_elements = num_rows * dim_;
    if (static_cast<int64_t>(rows_.size()) < num_elements) rows_.resize(num_elements);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(rows);
    switch (dtype_) {
      case DType::kFloat32:
        std::memcpy(rows_.data(), rows, num_elements * sizeof(float));
        break;
      case DType::kFloat16:
        for (int64_t i = 0; i < num_elements; ++i) rows_[i] = Float16ToFloat32(halves[i]);
        break;
      case DType::kBFloat16:
        for (int64_t i = 0; i < num_elements; ++i) rows_[i] = BFloat16ToFloat32(halves[i]);
        break;
    }
  }

  // Several partial sums, because one chain of additions would wait for each to finish.
  double SquaredDistance(const float* row) const {
    double partial[kHeadDimStep] = {};
    for (int j = 0; j < dim_; j += kHeadDimStep) {
      for (int lane = 0; lane < kHeadDimStep; ++lane) {
        const double difference = static_cast<double>(row[j + lane]) - mean_[j + lane];
        partial[lane] += difference * difference;
      }
    }
    double sum = 0.0;
    for (const double part : partial) sum += part;
    return sum;
  }

  const int dim_;
  const DType dtype_;
  const DType statistics_dtype_;
  std::vector<float> rows_;
  std::vector<float> mean_;
  std::vector<double> sum_;
  std::vector<double> total_;
  float spread_ = 0.0f;
  float radius_ = 0.0f;
};

}  // namespace

absl::StatusOr<Clustering> ClusterRows(absl::Span<const KvRange> rows, const KvShape& shape,
                                       const ClusteringOptions& options, Backend& backend) {
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
    if (absl::Status status = backend.ConvertRows({&task, 1}); !status.ok()) return status;
    row += range.num_tokens;
  }
  return ClusterSegment(absl::MakeSpan(keys), shape.head_dim_k, options, backend);
}

void WriteClusterIndex(absl::Span<const KvRange> rows, const Clustering& clustering,
                       MutableClusterIndex out) {
  const int64_t key_bytes = out.key_row_bytes();
  const int64_t value_bytes = out.value_row_bytes();
  const std::vector<TokenRows> tokens = ListTokens(rows, key_bytes, value_bytes);
  std::copy(clustering.offsets.begin(), clustering.offsets.end(), out.offsets);

  MeanAndSpread keys(out.shape.head_dim_k, out.shape.dtype, out.statistics_dtype);
  MeanAndSpread values(out.shape.head_dim_v, out.shape.dtype, out.statistics_dtype);
  const int64_t centroid_bytes = out.shape.head_dim_k * DTypeBytes(out.statistics_dtype);
  const int64_t value_mean_bytes = out.shape.head_dim_v * DTypeBytes(out.statistics_dtype);
  for (int64_t cluster = 0; cluster < out.num_clusters; ++cluster) {
    const int64_t begin = out.offsets[cluster];
    const int64_t size = out.cluster_size(cluster);
    std::byte* const cluster_keys = out.cluster_keys(cluster);
    std::byte* const cluster_values = out.cluster_values(cluster);
    for (int64_t i = 0; i < size; ++i) {
      const TokenRows& token = tokens[clustering.members[begin + i]];
      std::memcpy(cluster_keys + i * key_bytes, token.key, key_bytes);
      std::memcpy(cluster_values + i * value_bytes, token.value, value_bytes);
      out.positions[begin + i] = static_cast<uint16_t>(token.position - out.position_begin);
    }

    keys.Compute(cluster_keys, size, out.centroids + cluster * centroid_bytes);
    values.Compute(cluster_values, size, out.value_means + cluster * value_mean_bytes);
    out.log_sizes[cluster] = static_cast<float>(std::log(static_cast<double>(size)));
    out.key_spreads[cluster] = keys.spread();
    out.key_radii[cluster] = keys.radius();
    out.value_spreads[cluster] = values.spread();
  }
  for (int j = 0; j < out.shape.head_dim_v; ++j) {
    out.mean_value[j] = ToFloat(values.total()[j] / static_cast<double>(out.num_tokens));
  }
}

}  // namespace wavekv
