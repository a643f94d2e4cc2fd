#include "tools/synthetic/synthetic_statistics.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "fmt/format.h"

namespace wavekv::synthetic {
namespace {

constexpr int64_t kBlock = TokenStream::kBlockTokens;
constexpr int64_t kLocalTokens = 64;
constexpr int64_t kTop = 100;

double Dot(const float* a, const float* b, int64_t dim) {
  double sum = 0.0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double Cosine(absl::Span<const double> a, absl::Span<const double> b) {
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

double CosineAround(const float* a, const float* b, absl::Span<const double> mean) {
  std::vector<double> x(mean.size()), y(mean.size());
  for (size_t i = 0; i < mean.size(); ++i) {
    x[i] = a[i] - mean[i];
    y[i] = b[i] - mean[i];
  }
  return Cosine(x, y);
}

// Calls use(begin, keys, num_tokens) for the stream's blocks, in order.
void ForEachBlock(const TokenStream& tokens,
                  const std::function<void(int64_t, const float*, int64_t)>& use) {
  std::vector<float> keys(kBlock * tokens.spec().head_dim);
  for (int64_t begin = 0; begin < tokens.spec().num_tokens; begin += kBlock) {
    const int64_t count = std::min(kBlock, tokens.spec().num_tokens - begin);
    tokens.Keys(begin, count, keys.data());
    use(begin, keys.data(), count);
  }
}

void MeasureKeys(const SyntheticHead& head, SyntheticStatistics& statistics,
                 std::vector<double>& mean) {
  const TokenStream& tokens = head.tokens();
  const int dim = tokens.spec().head_dim;
  const int64_t sinks = tokens.spec().sink_tokens;
  const auto others = static_cast<double>(tokens.spec().num_tokens - sinks);
  mean.assign(dim, 0.0);
  std::vector<double> sink_mean(dim);
  double norms = 0.0, squares = 0.0;
  ForEachBlock(tokens, [&](int64_t begin, const float* keys, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float* const key = keys + i * dim;
      std::vector<double>& sum = begin + i < sinks ? sink_mean : mean;
      for (int d = 0; d < dim; ++d) sum[d] += key[d];
      if (begin + i < sinks) continue;
      const double square = Dot(key, key, dim);
      squares += square;
      norms += std::sqrt(square);
    }
  });
  for (double& x : mean) x /= others;
  statistics.sink_cosine = Cosine(sink_mean, mean);
  norms /= others;
  statistics.norm_variation = std::sqrt(std::max(0.0, squares / others - norms * norms)) / norms;

  const auto cosine_at = [&](int64_t distance) {
    const int64_t last = tokens.spec().num_tokens - distance;
    if (last <= sinks) return 0.0;
    // Runs of neighbours, as a block is drawn as a whole.
    const int64_t step = std::max<int64_t>(1, (last - sinks) / 40);
    double sum = 0.0;
    int64_t pairs = 0;
    for (int64_t begin = sinks; begin < last; begin += step) {
      const int64_t count = std::min({int64_t{32}, step, last - begin});
      std::vector<float> near(count * dim), far(count * dim);
      tokens.Keys(begin, count, near.data());
      tokens.Keys(begin + distance, count, far.data());
      for (int64_t i = 0; i < count; ++i, ++pairs) {
        sum += CosineAround(near.data() + i * dim, far.data() + i * dim, mean);
      }
    }
    return sum / static_cast<double>(pairs);
  };
  statistics.key_cosine_1 = cosine_at(1);
  statistics.key_cosine_64 = cosine_at(64);
  statistics.key_cosine_8192 = cosine_at(8192);
}

void MeasureQueryDirections(const SyntheticHead& head, absl::Span<const double> mean_key,
                            SyntheticStatistics& statistics) {
  const int dim = head.spec().head_dim;
  const int group = head.spec().gqa_group_size;
  const std::vector<float>& queries = head.queries();
  std::vector<double> mean(dim);
  for (size_t i = 0; i < queries.size(); ++i) mean[i % dim] += queries[i];
  for (double& x : mean) x /= static_cast<double>(queries.size() / dim);
  statistics.query_cosine = Cosine(mean, mean_key);
  if (group == 1) {
    statistics.group_cosine = 1.0;
    return;
  }
  for (int64_t query = 0; query < head.spec().num_queries; ++query) {
    const float* const first = queries.data() + query * group * dim;
    statistics.group_cosine +=
        CosineAround(first, first + dim, mean) / static_cast<double>(head.spec().num_queries);
  }
}

struct QueryMeasure {
  double sink_mass = 0.0, local_mass = 0.0, top_mass = 0.0, tokens_for_90 = 0.0, deviation = 0.0;
  std::vector<int64_t> top;  // ascending
};

QueryMeasure MeasureQuery(const std::vector<double>& logits, int64_t sinks) {
  const auto n = static_cast<int64_t>(logits.size());
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> mass(n);
  for (int64_t i = 0; i < n; ++i) mass[i] = std::exp(logits[i] - max);
  QueryMeasure measure;
  const double sink = std::accumulate(mass.begin(), mass.begin() + sinks, 0.0);
  const double rest = std::accumulate(mass.begin() + sinks, mass.end(), 0.0);
  measure.sink_mass = sink / (sink + rest);
  measure.local_mass = std::accumulate(mass.end() - kLocalTokens, mass.end(), 0.0) / rest;

  double sum = 0.0, squares = 0.0;
  for (int64_t i = sinks; i < n; ++i) {
    sum += logits[i];
    squares += logits[i] * logits[i];
  }
  const auto others = static_cast<double>(n - sinks);
  measure.deviation = std::sqrt(std::max(0.0, squares / others - std::pow(sum / others, 2)));

  std::vector<int64_t> order(n - sinks);
  std::iota(order.begin(), order.end(), sinks);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; });
  double captured = 0.0;
  const auto one_percent = static_cast<size_t>((n - sinks) / 100);
  for (size_t i = 0; i < order.size(); ++i) {
    captured += mass[order[i]];
    if (i + 1 == one_percent) measure.top_mass = captured / rest;
    if (measure.tokens_for_90 == 0.0 && captured >= 0.9 * rest) {
      measure.tokens_for_90 = static_cast<double>(i + 1) / others;
    }
  }
  measure.top.assign(order.begin(), order.begin() + std::min<int64_t>(kTop, n - sinks));
  std::sort(measure.top.begin(), measure.top.end());
  return measure;
}

}  // namespace

