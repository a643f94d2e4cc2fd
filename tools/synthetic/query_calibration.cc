#include "tools/synthetic/query_calibration.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <utility>

namespace wavekv::synthetic {
namespace {

constexpr int64_t kSampleTokens = 8192;
constexpr double kContentMax = 400.0;  // no head is that sharp

struct MassSplit {
  double sinks = 0.0;  // of all
  double local = 0.0;  // of what the sinks leave
  double top = 0.0;    // of what the sinks leave, on its heaviest 1 %
  // How the log-odds of sinks and local grow with their coefficients.
  double sinks_slope = 0.0;
  double local_slope = 0.0;
};

// How a query's attention is spread over the sample; `top` only when asked, as it takes a partial
// sort.
MassSplit Split(const TokenSample& sample, const QueryProjection& projection,
                const QueryCoefficients& c, bool with_top) {
  const auto n = static_cast<int64_t>(projection.content.size());
  std::vector<std::pair<double, double>> mass(n);  // of a token, and of all it stands for
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    mass[i].first = c.content * projection.content[i] + c.local * projection.local[i] +
                    c.sink * projection.sink[i];
    max = std::max(max, mass[i].first);
  }
  struct Part {
    double mass = 1e-300;
    double moment = 0.0;  // mass x projection
  };
  Part sinks, others_for_sinks, local, others_for_local;
  double tokens = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    mass[i].first = std::exp(mass[i].first - max);
    mass[i].second = mass[i].first * sample.weights[i];
    const auto add = [&](Part& part, double by) {
      part.mass += mass[i].second;
      part.moment += mass[i].second * by;
    };
    add(i < kSinkTokens ? sinks : others_for_sinks, projection.sink[i]);
    if (i < kSinkTokens) continue;
    tokens += sample.weights[i];
    add(i >= n - kLocalTokens ? local : others_for_local, projection.local[i]);
  }
  const auto mean = [](const Part& part) { return part.moment / part.mass; };
  const double rest = others_for_sinks.mass;
  MassSplit split;
  split.sinks = sinks.mass / (sinks.mass + rest);
  split.local = local.mass / rest;
  split.sinks_slope = mean(sinks) - mean(others_for_sinks);
  split.local_slope = mean(local) - mean(others_for_local);
  if (!with_top) return split;

  // Tokens that stand for themselves alone are few: cutting by number of sampled tokens nearly cuts
  // by weight, and the loop corrects the rest.
  double room = tokens / 100;
  for (auto begin = mass.begin() + kSinkTokens; room > 0.0 && begin != mass.end();) {
    const auto count =
        std::min<int64_t>(mass.end() - begin, 1 + static_cast<int64_t>(room / sample.max_weight));
    std::nth_element(begin, begin + count - 1, mass.end(), std::greater<>());
    for (const auto end = begin + count; begin != end; ++begin) {
      const double weight = begin->second / begin->first;
      split.top += std::max(0.0, std::min(room, weight)) * begin->first / rest;
      room -= weight;
    }
  }
  return split;
}

}  // namespace

int64_t TokenSample::visible(int64_t position) const {
  return std::upper_bound(tokens.begin(), tokens.end(), position) - tokens.begin();
}

std::vector<double> TokenSample::Logits(absl::Span<const float> query, int64_t num_tokens) const {
  std::vector<double> logits(num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) {
    double dot = 0.0;
    for (int d = 0; d < head_dim; ++d) {
      dot += static_cast<double>(query[d]) * keys[i * head_dim + d];
    }
    logits[i] = dot / std::sqrt(static_cast<double>(head_dim));
  }
  return logits;
}

TokenSample DrawSample(const TokenStream& stream, int64_t local_begin, std::vector<int64_t> alone) {
  const int64_t num_tokens = stream.spec().num_tokens;
  const int dim = stream.spec().head_dim;
  for (int64_t t = 0; t < kSinkTokens; ++t) alone.push_back(t);
  for (int64_t t = local_begin; t < num_tokens; ++t) alone.push_back(t);
  std::sort(alone.begin(), alone.end());
  alone.erase(std::unique(alone.begin(), alone.end()), alone.end());

  // One token of each stride, anywhere in it.
  const int64_t stride = std::max<int64_t>(1, num_tokens / kSampleTokens);
  std::mt19937_64 generator(stream.spec().seed);
  std::vector<int64_t> ordinary;
  for (int64_t begin = kSinkTokens; begin < local_begin; begin += stride) {
    const int64_t width = std::min(stride, local_begin - begin);
    const int64_t t = begin + static_cast<int64_t>(generator() % static_cast<uint64_t>(width));
    if (!std::binary_search(alone.begin(), alone.end(), t)) ordinary.push_back(t);
  }
  const double weight =
      static_cast<double>(local_begin - kSinkTokens) / static_cast<double>(ordinary.size());

  TokenSample sample;
  sample.head_dim = dim;
  sample.max_weight = std::max(1.0, weight);
  std::merge(alone.begin(), alone.end(), ordinary.begin(), ordinary.end(),
             std::back_inserter(sample.tokens));
  std::vector<float> block_keys;
  int64_t block = -1;
  for (const int64_t t : sample.tokens) {
    sample.weights.push_back(std::binary_search(alone.begin(), alone.end(), t) ? 1.0 : weight);
    const int64_t first = t / TokenStream::kBlockTokens * TokenStream::kBlockTokens;
    if (first != block) {
      block = first;
      const int64_t count = std::min(TokenStream::kBlockTokens, num_tokens - first);
      block_keys.resize(count * dim);
      stream.Keys(first, count, block_keys.data());
    }
    const float* const key = block_keys.data() + (t - first) * dim;
    sample.keys.insert(sample.keys.end(), key, key + dim);
  }
  return sample;
}

// The content's coefficient by bisection, the other two following by Newton's method on log-odds,
// in which they are all but linear.
QueryCoefficients CalibrateMasses(const TokenSample& sample, const QueryProjection& projection,
                                  const MassTarget& target) {
  QueryCoefficients c;
  const auto follow = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      const MassSplit split = Split(sample, projection, c, false);
      const auto step = [](double want, double have, double slope) {
        // Where a mass is nearly all or nothing the slope misleads.
        return std::clamp((LogOdds(want) - LogOdds(have)) / std::max(slope, 1e-3), -20.0, 20.0);
      };
      if (target.local > 0.0) c.local += step(target.local, split.local, split.local_slope);
      if (target.sinks > 0.0) c.sink += step(target.sinks, split.sinks, split.sinks_slope);
    }
  };
  double low = 0.0;
  double high = kContentMax;
  for (int i = 0; i < 16; ++i) {
    c.content = 0.5 * (low + high);
    follow(3);
    (Split(sample, projection, c, true).top < target.top ? low : high) = c.content;
  }
  follow(4);
  return c;
}

double CalibrateNeedle(const TokenSample& sample, absl::Span<const double> base,
                       absl::Span<const double> along, int64_t token, double mass) {
  double low = 0.0;
  double high = kContentMax;
  for (int i = 0; i < 24; ++i) {
    const double far = 0.5 * (low + high);
    double all = 0.0;  // relative to the token's own mass
    for (size_t j = 0; j < base.size(); ++j) {
      all += sample.weights[j] * std::exp(base[j] - base[token] + far * (along[j] - along[token]));
    }
    (1.0 / all < mass ? low : high) = far;
  }
  return 0.5 * (low + high);
}

}  // namespace wavekv::synthetic
