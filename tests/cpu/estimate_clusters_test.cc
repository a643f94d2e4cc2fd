#include "compute/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "compute/score_tokens.h"
#include "storage/float16.h"
#include "tests/cpu/backend_fixture.h"
#include "tests/cpu/random_index.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Estimate {
  std::vector<double> output;
  double lse = -kInfinity;
  double missing_lse = -kInfinity;
  double value_variance = 0.0;
};

// What a query gives to estimate from.
struct Given {
  const float* query;
  const float* masses;  // logs, per cluster
  const std::vector<Zone>& zones;
  const float* token_masses;  // per token of the sketch zone, relative to e^token_offset
  float token_offset;
  const std::vector<uint8_t>& chosen;
  MassEstimate mass;
};

double Deduction(double rest, double part) { return std::min(1.0, rest / part); }

// The contract's formulas for one query in double precision.
class NaiveEstimate {
 public:
  NaiveEstimate(const RandomIndex& random_index, const Given& given)
      : random_index_(random_index), index_(random_index.index()), given_(given) {
    output_.assign(index_.shape.head_dim_v, 0.0);
    FindOffset();
    int64_t first_token = 0;
    for (int64_t s = 0; s < index_.num_supers; ++s) AddSuper(s, &first_token);
    Estimate& e = estimate_;
    e.output = output_;
    if (mass_ > 0.0) {
      for (double& x : e.output) x /= mass_;
      e.lse = offset_ + std::log(mass_);
    }
    AddErrors();
  }

  const Estimate& estimate() const { return estimate_; }

 private:
  double Mass(int64_t cluster) const { return std::exp(given_.masses[cluster] - offset_); }
  double TokenMass(int64_t token) const {
    return std::exp(given_.token_offset - offset_) * given_.token_masses[token];
  }

  void FindOffset() {
    double max = -kInfinity;
    int64_t token = 0;
    for (int64_t i = 0; i < index_.num_clusters; ++i) {
      const Zone zone = given_.zones[i];
      if (zone == Zone::kEstimation || zone == Zone::kRemainder) {
        max = std::max<double>(max, given_.masses[i]);
      } else if (zone == Zone::kSketch) {
        for (int64_t t = 0; t < index_.cluster_size(i); ++t, ++token) {
          const double mass = given_.token_masses[token];
          if (given_.chosen[token] == 0 && mass > 0.0) {
            max = std::max(max, given_.token_offset + std::log(mass));
          }
        }
      }
    }
    offset_ = std::isinf(max) ? 0.0 : max;
  }

  void Add(double weight, const double* mean) {
    for (size_t d = 0; d < output_.size(); ++d) output_[d] += weight * mean[d];
  }
  const double* ValueMean(int64_t cluster) const {
    return &random_index_.value_means()[cluster * index_.shape.head_dim_v];
  }

  // A cluster of the sketch zone; returns the mass of all its tokens.
  double AddSketch(int64_t cluster, int64_t first_token) {
    const int dim = index_.shape.head_dim_v;
    const int64_t size = index_.cluster_size(cluster);
    double rest = 0.0, whole = 0.0, left = 0.0;
    for (int64_t t = 0; t < size; ++t) {
      const double mass = TokenMass(first_token + t);
      whole += mass;
      if (given_.chosen[first_token + t] != 0) continue;
      rest += mass;
      left += 1.0;
    }
    if (left == 0.0) return whole;
    mass_ += rest;
    std::vector<double> mean(dim);
    double tokens = static_cast<double>(size);
    for (int d = 0; d < dim; ++d) mean[d] = tokens * ValueMean(cluster)[d];
    for (int64_t t = 0; t < size; ++t) {
      if (given_.chosen[first_token + t] == 0) continue;
      const double deduction = Deduction(rest / left, TokenMass(first_token + t));
      tokens -= deduction;
      for (int d = 0; d < dim; ++d) {
        mean[d] -= deduction *
                   LoadElement(index_.cluster_values(cluster), index_.shape.dtype, t * dim + d);
      }
    }
    for (double& x : mean) x /= tokens;
    Add(rest, mean.data());
    return whole;
  }