SyntheticStatistics MeasureStatistics(const SyntheticHead& head, int64_t max_queries) {
  SyntheticStatistics statistics;
  std::vector<double> mean_key;
  MeasureKeys(head, statistics, mean_key);
  MeasureQueryDirections(head, mean_key, statistics);

  const int dim = head.spec().head_dim;
  const int group = head.spec().gqa_group_size;
  const int64_t count = std::min(max_queries, head.spec().num_queries);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  std::vector<std::vector<double>> logits(count);
  ForEachBlock(head.tokens(), [&](int64_t begin, const float* keys, int64_t num_tokens) {
    for (int64_t query = 0; query < count; ++query) {
      const float* const q = head.queries().data() + query * group * dim;
      const int64_t visible = std::min(num_tokens, head.position(query) + 1 - begin);
      for (int64_t i = 0; i < visible; ++i) {
        logits[query].push_back(scale * Dot(q, keys + i * dim, dim));
      }
    }
  });

  int64_t measured = 0, needles = 0, pairs = 0;
  std::vector<int64_t> previous;
  for (int64_t query = 0; query < count; ++query) {
    const QueryMeasure measure = MeasureQuery(logits[query], head.tokens().spec().sink_tokens);
    if (const int64_t needle = head.needle_of(query); needle >= 0) {
      double mass = 0.0;
      for (const double logit : logits[query]) mass += std::exp(logit - logits[query][needle]);
      statistics.needle_mass += 1.0 / mass;
      ++needles;
      previous.clear();
      continue;
    }
    statistics.sink_mass += measure.sink_mass;
    statistics.local_mass += measure.local_mass;
    statistics.top_mass += measure.top_mass;
    statistics.tokens_for_90 += measure.tokens_for_90;
    statistics.logit_deviation += measure.deviation;
    ++measured;
    if (!previous.empty()) {
      std::vector<int64_t> both;
      std::set_intersection(previous.begin(), previous.end(), measure.top.begin(),
                            measure.top.end(), std::back_inserter(both));
      statistics.step_overlap +=
          static_cast<double>(both.size()) / static_cast<double>(previous.size());
      ++pairs;
    }
    previous = measure.top;
  }
  for (double* const sum : {&statistics.sink_mass, &statistics.local_mass, &statistics.top_mass,
                            &statistics.tokens_for_90, &statistics.logit_deviation}) {
    *sum /= static_cast<double>(std::max<int64_t>(1, measured));
  }
  statistics.needle_mass /= static_cast<double>(std::max<int64_t>(1, needles));
  statistics.step_overlap /= static_cast<double>(std::max<int64_t>(1, pairs));
  return statistics;
}

std::string StatisticsTable(const SyntheticHeadSpec& spec, const SyntheticStatistics& statistics) {
  const char* const spread = spec.sharpness == Sharpness::kSharp ? "about .002"
                             : spec.sharpness == Sharpness::kMid ? "about .03"
                                                                 : "about .3";
  std::string table;
  const auto line = [&](const char* name, double value, const std::string& aim) {
    table += fmt::format("  {:<52} {:7.3f}  {}\n", name, value, aim);
  };
  line("mass on the 4 sinks", statistics.sink_mass, fmt::format("{}", spec.sink_mass));
  line("of the rest, on the heaviest 1 %", statistics.top_mass,
       fmt::format("{}", TopMassTarget(spec.sharpness)));
  line("of the rest, on the last 64 tokens", statistics.local_mass,
       fmt::format("{}", spec.local_mass));
  line("share of the tokens that hold 90 % of the rest", statistics.tokens_for_90, spread);
  line("standard deviation of logits", statistics.logit_deviation, "1.6 to 2.9");
  line("100 heaviest tokens also in the next step's", statistics.step_overlap, ".6 to .75");
  if (spec.num_needles > 0) line("mass on a needle", statistics.needle_mass, "0.5");
  line("cosine of sinks and mean key", statistics.sink_cosine, "-.9 to -.8");
  line("cosine of mean query and mean key", statistics.query_cosine, "-.6 to -.3");
  line("cosine of two query heads of the group, centred", statistics.group_cosine, "above .8");
  line("variation of key lengths", statistics.norm_variation, ".05 to .13");
  line("cosine of centred keys at distance 1", statistics.key_cosine_1, "about .46");
  line("cosine of centred keys at distance 64", statistics.key_cosine_64, "about .24");
  line("cosine of centred keys at distance 8192", statistics.key_cosine_8192, "about 0");
  return table;
}

}  // namespace wavekv::synthetic
