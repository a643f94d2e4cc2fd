#include "cpu/score_tokens.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

// For its count of bits in vectors; other kernels gain nothing from these sets.
#define HWY_WANT_AVX3_DL
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_tokens.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

constexpr int kWordsMax = (kHeadDimMax + 63) / 64;
constexpr int kPlanes = 8;    // bits of a query's integers, the last one the sign's
constexpr int kQueries = 8;   // that share a pass over the codes
constexpr int kBatch = 64;    // tokens whose products are taken at once
constexpr int kTwoWords = 2;  // of the head_dims 72 to 128, which have a kernel of their own

// A query in integers, sliced: bit j % 64 of word j / 64 of plane b is bit b of element j.
struct SlicedQuery {
  void Load(const float* query, int dim) {
    float largest = 0.0f, squared = 0.0f;
    for (int i = 0; i < dim; ++i) {
      largest = std::max(largest, std::abs(query[i]));
      squared += query[i] * query[i];
    }
    length = std::sqrt(squared);
    step = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    std::fill_n(&planes[0][0], kPlanes * kWordsMax, 0);
    sum = 0;
    for (int i = 0; i < dim; ++i) {
      const auto integer = static_cast<int>(std::nearbyint(query[i] * inverse));
      sum += integer;
      for (int b = 0; b < kPlanes; ++b) {
        planes[b][i / 64] |= static_cast<uint64_t>(integer >> b & 1) << (i % 64);
      }
    }
  }

  uint64_t planes[kPlanes][kWordsMax];
  int64_t sum = 0;  // of all elements
  float step = 0.0f;
  float length = 0.0f;
};

// products[t] = sum_j u_j q_j over the codes of `count` tokens, `words` words a plane.
void CodeProducts(const uint64_t* codes, int count, int bits, int words, const SlicedQuery& query,
                  int32_t* products) {
  for (int t = 0; t < count; ++t) {
    int product = 0;
    for (int p = 0; p < bits; ++p, codes += words) {
      for (int b = 0; b < kPlanes; ++b) {
        int common = 0;
        for (int w = 0; w < words; ++w) common += std::popcount(codes[w] & query.planes[b][w]);
        product += b == kPlanes - 1 ? -(common << (b + p)) : common << (b + p);
      }
    }
    products[t] = product;
  }
}

// The same for one plane of two words. Reads whole vectors: behind the codes stand other sections.
void CodeProductsOfTwoWords(const uint64_t* codes, int count, const SlicedQuery& query,
                            int32_t* products) {
  const hn::ScalableTag<uint64_t> d;
  const int n = static_cast<int>(hn::Lanes(d));
  hn::Vec<decltype(d)> planes[kPlanes];
  HWY_UNROLL(8)
  for (int b = 0; b < kPlanes; ++b) planes[b] = hn::LoadDup128(d, query.planes[b]);
  alignas(64) uint64_t sums[hn::MaxLanes(hn::ScalableTag<uint64_t>())];
  for (int t = 0; t < count; t += n / kTwoWords) {
    const auto code = hn::LoadU(d, codes + t * kTwoWords);
    const auto common = [&](int b)
                            HWY_ATTR { return hn::PopulationCount(hn::And(code, planes[b])); };
    // From the sign down: doubling the sum so far is cheaper than shifting each count.
    auto sum = hn::Sub(hn::Zero(d), common(kPlanes - 1));
    HWY_UNROLL(7)
    for (int b = kPlanes - 2; b >= 0; --b) sum = hn::Add(hn::Add(sum, sum), common(b));
    hn::Store(sum, d, sums);
    for (int i = 0; i < n / kTwoWords; ++i) {
      products[t + i] = static_cast<int32_t>(sums[2 * i] + sums[2 * i + 1]);
    }
  }
}