  void AddSuper(int64_t super, int64_t* first_token) {
    const int dim = index_.shape.head_dim_v;
    double remainder_mass = 0.0;
    int64_t remainder_tokens = 0;
    std::vector<std::pair<int64_t, double>> others;  // with their masses
    for (int64_t i = index_.super_offsets[super]; i < index_.super_offsets[super + 1]; ++i) {
      if (given_.zones[i] == Zone::kRemainder) {
        remainder_mass += Mass(i);
        remainder_tokens += index_.cluster_size(i);
        continue;
      }
      double whole = Mass(i);
      if (given_.zones[i] == Zone::kSketch) {
        whole = AddSketch(i, *first_token);
        *first_token += index_.cluster_size(i);
      } else if (given_.zones[i] == Zone::kEstimation) {
        mass_ += whole;
        Add(whole, ValueMean(i));
      }
      others.emplace_back(i, whole);
    }
    mass_ += remainder_mass;
    if (remainder_tokens == 0) return;
    if (2 * remainder_tokens < index_.super_size(super)) {
      for (int64_t i = index_.super_offsets[super]; i < index_.super_offsets[super + 1]; ++i) {
        if (given_.zones[i] == Zone::kRemainder) Add(Mass(i), ValueMean(i));
      }
      return;
    }
    auto tokens = static_cast<double>(index_.super_size(super));
    std::vector<double> mean(dim);
    for (int d = 0; d < dim; ++d) {
      mean[d] = tokens * random_index_.super_value_means()[super * dim + d];
    }
    const double rest = remainder_mass / static_cast<double>(remainder_tokens);
    for (const auto& [cluster, mass] : others) {
      const auto size = static_cast<double>(index_.cluster_size(cluster));
      const double deducted = size * Deduction(rest, mass / size);
      tokens -= deducted;
      for (int d = 0; d < dim; ++d) mean[d] -= deducted * ValueMean(cluster)[d];
    }
    for (double& x : mean) x /= tokens;
    Add(remainder_mass, mean.data());
  }

  void AddErrors() {
    const int dim = index_.shape.head_dim_k;
    double q2 = 0.0;
    for (int d = 0; d < dim; ++d) q2 += static_cast<double>(given_.query[d]) * given_.query[d];
    double missing = 0.0, variance = 0.0;
    int64_t token = 0;
    for (int64_t s = 0; s < index_.num_supers; ++s) {
      for (int64_t i = index_.super_offsets[s]; i < index_.super_offsets[s + 1]; ++i) {
        const Zone zone = given_.zones[i];
        const double m = Mass(i);
        if (zone == Zone::kSketch) {
          for (int64_t t = 0; t < index_.cluster_size(i); ++t, ++token) {
            if (given_.chosen[token] != 0) continue;
            const double factor = Float16ToFloat32(index_.code_factors[index_.offsets[i] + t]);
            const double noise = CodeNoise(index_.code_bits) * factor;
            missing += kDoubt * TokenMass(token) * std::min<double>(q2 * noise * noise / 2, 3.0);
            variance += kTokenVariance * std::pow(TokenMass(token), 2) * index_.value_spreads[i];
          }
        } else if (zone == Zone::kIgnored) {
          ignored_ = std::isinf(ignored_)
                         ? given_.masses[i]
                         : std::max<double>(ignored_, given_.masses[i]) +
                               std::log1p(std::exp(-std::abs(ignored_ - given_.masses[i])));
        } else if (zone != Zone::kRetrieval) {
          const double x = q2 * index_.key_spreads[i] / dim;
          const double gain = std::min(x / 2, 3.0);
          const double super_spread = index_.super_value_spreads[s];
          const bool bound = given_.mass == MassEstimate::kLowerBound;
          missing += m * (bound ? gain : kDoubt * gain / (1 + gain));
          variance += m * m *
                      (kClusterVariance * super_spread +
                       kHiddenVariance * (index_.value_spreads[i] + super_spread) *
                           std::pow(1 + std::min(x, 16.0) / 256, 256) / index_.cluster_size(i));
        }
      }
    }
    // Two logarithms added, for either may be of any magnitude.
    const double other = missing > 0.0 ? offset_ + std::log(missing) : -kInfinity;
    const double most = std::max(other, ignored_);
    if (!std::isinf(most)) {
      estimate_.missing_lse = most + std::log(std::exp(other - most) + std::exp(ignored_ - most));
    }
    if (mass_ > 0.0) estimate_.value_variance = variance / (mass_ * mass_);
  }

