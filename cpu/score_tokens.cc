#include "cpu/score_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "compute/estimate_clusters.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_tokens.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/exp-inl.h"
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

// A query's product with a code is a sum over groups of four elements, each looked up by four bits
// of the code: sixteen sums fill a block of a vector of bytes, which one instruction looks up for
// sixteen tokens. (The idea is that of Faiss's "fast scan" of product quantisers.)
using Bytes = hn::ScalableTag<uint8_t>;
using Shorts = hn::Repartition<uint16_t, Bytes>;
using Floats = hn::Repartition<float, Bytes>;
using V = hn::Vec<Floats>;

constexpr int kBlocks = static_cast<int>(hn::MaxLanes(Bytes())) / 16;
constexpr int kTile = 16 * kBlocks;  // tokens whose products are taken at once
constexpr int kVectors = 4;          // of fp32, that hold one number a token
constexpr int kLanes = kTile / kVectors;
constexpr int kQueries = 8;      // that share a pass over the codes
constexpr int kChunkBytes = 16;  // of a plane of a code, looked up at once
constexpr int kGroupsMax = kHeadDimMax / 4;
constexpr float kExponentMax = 80.0f * kLog2E;  // of 2
constexpr float kMassExponentMax = 40.0f * kLog2E;
constexpr float kVarianceMax = 1e36f;

// What a query's scores are made of, as powers of two.
struct Query {
  void Load(const float* query, int dim, int code_bits) {
    float squared = 0.0f, most = 0.0f;
    for (int i = 0; i < dim; i += 4) {
      float magnitudes = 0.0f;
      for (int j = i; j < i + 4; ++j) {
        squared += query[j] * query[j];
        magnitudes += std::abs(query[j]);
      }
      most = std::max(most, magnitudes);
    }
    step = kLog2E * most / kQueryGroupMax;
    const float length = std::sqrt(squared);
    noise = kLog2E * CodeNoise(code_bits) * length;
    logit_spread = length * length / static_cast<float>(dim);

    alignas(64) int32_t integers[kHeadDimMax];
    const hn::CappedTag<float, 8> d;  // divides every dim
    const hn::RebindToSigned<decltype(d)> di;
    const auto inverse = hn::Set(d, most > 0.0f ? kQueryGroupMax / most : 0.0f);
    for (int i = 0; i < dim; i += static_cast<int>(hn::Lanes(d))) {
      hn::Store(hn::NearestInt(hn::Mul(hn::LoadU(d, query + i), inverse)), di, integers + i);
    }
    int sum = 0, least = 0;
    for (int g = 0; g < dim / 4; ++g) {
      least += FillTable(integers + 4 * g, tables[g]);
      for (int j = 4 * g; j < 4 * g + 4; ++j) sum += integers[j];
    }
    const auto code_max = static_cast<float>((1 << code_bits) - 1);
    origin = code_max * (static_cast<float>(sum) / 2.0f - static_cast<float>(least));
  }

  // table[bits] = sum of the elements whose bits are set, less the least such sum, which is
  // returned. The greatest is at most 127, so two fit a byte.
  static int FillTable(const int32_t* elements, uint8_t* table) {
    static constexpr uint8_t kBitSet[4][16] = {
        {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255},
        {0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255},
        {0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255},
        {0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}};
    const hn::FixedTag<uint8_t, 16> d;
    int least = 0;
    auto sums = hn::Zero(d);
    for (int j = 0; j < 4; ++j) {
      least += std::min(elements[j], 0);
      const auto element = hn::Set(d, static_cast<uint8_t>(elements[j]));
      sums = hn::Add(sums, hn::And(element, hn::LoadU(d, kBitSet[j])));
    }
    hn::Store(hn::Sub(sums, hn::Set(d, static_cast<uint8_t>(least))), d, table);
    return least;
  }