// What a query's scores are made of beside its products.
struct Query {
  void Load(const ScoreTokensTask& task, int h) {
    const int dim = task.index->shape.head_dim_k;
    sliced.Load(task.queries + static_cast<int64_t>(h) * dim, dim);
    noise = CodeNoise(task.index->code_bits) * sliced.length;
    logit_spread = sliced.length * sliced.length / static_cast<float>(dim);
    const float middle = static_cast<float>((1 << task.index->code_bits) - 1) / 2.0f;
    origin = middle * static_cast<float>(sliced.sum);
  }

  float CentroidLogit(const ScoreTokensTask& task, int64_t cluster, const float* log_masses) const {
    const float bound = log_masses[cluster] - task.index->log_sizes[cluster];
    if (task.mass == MassEstimate::kLowerBound) return bound;
    const float gain = 0.5f * logit_spread * task.index->key_spreads[cluster];
    return bound - std::min(gain, kLogMassGainMax);
  }

  SlicedQuery sliced;
  float noise;
  float logit_spread;
  float origin;  // the product with a code whose elements are all in the middle
};

// Scores `count` tokens of a cluster from `token` on; their results lie at `at` of each row.
void ScoreBatch(const ScoreTokensTask& task, const Query* queries, int first, int num_queries,
                int64_t cluster, int64_t token, int count, int64_t at) {
  const ClusterIndex& index = *task.index;
  const int words = static_cast<int>(CodeWords(index.shape.head_dim_k));
  const uint64_t* codes = index.codes + token * index.code_words();
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<int32_t, decltype(d)> di;
  const int n = static_cast<int>(hn::Lanes(d));
  alignas(64) float factors[kBatch];
  for (int t = 0; t < count; t += n) {
    const auto* from = reinterpret_cast<const std::byte*>(index.code_factors + token + t);
    hn::Store(LoadFloat16(d, from), d, factors + t);
  }
  for (int q = 0; q < num_queries; ++q) {
    const Query& query = queries[q];
    alignas(64) int32_t products[kBatch];
    if (words == kTwoWords && index.code_bits == 1) {
      CodeProductsOfTwoWords(codes, count, query.sliced, products);
    } else {
      CodeProducts(codes, count, index.code_bits, words, query.sliced, products);
    }
    const float* log_masses = task.log_masses + (first + q) * task.log_masses_stride;
    const float centroid_logit = query.CentroidLogit(task, cluster, log_masses);
    float* logits = task.logits + (first + q) * task.stride + at;
    float* rank_scores = task.rank_scores + (first + q) * task.stride + at;
    alignas(64) float batch_logits[kBatch], batch_scores[kBatch];
    const auto origin = hn::Set(d, query.origin), step = hn::Set(d, query.sliced.step);
    const auto centroid = hn::Set(d, centroid_logit), noise = hn::Set(d, query.noise);
    for (int t = 0; t < count; t += n) {
      const auto product =
          hn::Mul(hn::Sub(hn::ConvertTo(d, hn::Load(di, products + t)), origin), step);
      const auto factor = hn::Load(d, factors + t);
      const auto logit = hn::MulAdd(factor, product, centroid);
      hn::Store(logit, d, batch_logits + t);
      hn::Store(hn::MulAdd(noise, factor, logit), d, batch_scores + t);
    }
    std::copy_n(batch_logits, count, logits);
    std::copy_n(batch_scores, count, rank_scores);
  }
}

void ScoreTokensOf(const ScoreTokensTask& task) {
  const ClusterIndex& index = *task.index;
  Query queries[kQueries];
  for (int first = 0; first < task.num_queries; first += kQueries) {
    const int num_queries = std::min(kQueries, task.num_queries - first);
    for (int q = 0; q < num_queries; ++q) queries[q].Load(task, first + q);
    int64_t at = 0;
    for (int64_t i = 0; i < task.num_clusters; ++i) {
      const int64_t cluster = task.clusters[i];
      const int64_t end = index.offsets[cluster + 1];
      for (int64_t token = index.offsets[cluster]; token < end; token += kBatch) {
        const int count = static_cast<int>(std::min<int64_t>(kBatch, end - token));
        ScoreBatch(task, queries, first, num_queries, cluster, token, count, at);
        at += count;
      }
    }
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