  const RandomIndex& random_index_;
  const ClusterIndex& index_;
  const Given given_;
  Estimate estimate_;
  std::vector<double> output_;
  double offset_ = 0.0;
  double mass_ = 0.0;
  double ignored_ = -kInfinity;  // logarithm of the ignored clusters' mass
};

class EstimateClustersTest : public BackendFixture {
 protected:
  struct Case {
    int dim_k = 64, dim_v = 64;
    StatisticsFormat statistics = StatisticsFormat::kFloat32;
    DType kv_dtype = DType::kBFloat16;
    int64_t num_clusters = 50;
    int num_queries = 4;
    float query_deviation = 1.0f;
    float mass_deviation = 3.0f;
  };

  void ExpectRight(Random& random, const Case& c) {
    SCOPED_TRACE(::testing::Message() << "dims " << c.dim_k << " " << c.dim_v << " "
                                      << StatisticsFormatName(c.statistics) << " clusters "
                                      << c.num_clusters << " queries " << c.num_queries);
    const RandomIndex index(random, {c.dim_k, c.dim_v, c.kv_dtype}, c.statistics, c.num_clusters);
    const std::vector<float> queries = random.Gaussians(c.num_queries * c.dim_k, c.query_deviation);
    const int64_t stride = c.num_clusters + 5;
    const std::vector<float> masses = random.Gaussians(c.num_queries * stride, c.mass_deviation);
    std::vector<Zone> zones(c.num_clusters);
    for (Zone& zone : zones) zone = static_cast<Zone>(random.Integer(0, 4));
    DrawTokens(random, index, zones, c.num_queries, c.mass_deviation);
    ForEachTarget([&] {
      Check(index, queries, masses, stride, zones, c.num_queries, /*with_errors=*/true);
      Check(index, queries, masses, stride, zones, c.num_queries, /*with_errors=*/false);
    });
  }

  // Masses of the sketch zone's tokens, and which of them were chosen.
  void DrawTokens(Random& random, const RandomIndex& index, const std::vector<Zone>& zones,
                  int num_queries, float deviation) {
    num_tokens_ = 0;
    for (size_t i = 0; i < zones.size(); ++i) {
      if (zones[i] == Zone::kSketch) num_tokens_ += index.index().cluster_size(i);
    }
    token_offsets_ = random.Gaussians(num_queries, deviation);
    token_masses_.clear();
    for (const float log : random.Gaussians(num_queries * num_tokens_, deviation)) {
      token_masses_.push_back(std::exp(log));
    }
    chosen_.clear();
    // Some clusters are chosen whole, most tokens are not.
    const auto percent = static_cast<int>(random.Integer(0, 1) * 80 + 10);
    for (int64_t t = 0; t < num_tokens_; ++t) chosen_.push_back(random.Integer(0, 99) < percent);
  }

  void Check(const RandomIndex& index, const std::vector<float>& queries,
             const std::vector<float>& masses, int64_t stride, const std::vector<Zone>& zones,
             int num_queries, bool with_errors) {
    for (MassEstimate mass : {MassEstimate::kLowerBound, MassEstimate::kSecondOrder}) {
      CheckMass(mass, index, queries, masses, stride, zones, num_queries, with_errors);
    }
  }