  // logits [clusters of the index]: products with their centroids, less the greatest of them, which
  // is returned.
  float CentroidLogits(const ScoreTokensTask& task, int h, float* logits) const {
    const ClusterIndex& index = *task.index;
    const Floats d;
    const float* log_masses = task.log_masses + h * task.log_masses_stride;
    const bool second_order = task.mass == MassEstimate::kSecondOrder;
    const auto spread = hn::Set(d, 0.5f * logit_spread);
    const auto gain_max = hn::Set(d, kLogMassGainMax);
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    V greatest = hn::Set(d, kNone);
    float greatest_of_rest = kNone;
    int64_t i = 0;
    for (; i + kLanes <= index.num_clusters; i += kLanes) {
      const auto bound = hn::Sub(hn::LoadU(d, log_masses + i), hn::LoadU(d, index.log_sizes + i));
      const auto gain = hn::Min(hn::Mul(spread, hn::LoadU(d, index.key_spreads + i)), gain_max);
      const auto logit = second_order ? hn::Sub(bound, gain) : bound;
      greatest = hn::Max(greatest, logit);
      hn::StoreU(logit, d, logits + i);
    }
    for (; i < index.num_clusters; ++i) {
      const float gain = std::min(0.5f * logit_spread * index.key_spreads[i], kLogMassGainMax);
      const float bound = log_masses[i] - index.log_sizes[i];
      logits[i] = bound - (second_order ? gain : 0.0f);
      greatest_of_rest = std::max(greatest_of_rest, logits[i]);
    }
    const float most = std::max(hn::GetLane(hn::MaxOfLanes(d, greatest)), greatest_of_rest);
    const float offset = most == kNone ? 0.0f : most;
    for (i = 0; i + kLanes <= index.num_clusters; i += kLanes) {
      const auto apart = hn::Sub(hn::LoadU(d, logits + i), hn::Set(d, offset));
      hn::StoreU(hn::Mul(apart, hn::Set(d, kLog2E)), d, logits + i);
    }
    for (; i < index.num_clusters; ++i) logits[i] = kLog2E * (logits[i] - offset);
    return offset;
  }

  alignas(64) uint8_t tables[kGroupsMax][16];
  float step;
  float noise;
  float logit_spread;
  float origin;  // what sums of tables exceed integer products by, where a code has middle elements
};

// The queries of a thread's last task, which those of the next segment equal.
class LoadedQueries {
 public:
  const Query* Load(const ScoreTokensTask& task, int first, int count) {
    const int dim = task.index->shape.head_dim_k, code_bits = task.index->code_bits;
    const float* rows = task.queries + static_cast<int64_t>(first) * dim;
    const auto size = static_cast<size_t>(count) * dim;
    if (dim == dim_ && code_bits == code_bits_ && size == rows_.size() &&
        std::memcmp(rows, rows_.data(), size * sizeof(float)) == 0) {
      return queries_;
    }
    dim_ = dim;
    code_bits_ = code_bits;
    rows_.assign(rows, rows + size);
    for (int q = 0; q < count; ++q) queries_[q].Load(rows + q * dim, dim, code_bits);
    return queries_;
  }

 private:
  int dim_ = 0;
  int code_bits_ = 0;
  std::vector<float> rows_;
  Query queries_[kQueries];
};

// Some tokens, of one cluster or several. Arrays have room for the vector that a store may begin
// at the tile's last token.
struct Tile {
  explicit Tile(const ClusterIndex& index)
      : code_bytes(index.code_words() * static_cast<int64_t>(sizeof(uint64_t))) {
    for (int i = 0; i < kLanes; ++i) code_steps[i] = i * code_bytes;
  }

  int count = 0;
  const int64_t code_bytes;
  alignas(64) int64_t code_steps[kLanes];
  const std::byte* codes[kTile + kLanes];
  alignas(64) float factors[kTile + kLanes];
  alignas(64) float variances[kTile + kLanes];
  alignas(64) float centroid_logits[kQueries][kTile + kLanes];
  alignas(64) float products[kQueries][kTile];

