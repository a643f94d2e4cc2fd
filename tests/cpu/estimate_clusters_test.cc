#include "compute/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/cpu/backend_fixture.h"
#include "tests/cpu/random_index.h"

namespace wavekv::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Estimate {
  std::vector<double> output;
  double lse = -kInfinity;
  double missing_mass = 0.0;
  double value_variance = 0.0;
};

// The contract's formulas for one query in double precision.
// Mean of the values of the remainder zone: the segment's sum without that of all other clusters.
std::vector<double> NaiveRemainderMean(const RandomIndex& random_index,
                                       const std::vector<Zone>& zones) {
  const ClusterIndex& index = random_index.index();
  const int dim = index.shape.head_dim_v;
  std::vector<double> mean(dim);
  double tokens = index.num_tokens;
  for (int d = 0; d < dim; ++d) mean[d] = tokens * index.mean_value[d];
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (zones[i] == Zone::kRemainder) continue;
    tokens -= index.cluster_size(i);
    for (int d = 0; d < dim; ++d) {
      mean[d] -= index.cluster_size(i) * random_index.value_means()[i * dim + d];
    }
  }
  for (double& m : mean) m /= std::max(tokens, 1.0);
  return mean;
}

Estimate NaiveEstimate(const RandomIndex& random_index, const float* query, const float* masses,
                       const std::vector<Zone>& zones, MassEstimate mass) {
  const ClusterIndex& index = random_index.index();
  const int dim_k = index.shape.head_dim_k, dim_v = index.shape.head_dim_v;
  const std::vector<double> remainder_mean = NaiveRemainderMean(random_index, zones);
  Estimate estimate = {std::vector<double>(dim_v, 0.0)};
  double max = -kInfinity, sum = 0.0, q2 = 0.0;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (zones[i] != Zone::kRetrieval) max = std::max<double>(max, masses[i]);
  }
  if (std::isinf(max)) return estimate;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (zones[i] != Zone::kRetrieval) sum += std::exp(masses[i] - max);
  }
  estimate.lse = max + std::log(sum);
  for (int d = 0; d < dim_k; ++d) q2 += static_cast<double>(query[d]) * query[d];
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (zones[i] == Zone::kRetrieval) continue;
    const double w = std::exp(masses[i] - estimate.lse);
    const double s = q2 * index.key_spreads[i] / dim_k;
    const double gain = std::exp(std::min<double>(s / 2, kLogMassGainMax));
    estimate.missing_mass +=
        w * (mass == MassEstimate::kLowerBound ? gain - 1 : (1 - 1 / gain) / 2);
    estimate.value_variance += w * w *
                               (index.value_spreads[i] / index.cluster_size(i) +
                                index.value_spreads[i] * (std::exp(std::min(s, 3.0)) - 1));
    for (int d = 0; d < dim_v; ++d) {
      estimate.output[d] +=
          w * (zones[i] == Zone::kEstimation ? random_index.value_means()[i * dim_v + d]
                                             : remainder_mean[d]);
    }
  }
  return estimate;
}

class EstimateClustersTest : public BackendFixture {
 protected:
  struct Case {
    int dim_k = 64, dim_v = 64;
    DType dtype = DType::kFloat32;
    int64_t num_clusters = 50;
    int num_queries = 4;
    float query_deviation = 1.0f;
    float mass_deviation = 3.0f;
  };

  void ExpectRight(Random& random, const Case& c) {
    SCOPED_TRACE(::testing::Message()
                 << "dims " << c.dim_k << " " << c.dim_v << " " << DTypeName(c.dtype)
                 << " clusters " << c.num_clusters << " queries " << c.num_queries);
    const RandomIndex index(random, {c.dim_k, c.dim_v, DType::kBFloat16}, c.dtype, c.num_clusters);
    const std::vector<float> queries = random.Gaussians(c.num_queries * c.dim_k, c.query_deviation);
    const int64_t stride = c.num_clusters + 5;
    const std::vector<float> masses = random.Gaussians(c.num_queries * stride, c.mass_deviation);
    std::vector<Zone> zones(c.num_clusters);
    for (Zone& zone : zones) zone = static_cast<Zone>(random.Integer(0, 2));
    ForEachTarget([&] {
      Check(index, queries, masses, stride, zones, c.num_queries, /*with_errors=*/true);
      Check(index, queries, masses, stride, zones, c.num_queries, /*with_errors=*/false);
    });
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
    const EstimateClustersTask task = {.queries = with_errors ? queries.data() : nullptr,
                                       .num_queries = num_queries,
                                       .index = &index.index(),
                                       .log_masses = masses.data(),
                                       .log_masses_stride = stride,
                                       .mass = mass,
                                       .zones = zones.data(),
                                       .output = output.data(),
                                       .lse = lse.data(),
                                       .missing_mass = with_errors ? missing.data() : nullptr,
                                       .value_variance = with_errors ? variance.data() : nullptr};
    ASSERT_TRUE(backend().EstimateClusters({&task, 1}).ok());
    for (int h = 0; h < num_queries; ++h) {
      const Estimate expected =
          NaiveEstimate(index, &queries[h * dim_k], &masses[h * stride], zones, mass);
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
      EXPECT_NEAR(missing[h], expected.missing_mass, expected.missing_mass * 4 * relative);
      EXPECT_NEAR(variance[h], expected.value_variance, expected.value_variance * 4 * relative);
    }
  }
};

TEST_F(EstimateClustersTest, FollowsTheFormulasForEveryTypeAndShape) {
  Random random(71);
  WAVEKV_TRACE_SEED(random);
  for (DType dtype : kAllDTypes) {
    for (int dim : kHeadDims) {
      ExpectRight(random, {.dim_k = dim, .dim_v = dim, .dtype = dtype});
      ExpectRight(random, {.dim_k = 72, .dim_v = dim, .dtype = dtype, .num_clusters = 19});
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
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, DType::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(3 * 64), masses = random.Gaussians(3 * 20);
  ForEachTarget(
      [&] { Check(index, queries, masses, 20, std::vector<Zone>(20, Zone::kRetrieval), 3, true); });
}

TEST_F(EstimateClustersTest, MassesOfMinusInfinityWeighNothing) {
  Random random(75);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, DType::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(2 * 64);
  std::vector<float> masses = random.Gaussians(2 * 20);
  for (int i = 0; i < 30; ++i) masses[i] = -kInfinity;
  std::vector<Zone> zones(20, Zone::kEstimation);
  zones[12] = Zone::kRemainder;
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 2, true); });
}

TEST_F(EstimateClustersTest, HugeMassesDoNotOverflow) {
  Random random(76);
  WAVEKV_TRACE_SEED(random);
  const RandomIndex index(random, {64, 40, DType::kBFloat16}, DType::kFloat32, 20);
  const std::vector<float> queries = random.Gaussians(64);
  std::vector<float> masses(20, -1e6f);
  masses[7] = 1e6f;
  const std::vector<Zone> zones(20, Zone::kEstimation);
  ForEachTarget([&] { Check(index, queries, masses, 20, zones, 1, true); });
}

}  // namespace
}  // namespace wavekv::testing