  void CheckMass(MassEstimate mass, const RandomIndex& index, const std::vector<float>& queries,
                 const std::vector<float>& masses, int64_t stride, const std::vector<Zone>& zones,
                 int num_queries, bool with_errors) {
    const int dim_k = index.index().shape.head_dim_k, dim_v = index.index().shape.head_dim_v;
    std::vector<float> output = Poison(num_queries * dim_v), lse = Poison(num_queries),
                       missing = Poison(num_queries), variance = Poison(num_queries);
    const std::vector<const std::byte*> values = ChosenValues(index.index(), zones);
    token_offsets_.resize(num_queries);
    const EstimateClustersTask task = {.queries = with_errors ? queries.data() : nullptr,
                                       .num_queries = num_queries,
                                       .index = &index.index(),
                                       .log_masses = masses.data(),
                                       .log_masses_stride = stride,
                                       .mass = mass,
                                       .zones = zones.data(),
                                       .token_masses = token_masses_.data(),
                                       .token_offsets = token_offsets_.data(),
                                       .token_stride = num_tokens_,
                                       .chosen = chosen_.data(),
                                       .chosen_values = values.data(),
                                       .output = output.data(),
                                       .lse = lse.data(),
                                       .missing_lse = with_errors ? missing.data() : nullptr,
                                       .value_variance = with_errors ? variance.data() : nullptr};
    ASSERT_TRUE(backend().EstimateClusters({&task, 1}).ok());
    for (int h = 0; h < num_queries; ++h) {
      const NaiveEstimate naive(
          index, {&queries[h * dim_k], &masses[h * stride], zones,
                  token_masses_.data() + h * num_tokens_, token_offsets_[h], chosen_, mass});
      const Estimate& expected = naive.estimate();
      if (std::isinf(expected.lse)) {
        EXPECT_EQ(lse[h], -kInfinity);
      } else {
        EXPECT_NEAR(lse[h], expected.lse, 4 * kRounding * (std::fabs(expected.lse) + 64));
      }
      // Weights carry the rounding of masses (|m| < 64) and one rounding per cluster summed.
      const double relative = 0x1p-17 + 2 * index.index().num_clusters * kRounding;
      for (int d = 0; d < dim_v; ++d) {
        ASSERT_NEAR(output[h * dim_v + d], expected.output[d], 6 * relative) << h << " " << d;
      }
      if (!with_errors) continue;
      if (std::isinf(expected.missing_lse)) {
        EXPECT_EQ(missing[h], -kInfinity);
      } else {
        EXPECT_NEAR(missing[h], expected.missing_lse,
                    4 * relative + 4 * kRounding * std::fabs(expected.missing_lse));
      }
      EXPECT_NEAR(variance[h], expected.value_variance, expected.value_variance * 4 * relative);
    }
  }

  std::vector<const std::byte*> ChosenValues(const ClusterIndex& index,
                                             const std::vector<Zone>& zones) const {
    std::vector<const std::byte*> values;
    int64_t token = 0;
    for (int64_t i = 0; i < index.num_clusters; ++i) {
      if (zones[i] != Zone::kSketch) continue;
      const KvRange range = index.cluster_range(i);
      for (int64_t t = 0; t < range.num_tokens; ++t) {
        if (chosen_[token++] != 0) values.push_back(range.values + t * index.value_row_bytes());
      }
    }
    return values;
  }

  int64_t num_tokens_ = 0;
  std::vector<float> token_masses_;
  std::vector<float> token_offsets_;
  std::vector<uint8_t> chosen_;
};

TEST_F(EstimateClustersTest, FollowsTheFormulasForEveryTypeAndShape) {
  Random random(71);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics : kAllStatistics) {
    for (const int dim : kHeadDims) {
      ExpectRight(random, {.dim_k = dim, .dim_v = dim, .statistics = statistics});
      ExpectRight(random, {.dim_k = 72,
                           .dim_v = dim,
                           .statistics = statistics,
                           .kv_dtype = DType::kFloat16,
                           .num_clusters = 19});
      ExpectRight(random, {.dim_v = dim, .statistics = statistics, .kv_dtype = DType::kFloat32});
    }
  }
}