  // Tokens [token, token + added) of a cluster. of_clusters [num_queries, clusters of the index]:
  // logits of centroids.
  void Add(const ScoreTokensTask& task, const float* of_clusters, int num_queries, int64_t cluster,
           int64_t token, int added) {
    const ClusterIndex& index = *task.index;
    const Floats d;
    const auto* code = reinterpret_cast<const std::byte*>(index.codes) + token * code_bytes;
    // As whole vectors, and in one loop: where it ends is hard to foretell.
    for (int i = 0; i < added; i += kLanes) {
      const int at = count + i;
      StoreAddresses(code + i * code_bytes, codes + at);
      // Reads whole vectors: behind the factors stand other sections.
      const auto* from = reinterpret_cast<const std::byte*>(index.code_factors + token + i);
      hn::StoreU(LoadFloat16(d, from), d, factors + at);
      for (int q = 0; q < num_queries; ++q) {
        const float logit = of_clusters[q * index.num_clusters + cluster];
        hn::StoreU(hn::Set(d, logit), d, centroid_logits[q] + at);
      }
      if (task.risk != nullptr) {
        const float variance = std::min(TokenVariance(index, cluster), kVarianceMax);
        hn::StoreU(hn::Set(d, variance), d, variances + at);
      }
    }
    count += added;
  }

 private:
  void StoreAddresses(const std::byte* first, const std::byte** to) const {
    const hn::ScalableTag<int64_t> d;
    const auto base = hn::Set(d, static_cast<int64_t>(reinterpret_cast<uintptr_t>(first)));
    for (int i = 0; i < kLanes; i += static_cast<int>(hn::Lanes(d))) {
      hn::StoreU(hn::Add(base, hn::Load(d, code_steps + i)), d, reinterpret_cast<int64_t*>(to + i));
    }
  }
};

// kBytes of the codes of every eighth token, each in a block of sixteen bytes.
template <int kBytes, class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const std::byte* const* codes, int64_t first_byte) {
  const hn::Half<D> half;
  if constexpr (hn::MaxLanes(D()) > 16) {
    constexpr int kApart = 8 * static_cast<int>(hn::MaxLanes(D())) / 32;
    return hn::Combine(d, LoadBlocks<kBytes>(half, codes + kApart, first_byte),
                       LoadBlocks<kBytes>(half, codes, first_byte));
  } else {
    const auto* from = reinterpret_cast<const uint8_t*>(codes[0] + first_byte);
    if constexpr (kBytes == 16) return hn::LoadU(d, from);
    return hn::ZeroExtendVector(d, hn::LoadU(half, from));
  }
}

// `columns`: byte b of a chunk of all codes of the tile, for every b of the chunk. The lanes of 16
// bits are in the order of tokens, those of even bytes first.
template <int kBytes>
HWY_INLINE void TransposeChunk(const Tile& tile, int64_t first_byte,
                               hn::Vec<Bytes> (&columns)[kChunkBytes]) {
  const Bytes d;
  // Each round halves the distance of a byte's row from its column.
  hn::Vec<Bytes> other[16];
  HWY_UNROLL(16)
  for (int i = 0; i < 16; ++i) {
    columns[i] = LoadBlocks<kBytes>(d, tile.codes + i % 2 * (kTile / 2) + i / 2, first_byte);
  }
  const auto shuffle = [&](const hn::Vec<Bytes>* from, hn::Vec<Bytes>* to) HWY_ATTR {
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      to[2 * i] = hn::InterleaveLower(d, from[i], from[i + 8]);
      to[2 * i + 1] = hn::InterleaveUpper(d, from[i], from[i + 8]);
    }
  };
  shuffle(columns, other);
  shuffle(other, columns);
  shuffle(columns, other);
  shuffle(other, columns);
}

