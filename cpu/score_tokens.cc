#include "cpu/score_tokens.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "cpu/targets.h"
#include "storage/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_tokens.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kWordsMax = (kHeadDimMax + 63) / 64;
constexpr int kPlanes = 8;    // bits of a query's integers, the last one the sign's
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
                  int64_t* products) {
  for (int t = 0; t < count; ++t) {
    int64_t product = 0;
    for (int p = 0; p < bits; ++p, codes += words) {
      for (int b = 0; b < kPlanes; ++b) {
        int64_t common = 0;
        for (int w = 0; w < words; ++w) common += std::popcount(codes[w] & query.planes[b][w]);
        product += b == kPlanes - 1 ? -(common << (b + p)) : common << (b + p);
      }
    }
    products[t] = product;
  }
}

// The same for one plane of two words.
void CodeProductsOfTwoWords(const uint64_t* codes, int count, const SlicedQuery& query,
                            int64_t* products) {
  const hn::ScalableTag<uint64_t> d;
  const int n = static_cast<int>(hn::Lanes(d));
  int t = 0;
  alignas(64) uint64_t sums[hn::MaxLanes(hn::ScalableTag<uint64_t>())];
  for (; (t + n / kTwoWords) <= count; t += n / kTwoWords) {
    const auto code = hn::LoadU(d, codes + t * kTwoWords);
    auto sum = hn::Zero(d);
    // From the sign down: doubling the sum so far is cheaper than shifting each count.
    for (int b = kPlanes - 1; b >= 0; --b) {
      const auto plane = hn::LoadDup128(d, query.planes[b]);
      const auto common = hn::PopulationCount(hn::And(code, plane));
      sum = b == kPlanes - 1 ? hn::Sub(sum, common) : hn::Add(hn::Add(sum, sum), common);
    }
    hn::Store(sum, d, sums);
    for (int i = 0; i < n / kTwoWords; ++i) {
      products[t + i] = static_cast<int64_t>(sums[2 * i] + sums[2 * i + 1]);
    }
  }
  if (t < count) {
    CodeProducts(codes + t * kTwoWords, count - t, 1, kTwoWords, query, products + t);
  }
}

void ScoreTokensOf(const ScoreTokensTask& task) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_k;
  const int words = static_cast<int>(CodeWords(dim));
  const float middle = static_cast<float>((1 << index.code_bits) - 1) / 2.0f;
  SlicedQuery query;
  for (int h = 0; h < task.num_queries; ++h) {
    query.Load(task.queries + static_cast<int64_t>(h) * dim, dim);
    const float noise = CodeNoise(index.code_bits) * query.length;
    const float logit_spread = query.length * query.length / static_cast<float>(dim);
    const float origin = middle * static_cast<float>(query.sum);
    const float* log_masses = task.log_masses + h * task.log_masses_stride;
    int64_t at = h * task.stride;
    for (int64_t i = 0; i < task.num_clusters; ++i) {
      const int64_t cluster = task.clusters[i];
      float centroid_logit = log_masses[cluster] - index.log_sizes[cluster];
      if (task.mass == MassEstimate::kSecondOrder) {
        centroid_logit -=
            std::min(0.5f * logit_spread * index.key_spreads[cluster], kLogMassGainMax);
      }
      for (int64_t token = index.offsets[cluster]; token < index.offsets[cluster + 1];
           token += kBatch) {
        const int count =
            static_cast<int>(std::min<int64_t>(kBatch, index.offsets[cluster + 1] - token));
        const uint64_t* codes = index.codes + token * index.code_words();
        int64_t products[kBatch];
        if (words == kTwoWords && index.code_bits == 1) {
          CodeProductsOfTwoWords(codes, count, query, products);
        } else {
          CodeProducts(codes, count, index.code_bits, words, query, products);
        }
        for (int t = 0; t < count; ++t, ++at) {
          const float factor = Float16ToFloat32(index.code_factors[token + t]);
          const float product = (static_cast<float>(products[t]) - origin) * query.step;
          task.logits[at] = centroid_logit + factor * product;
          task.rank_scores[at] = task.logits[at] + noise * factor;
        }
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