TEST_F(EstimateClustersTest, AnyNumberOfQueriesAndClusters) {
  Random random(72);
  WAVEKV_TRACE_SEED(random);
  for (int num_queries : kQueryCounts) ExpectRight(random, {.num_queries = num_queries});
  for (int64_t n : {1, 2, 17, 64, 65, 700}) ExpectRight(random, {.num_clusters = n});
}

TEST_F(EstimateClustersTest, WideClustersAreCapped) {
  Random random(73);
  WAVEKV_TRACE_SEED(random);
  ExpectRight(random, {.query_deviation = 8.0f});
  ExpectRight(random, {.query_deviation = 1e-3f});
}

TEST_F(EstimateClustersTest, NothingUnretrievedGivesTheEmptyState) {
  Random random(74);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(3 * 64), masses = random.Gaussians(3 * 20);
  ForEachTarget(
      [&] { Check(index, queries, masses, 20, std::vector<Zone>(20, Zone::kRetrieval), 3, true); });
}

TEST_F(EstimateClustersTest, MassesOfMinusInfinityWeighNothing) {
  Random random(75);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(2 * 64);
  std::vector<float> masses = random.Gaussians(2 * 20);
  for (int i = 0; i < 30; ++i) masses[i] = -kInfinity;
  std::vector<Zone> zones(20, Zone::kEstimation);
  zones[12] = Zone::kRemainder;
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 2, true); });
}

TEST_F(EstimateClustersTest, WhatIsReadMayBeFarHeavierThanTheRest) {
  Random random(77);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64);
  std::vector<float> masses = random.Gaussians(20);
  std::vector<Zone> zones(20, Zone::kRemainder);
  zones[4] = Zone::kSketch;
  zones[7] = Zone::kRetrieval;
  masses[7] = 300.0f;
  DrawTokens(random, index, zones, 1, 1.0f);
  chosen_.assign(num_tokens_, 0);
  chosen_[0] = 1;
  token_masses_[0] = std::exp(40.0f);
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
}

TEST_F(EstimateClustersTest, WithoutTokensAllMassesMayBeTiny) {
  Random random(79);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64);
  std::vector<float> masses = random.Gaussians(20);
  for (float& mass : masses) mass -= 300.0f;
  const std::vector<Zone> zones(20, Zone::kRemainder);
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
}

TEST_F(EstimateClustersTest, TokensAndClustersMayBeFarApart) {
  Random random(80);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64), masses = random.Gaussians(20);
  std::vector<Zone> zones(20, Zone::kRemainder);
  zones[4] = zones[5] = Zone::kSketch;
  for (const float offset : {-200.0f, -30.0f, 30.0f, 200.0f}) {
    DrawTokens(random, index, zones, 1, 1.0f);
    token_offsets_[0] = offset;
    ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
  }
}

TEST_F(EstimateClustersTest, IgnoredMassesMayBeOfAnyMagnitude) {
  Random random(78);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64);
  for (const float shift : {-300.0f, 0.0f, 300.0f}) {
    for (const bool any_answered : {false, true}) {
      std::vector<float> masses = random.Gaussians(20);
      for (float& mass : masses) mass += shift;
      std::vector<Zone> zones(20, Zone::kIgnored);
      if (any_answered) {
        zones[3] = Zone::kEstimation;
        masses[3] -= shift;
      }
      DrawTokens(random, index, zones, 1, 1.0f);
      ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
    }
  }
}

TEST_F(EstimateClustersTest, HugeMassesDoNotOverflow) {
  Random random(76);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, StatisticsFormat::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64);
  std::vector<float> masses(20, -1e6f);
  masses[7] = 1e6f;
  const std::vector<Zone> zones(20, Zone::kEstimation);
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
}

}  // namespace
}  // namespace wavekv::testing