// products = or, unless they are the first, += weight times the sums that `tables`, two for each of
// `num_columns`, hold for the columns.
HWY_INLINE void AddLookups(const hn::Vec<Bytes> (&columns)[kChunkBytes], int num_columns,
                           const uint8_t (*tables)[16], float weight, bool first, float* products) {
  const Bytes d;
  const Shorts d16;
  const Floats df;
  const hn::RebindToSigned<Floats> di;
  const hn::Half<Shorts> half;
  const auto low_bits = hn::Set(d, 15);
  auto both = hn::Zero(d16), odd = hn::Zero(d16);  // of even bytes, 256 times those of odd bytes
  for (int c = 0; c < num_columns; ++c) {
    const auto low = hn::And(columns[c], low_bits);
    const auto high =
        hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, columns[c]))), low_bits);
    const auto sums =
        hn::BitCast(d16, hn::Add(hn::TableLookupBytes(hn::LoadDup128(d, tables[2 * c]), low),
                                 hn::TableLookupBytes(hn::LoadDup128(d, tables[2 * c + 1]), high)));
    both = hn::Add(both, sums);
    odd = hn::Add(odd, hn::ShiftRight<8>(sums));
  }
  const auto even = hn::Sub(both, hn::ShiftLeft<8>(odd));
  const auto scale = hn::Set(df, weight);
  const auto add = [&](auto sums, float* to) HWY_ATTR {
    const auto before = first ? hn::Zero(df) : hn::Load(df, to);
    hn::Store(hn::MulAdd(hn::ConvertTo(df, hn::PromoteTo(di, sums)), scale, before), df, to);
  };
  add(hn::LowerHalf(half, even), products);
  add(hn::UpperHalf(half, even), products + kLanes);
  add(hn::LowerHalf(half, odd), products + 2 * kLanes);
  add(hn::UpperHalf(half, odd), products + 3 * kLanes);
}

void MultiplyCodes(const ClusterIndex& index, const Query* queries, int num_queries, Tile& tile) {
  const int plane_bytes = index.shape.head_dim_k / 8;
  const int plane_stride = static_cast<int>(CodeWords(index.shape.head_dim_k)) * 8;
  std::fill(tile.codes + tile.count, tile.codes + kTile, tile.codes[0]);
  hn::Vec<Bytes> columns[kChunkBytes];
  for (int p = 0; p < index.code_bits; ++p) {
    for (int first = 0; first < plane_bytes; first += kChunkBytes) {
      const int64_t first_byte = int64_t{p} * plane_stride + first;
      if (plane_stride - first >= kChunkBytes) {
        TransposeChunk<kChunkBytes>(tile, first_byte, columns);
      } else {
        TransposeChunk<kChunkBytes / 2>(tile, first_byte, columns);
      }
      const int num_columns = std::min(plane_bytes - first, kChunkBytes);
      for (int q = 0; q < num_queries; ++q) {
        AddLookups(columns, num_columns, queries[q].tables + 2 * first, static_cast<float>(1 << p),
                   p == 0 && first == 0, tile.products[q]);
      }
    }
  }
}

// Stores a tile's numbers; behind them stand others.
void StoreTile(const float* numbers, int count, float* to) {
  const Floats d;
  if (count < kTile) {
    std::copy_n(numbers, count, to);
    return;
  }
  for (int t = 0; t < kTile; t += kLanes) hn::StoreU(hn::Load(d, numbers + t), d, to + t);
}

