#include "cpu/write_index.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "compute/backend.h"
#include "compute/rotation.h"
#include "cpu/targets.h"
#include "storage/float16.h"
#include "storage/statistics_row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/write_index.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/rotation-inl.h"
#include "cpu/row_kernels-inl.h"
#include "cpu/row_sums-inl.h"
#include "cpu/store_statistics-inl.h"
#include "hwy/highway.h"

// The bytes are the same on all machines, so this file is compiled without contraction of products
// and sums, and has no fused ones of its own.
HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// A token's place in the caller's rows.
struct TokenRows {
  const std::byte* key;
  const std::byte* value;
  int64_t position;
};

std::vector<TokenRows> ListTokens(const WriteIndexTask& task) {
  const int64_t key_row_bytes = task.out.key_row_bytes();
  const int64_t value_row_bytes = task.out.value_row_bytes();
  std::vector<TokenRows> tokens;
  tokens.reserve(task.out.num_tokens);
  for (const KvRange& range : task.rows) {
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

HWY_INLINE void StoreAsFloat(Tag<double> d, hn::Vec<Tag<double>> value, float* to) {
  constexpr double kMax = std::numeric_limits<float>::max();
  const hn::Rebind<float, Tag<double>> df;
  const auto clamped = hn::Min(hn::Max(value, hn::Set(d, -kMax)), hn::Set(d, kMax));
  hn::StoreU(hn::DemoteTo(df, clamped), df, to);
}

// Vectors of stored elements, as T.
template <typename T, DType kType>
HWY_INLINE hn::Vec<Tag<T>> LoadStored(const std::byte* from) {
  const Tag<T> d;
  if constexpr (std::is_same_v<T, float>) {
    return LoadInOrder<kType>(d, from);
  } else {
    return hn::PromoteTo(d, LoadInOrder<kType>(hn::Rebind<float, Tag<T>>(), from));
  }
}

// Vectors of rows at hand, as double.
HWY_INLINE hn::Vec<Tag<double>> LoadAsDouble(const float* from) {
  return hn::PromoteTo(Tag<double>(), hn::LoadU(hn::Rebind<float, Tag<double>>(), from));
}
HWY_INLINE hn::Vec<Tag<double>> LoadAsDouble(const double* from) {
  return hn::LoadU(Tag<double>(), from);
}

// Calls use(a constant of the type).
template <typename Use>
HWY_INLINE void WithDType(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat32:
      return use(std::integral_constant<DType, DType::kFloat32>());
    case DType::kFloat16:
      return use(std::integral_constant<DType, DType::kFloat16>());
    case DType::kBFloat16:
      return use(std::integral_constant<DType, DType::kBFloat16>());
  }
}

// The mean of all rows of one side, keys or values, and their largest element.
class SideSummary {
 public:
  SideSummary(int dim, DType dtype) : dim_(dim), dtype_(dtype), sum_(dim, 0.0) {}

  // Rows that lie side by side.
  void Add(const std::byte* rows, int64_t num_rows) {
    WithDType(dtype_, [&](auto type) HWY_ATTR {
      constexpr DType kType = type.value;
      const hn::Rebind<float, Tag<double>> df;
      auto largest = hn::Set(df, largest_);
      const auto load = [&](int64_t i, int j) HWY_ATTR {
        const auto x = LoadInOrder<kType>(df, rows + (i * dim_ + j) * DTypeBytes(kType));
        largest = hn::Max(largest, hn::Abs(x));
        return hn::PromoteTo(Tag<double>(), x);
      };
      AddRows(dim_, num_rows, load, {sum_.data()});
      largest_ = hn::GetLane(hn::MaxOfLanes(df, largest));
    });
    num_rows_ += num_rows;
  }

  std::vector<float> Mean() const {
    std::vector<float> mean(dim_);
    for (int j = 0; j < dim_; ++j) mean[j] = ToFloat(sum_[j] / static_cast<double>(num_rows_));
    return mean;
  }

  // Whether squares of differences of such elements, and their sums over a row, stay far within the
  // range of float, large ones and small.
  bool SuitsFloat() const { return largest_ == 0.0f || (largest_ > 1e-10f && largest_ < 1e15f); }

 private:
  const int dim_;
  const DType dtype_;
  std::vector<double> sum_;
  float largest_ = 0.0f;
  int64_t num_rows_ = 0;
};

// Rows of one super-cluster without the segment's mean, rotated. T is float, or double where
// squares would leave the range of float. One object serves a whole segment, so that nothing is
// allocated per super-cluster.
template <typename T>
class RotatedRows {
 public:
  // Writes the mean, rotated. At most `num_rows_max` rows at a time.
  RotatedRows(int dim, DType dtype, int64_t num_rows_max, std::vector<float> mean,
              float* rotated_mean)
      : dim_(dim),
        dtype_(dtype),
        rotation_(dim),
        mean_(std::move(mean)),
        rows_(num_rows_max * dim),
        sum_(dim) {
    std::vector<double> rotated(mean_.begin(), mean_.end());
    rotation_.Apply(rotated.data());
    for (int j = 0; j < dim_; ++j) rotated_mean[j] = ToFloat(rotated[j]);
  }

  void Clear() {
    num_rows_ = 0;
    std::fill(sum_.begin(), sum_.end(), 0.0);
    cluster_sums_.clear();
  }

  // Appends the rows of a cluster, which lie side by side.
  void Append(const std::byte* rows, int64_t num_rows) {
    T* const to = rows_.data() + num_rows_ * dim_;
    WithDType(dtype_, [&](auto type) HWY_ATTR {
      constexpr DType kType = type.value;
      for (int64_t i = 0; i < num_rows; ++i) {
        const std::byte* const from = rows + i * dim_ * DTypeBytes(kType);
        const auto load = [from, mean = mean_.data()](int j) HWY_ATTR {
          return hn::Sub(LoadStored<T, kType>(from + j * DTypeBytes(kType)), LoadFloats(mean + j));
        };
        RotateInto(load, to + i * dim_);
      }
    });
    const size_t cluster_sum = cluster_sums_.size();
    cluster_sums_.resize(cluster_sum + dim_, 0.0);
    const auto load = [to, dim = dim_](int64_t i, int j)
                          HWY_ATTR { return LoadAsDouble(to + i * dim + j); };
    AddRows(dim_, num_rows, load, {sum_.data(), &cluster_sums_[cluster_sum]});
    num_rows_ += num_rows;
  }

  // The sums [dim] of all rows, and of those of the i-th cluster.
  const double* sum() const { return sum_.data(); }
  const double* cluster_sum(int64_t i) const { return cluster_sums_.data() + i * dim_; }

  // Of the distances of these rows to `origin` [dim].
  double SumOfSquares(const std::vector<float>& origin, int64_t first, int64_t num_rows) const {
    double sum = 0.0;
    for (int64_t i = first; i < first + num_rows; ++i) {
      sum += SumOverRow<T>(dim_, [from = row(i), to = origin.data()](int64_t j) HWY_ATTR {
        const auto difference = hn::Sub(hn::LoadU(Tag<T>(), from + j), LoadFloats(to + j));
        return hn::Mul(difference, difference);
      });
    }
    return sum;
  }

  // Writes the distance [dim] of row i to `origin` [dim]. Returns its squared length.
  T Distance(const std::vector<float>& origin, int64_t i, T* distance) const {
    return SumOverRow<T>(dim_, [from = row(i), to = origin.data(), distance](int64_t j) HWY_ATTR {
      const auto difference = hn::Sub(hn::LoadU(Tag<T>(), from + j), LoadFloats(to + j));
      hn::StoreU(difference, Tag<T>(), distance + j);
      return hn::Mul(difference, difference);
    });
  }

  int dim() const { return dim_; }

 private:
  // fp32 numbers, as T.
  static HWY_INLINE hn::Vec<Tag<T>> LoadFloats(const float* from) {
    return LoadStored<T, DType::kFloat32>(reinterpret_cast<const std::byte*>(from));
  }

  // Writes the rotated row of elements load(j).
  template <typename Load>
  HWY_INLINE void RotateInto(const Load& load, T* to) const {
    if constexpr (std::is_same_v<T, float>) {
      Rotate(rotation_, load, to);
    } else {
      for (int j = 0; j < dim_; j += kLanes<T>) hn::StoreU(load(j), Tag<T>(), to + j);
      rotation_.Apply(to);
    }
  }

  const T* row(int64_t i) const { return rows_.data() + i * dim_; }

  const int dim_;
  const DType dtype_;
  const Rotation rotation_;
  const std::vector<float> mean_;
  std::vector<T> rows_;
  int64_t num_rows_ = 0;
  std::vector<double> sum_;
  std::vector<double> cluster_sums_;
};

// Stores sum / count - origin as row i of the means, and returns origin and what was stored.
std::vector<float> StoreMean(const double* sum, int64_t count, const std::vector<float>& origin,
                             StatisticsFormat format, const MutableStatisticsRows& means,
                             int64_t i) {
  const Tag<double> d;
  const auto dim = static_cast<int64_t>(origin.size());
  const auto divisor = hn::Set(d, static_cast<double>(count));
  std::vector<float> mean(dim);
  for (int64_t j = 0; j < dim; j += kLanes<double>) {
    const auto quotient = hn::Div(hn::LoadU(d, sum + j), divisor);
    StoreAsFloat(d, hn::Sub(quotient, LoadAsDouble(&origin[j])), &mean[j]);
  }
  float scale;
  StoreStatistics(mean.data(), dim, format, means.row(i), &scale, mean.data());
  if (means.scales != nullptr) means.scales[i] = scale;
  for (int64_t j = 0; j < dim; j += kLanes<double>) {
    StoreAsFloat(d, hn::Add(LoadAsDouble(&mean[j]), LoadAsDouble(&origin[j])), &mean[j]);
  }
  return mean;
}

// Writes the code of a distance of squared length `squared`, and returns its factor: between the
// one that makes products with it unbiased, |d|^2 / (u.d), and the one that keeps its length,
// |d| / |u|, by their geometric mean. The former's noise inflates a sum of exponentials, the
// latter's shortened products deflate it (docs/wave_index.md).
template <int kBits, typename T>
double StoreCode(const T* distance, int dim, double squared, uint64_t* words) {
  constexpr int kVectors = kHeadDimStep / kLanes<T>;
  const int64_t plane_words = CodeWords(dim);
  std::fill_n(words, kBits * plane_words, 0);
  if (squared == 0.0) return 0.0;
  const Tag<T> d;
  const hn::RebindToSigned<Tag<T>> di;
  const auto inverse_step =
      hn::Set(d, static_cast<T>(1.0 / (CodeStep(kBits) * std::sqrt(squared / dim))));
  const auto greatest = hn::Set(d, T{(1 << kBits) - 1}), offset = hn::Set(d, T{1 << kBits >> 1});
  // Moves an integer to the lowest bits of a number.
  const auto shift = hn::Set(d, std::is_same_v<T, float> ? T{0x1p23} : T{0x1p52});
  const auto middle = hn::Set(d, T{(1 << kBits) - 1} / 2);
  // Little endian: byte b of a plane has the bits of the elements 8 b to 8 b + 7.
  auto* const bytes = reinterpret_cast<uint8_t*>(words);
  // Small multiples of a quarter: exact in any order.
  auto code_squares = hn::Zero(d);
  const double product = SumOverRow<T>(dim, [&](int64_t j) HWY_ATTR {
    const auto from = hn::LoadU(d, distance + j);
    const auto level = hn::Add(hn::Mul(from, inverse_step), offset);
    const auto u = hn::Trunc(hn::Min(hn::Max(level, hn::Zero(d)), greatest));
    const auto integer = hn::BitCast(di, hn::Add(u, shift));
    for (int p = 0; p < kBits; ++p) {
      uint8_t bits[8];
      hn::StoreMaskBits(di, hn::TestBit(integer, hn::Set(di, 1 << p)), bits);
      bytes[p * plane_words * 8 + j / 8] |=
          static_cast<uint8_t>(kVectors == 1 ? bits[0] : bits[0] << (j % 8));
    }
    const auto element = hn::Sub(u, middle);
    code_squares = hn::Add(code_squares, hn::Mul(element, element));
    return hn::Mul(element, from);
  });
  const double code_squared = hn::GetLane(hn::SumOfLanes(d, code_squares));
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
  means.key = StoreMean(sides.keys.sum(), size, no_key, format, out.super_centroids, super);
  means.value = StoreMean(sides.values.sum(), size, no_value, format, out.super_value_means, super);
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

// Writes the statistics and codes of one cluster, the `number`-th of the loaded ones, whose rows
// begin at `first`. Returns the squared distance of its value mean from that of its super-cluster.
template <int kBits, typename T>
double WriteCluster(int64_t cluster, int64_t number, int64_t first, const SuperMeans& super,
                    const Sides<T>& sides, const MutableClusterIndex& out) {
  const int64_t size = out.cluster_size(cluster);
  const auto count = static_cast<double>(size);
  out.log_sizes[cluster] = static_cast<float>(std::log(count));
  const std::vector<float> value_mean =
      StoreMean(sides.values.cluster_sum(number), size, super.value, out.statistics,
                out.value_means, cluster);
  out.value_spreads[cluster] = ToFloat(sides.values.SumOfSquares(value_mean, first, size) / count);
  const std::vector<float> centroid = StoreMean(sides.keys.cluster_sum(number), size, super.key,
                                                out.statistics, out.centroids, cluster);
  T distance[kHeadDimMax];
  double sum_of_squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    const double squared = sides.keys.Distance(centroid, first + i, distance);
    sum_of_squares += squared;
    const int64_t token = out.offsets[cluster] + i;
    uint64_t* const words = out.codes + token * out.code_words();
    out.code_factors[token] =
        StoreFactor(StoreCode<kBits>(distance, sides.keys.dim(), squared, words));
  }
  out.key_spreads[cluster] = ToFloat(sum_of_squares / count);
  return SquaredDistance(value_mean, super.value);
}

void Yield(const WriteIndexTask& task) {
  if (task.yields_to != nullptr) task.yields_to->Yield();
}

// Everything but the offsets, the positions and the rows, which have been written.
template <int kBits, typename T>
void WriteStatistics(const SideSummary& keys, const SideSummary& values,
                     const WriteIndexTask& task) {
  const MutableClusterIndex& out = task.out;
  const KvShape& shape = out.shape;
  int64_t size_max = 0;
  for (int64_t super = 0; super < out.num_supers; ++super) {
    size_max = std::max(size_max, out.super_size(super));
  }
  Sides<T> sides = {{shape.head_dim_k, shape.dtype, size_max, keys.Mean(), out.mean_key},
                    {shape.head_dim_v, shape.dtype, size_max, values.Mean(), out.mean_value}};
  for (int64_t super = 0; super < out.num_supers; ++super) {
    const SuperMeans means = WriteSuper(super, sides, out);
    int64_t first = 0;
    double value_spread = 0.0;
    for (int64_t cluster = out.super_offsets[super]; cluster < out.super_offsets[super + 1];
         ++cluster) {
      const auto size = static_cast<double>(out.cluster_size(cluster));
      value_spread += size * WriteCluster<kBits>(cluster, cluster - out.super_offsets[super], first,
                                                 means, sides, out);
      first += out.cluster_size(cluster);
    }
    out.super_value_spreads[super] = ToFloat(value_spread / static_cast<double>(first));
    Yield(task);
  }
}

template <int kBits>
void WriteStatistics(const SideSummary& keys, const SideSummary& values,
                     const WriteIndexTask& task) {
  if (keys.SuitsFloat() && values.SuitsFloat()) {
    WriteStatistics<kBits, float>(keys, values, task);
  } else {
    WriteStatistics<kBits, double>(keys, values, task);
  }
}

void WriteIndexOf(const WriteIndexTask& task) {
  const MutableClusterIndex& out = task.out;
  const int64_t key_bytes = out.key_row_bytes();
  const int64_t value_bytes = out.value_row_bytes();
  const std::vector<TokenRows> tokens = ListTokens(task);
  std::copy_n(task.offsets, out.num_clusters + 1, out.offsets);
  std::copy_n(task.super_offsets, out.num_supers + 1, out.super_offsets);

  // Rows are asked for ahead: neighbours in a cluster are far apart in the segment.
  constexpr int64_t kAhead = 8;
  constexpr int64_t kClustersPerYield = 16;
  SideSummary keys(out.shape.head_dim_k, out.shape.dtype);
  SideSummary values(out.shape.head_dim_v, out.shape.dtype);
  for (int64_t cluster = 0; cluster < out.num_clusters; ++cluster) {
    const int64_t begin = out.offsets[cluster], size = out.cluster_size(cluster);
    std::byte* const cluster_keys = out.cluster_keys(cluster);
    std::byte* const cluster_values = out.cluster_values(cluster);
    for (int64_t i = 0; i < size; ++i) {
      if (begin + i + kAhead < out.num_tokens) {
        const TokenRows& ahead = tokens[task.members[begin + i + kAhead]];
        PrefetchBytes(ahead.key, key_bytes);
        PrefetchBytes(ahead.value, value_bytes);
      }
      const TokenRows& token = tokens[task.members[begin + i]];
      std::memcpy(cluster_keys + i * key_bytes, token.key, key_bytes);
      std::memcpy(cluster_values + i * value_bytes, token.value, value_bytes);
      out.positions[begin + i] = static_cast<uint16_t>(token.position - out.position_begin);
    }
    keys.Add(cluster_keys, size);
    values.Add(cluster_values, size);
    if (cluster % kClustersPerYield == 0) Yield(task);
  }
  switch (out.code_bits) {
    case 1:
      return WriteStatistics<1>(keys, values, task);
    case 2:
      return WriteStatistics<2>(keys, values, task);
    case 4:
      return WriteStatistics<4>(keys, values, task);
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(WriteIndexOf);

void WriteIndex(const WriteIndexTask& task) { HWY_DYNAMIC_DISPATCH(WriteIndexOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