// Masses of a tile whose results lie at `at` of each row, and what the queries add to its shares
// and risks.
void FinishTile(const ScoreTokensTask& task, const Query* queries, int first_query, int num_queries,
                int64_t at, const Tile& tile) {
  const Floats d;
  alignas(64) float logits[kTile], shares[kTile] = {}, risks[kTile] = {};
  alignas(64) float masses[kTile];
  if (first_query > 0 && task.shares != nullptr) {
    std::copy_n(task.shares + at, tile.count, shares);
  }
  if (first_query > 0 && task.risk != nullptr) std::copy_n(task.risks + at, tile.count, risks);
  const V most = hn::Set(d, kExponentMax), most_mass = hn::Set(d, kMassExponentMax);
  for (int q = 0; q < num_queries; ++q) {
    const int h = first_query + q;
    const V step = hn::Set(d, queries[q].step), origin = hn::Set(d, queries[q].origin);
    const V noise = hn::Set(d, queries[q].noise), offset = hn::Set(d, task.offsets[h]);
    const bool counts =
        task.shares != nullptr && task.log_totals[h] != -std::numeric_limits<float>::infinity();
    const V to_share = hn::Set(d, counts ? kLog2E * (task.offsets[h] - task.log_totals[h]) : 0.0f);
    float* const row = task.masses + h * task.stride + at;
    float* const to = tile.count == kTile ? row : masses;
    for (int t = 0; t < kTile; t += kLanes) {
      const V factor = hn::Load(d, tile.factors + t);
      const V product = hn::Mul(hn::Sub(hn::Load(d, tile.products[q] + t), origin), step);
      const V logit = hn::MulAdd(factor, product, hn::Load(d, tile.centroid_logits[q] + t));
      hn::StoreU(EstimateExp2(d, hn::Min(logit, most_mass)), d, to + t);
      if (task.logits != nullptr) {
        hn::Store(hn::MulAdd(logit, hn::Set(d, 1.0f / kLog2E), offset), d, logits + t);
      }
      const V score = hn::MulAdd(noise, factor, logit);
      if (counts) {
        const V share = EstimateExp2(d, hn::Min(hn::Add(score, to_share), most));
        hn::Store(hn::Add(hn::Load(d, shares + t), share), d, shares + t);
      }
      if (task.risk != nullptr) {
        const float apart = kLog2E * (task.offsets[h] - task.risk->lses[h]);
        const V log_share = hn::Add(score, hn::Set(d, apart));
        const V square = EstimateExp2(d, hn::Min(hn::Add(log_share, log_share), most));
        const V inverse = hn::Set(d, task.risk->inverse_squares[h]);
        const V risk = hn::Min(hn::Mul(square, hn::Mul(hn::Load(d, tile.variances + t), inverse)),
                               hn::Set(d, std::numeric_limits<float>::max()));
        hn::Store(hn::Max(hn::Load(d, risks + t), risk), d, risks + t);
      }
    }
    if (to == masses) std::copy_n(masses, tile.count, row);
    if (task.logits != nullptr) StoreTile(logits, tile.count, task.logits + h * task.stride + at);
  }
  if (task.shares != nullptr) StoreTile(shares, tile.count, task.shares + at);
  if (task.risk != nullptr) StoreTile(risks, tile.count, task.risks + at);
}

void ScoreTokensOf(const ScoreTokensTask& task) {
  const ClusterIndex& index = *task.index;
  if (task.num_clusters == 0) {
    std::fill_n(task.offsets, task.num_queries, 0.0f);
    return;
  }
  Tile tile(index);
  // Grow to the largest index and queries that the thread has seen.
  thread_local LoadedQueries loaded;
  thread_local std::vector<float> of_clusters;
  of_clusters.resize(kQueries * index.num_clusters);
  for (int first = 0; first < task.num_queries; first += kQueries) {
    const int num_queries = std::min(kQueries, task.num_queries - first);
    const Query* queries = loaded.Load(task, first, num_queries);
    for (int q = 0; q < num_queries; ++q) {
      task.offsets[first + q] =
          queries[q].CentroidLogits(task, first + q, of_clusters.data() + q * index.num_clusters);
    }
    int64_t at = 0;
    const auto flush = [&]() HWY_ATTR {
      MultiplyCodes(index, queries, num_queries, tile);
      FinishTile(task, queries, first, num_queries, at, tile);
      at += tile.count;
      tile.count = 0;
    };
    for (int64_t i = 0; i < std::min(kCodesAhead, task.num_clusters); ++i) {
      PrefetchCodes(index, task.clusters[i]);
    }
    for (int64_t i = 0; i < task.num_clusters; ++i) {
      if (i + kCodesAhead < task.num_clusters) PrefetchCodes(index, task.clusters[i + kCodesAhead]);
      const int64_t cluster = task.clusters[i];
      const int64_t end = index.offsets[cluster + 1];
      for (int64_t token = index.offsets[cluster]; token < end;) {
        const int added = static_cast<int>(std::min<int64_t>(kTile - tile.count, end - token));
        tile.Add(task, of_clusters.data(), num_queries, cluster, token, added);
        token += added;
        if (tile.count == kTile) flush();
      }
    }
    if (tile.count > 0) flush();
  }
}

}  // namespace
}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wavekv::cpu {

HWY_EXPORT(ScoreTokensOf);

void ScoreTokens(const ScoreTokensTask& task) { HWY_DYNAMIC_DISPATCH(ScoreTokensOf)(task); }

}  // namespace wavekv::cpu
#endif  // HWY_ONCE
