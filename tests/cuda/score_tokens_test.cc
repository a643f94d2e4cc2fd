#include "cuda/score_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "storage/float16.h"
#include "tests/cpu/random_index.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

constexpr int kHeadDims[] = {8, 16, 40, 64, 72, 80, 96, 128, 256, 576};

class ScoreTokensOnGpu : public GpuFixture {
 protected:
  struct Case {
    // percent: how many of the clusters are asked for.
    Case(Random& random, int dim, int code_bits, int64_t num_clusters, int the_num_queries,
         int percent)
        : index(random, {dim, 8, DType::kBFloat16}, StatisticsFormat::kInt4, num_clusters,
                code_bits),
          num_queries(the_num_queries),
          queries(random.Gaussians(num_queries * dim, 0.3f)) {
      for (int64_t i = 0; i < num_clusters; ++i) {
        if (random.Integer(0, 99) < percent) clusters.push_back(static_cast<uint32_t>(i));
      }
      for (int h = 0; h < num_queries; ++h) {
        float* const query = &queries[h * dim];
        if (h % 4 == 2) std::fill_n(query, dim, 0.0f);
        if (h % 4 != 3) continue;
        // In steps of 1, between two integers.
        for (int d = 0; d < dim; ++d) query[d] = static_cast<float>(random.Integer(-30, 29)) + .5f;
        float* const most = query + random.Integer(0, dim / 4 - 1) * 4;
        std::fill_n(most, 4, 0.0f);
        most[random.Integer(0, 3)] = random.Integer(0, 1) == 0 ? 125.0f : -125.0f;
      }
    }

    // Gives all tokens of the first clusters to one, so that the others have none.
    void MakeOneLarge(int64_t merged) {
      auto* offsets = const_cast<uint32_t*>(index.index().offsets);
      std::fill_n(offsets, merged, 0);
    }

    int64_t num_tokens() const {
      int64_t sum = 0;
      for (const uint32_t cluster : clusters) sum += index.index().cluster_size(cluster);
      return sum;
    }

    // Of all tokens in the order of results.
    std::vector<double> Factors() const {
      std::vector<double> factors;
      for (const uint32_t cluster : clusters) {
        for (int64_t t = index.index().offsets[cluster]; t < index.index().offsets[cluster + 1];
             ++t) {
          factors.push_back(Float16ToFloat32(index.index().code_factors[t]));
        }
      }
      return factors;
    }

    // Of all queries, times a factor the noise of a logit.
    std::vector<double> Noises() const {
      const int dim = index.index().shape.head_dim_k;
      std::vector<double> noises;
      for (int h = 0; h < num_queries; ++h) {
        double squared = 0.0;
        for (int d = 0; d < dim; ++d) squared += std::pow(queries[h * dim + d], 2);
        noises.push_back(CodeNoise(index.index().code_bits) * std::sqrt(squared));
      }
      return noises;
    }

    RandomIndex index;
    int num_queries;
    std::vector<float> queries;
    std::vector<uint32_t> clusters;
    std::vector<float> log_masses;
  };

  void ExpectRight(Random& random, const std::vector<std::unique_ptr<Case>>& cases) {
    std::vector<ScoreTokensTask> tasks;
    TaskBounds bounds;
    for (const auto& of : cases) {
      const ClusterIndex& index = of->index.index();
      ScoreTokensTask task;
      task.num_queries = of->num_queries;
      task.num_clusters = static_cast<int64_t>(of->clusters.size());
      task.mass =
          random.Integer(0, 1) == 0 ? MassEstimate::kLowerBound : MassEstimate::kSecondOrder;
      task.log_masses_stride = index.num_clusters + random.Integer(0, 3);
      task.stride = of->num_tokens() + random.Integer(0, 3);
      bounds.shape = index.shape;
      bounds.code_bits = index.code_bits;
      bounds.num_queries = std::max(bounds.num_queries, task.num_queries);
      bounds.num_items = std::max(bounds.num_items, of->num_tokens());
      of->log_masses = random.Gaussians(task.num_queries * task.log_masses_stride, 3.0f);
      if (task.num_queries > 0 && task.num_clusters > 0) {
        task.queries = Upload(of->queries);
        task.index = UploadIndex(index);
        task.log_masses = Upload(of->log_masses);
        task.clusters = Upload(of->clusters);
        task.logits = Poison<float>(task.num_queries * task.stride);
        task.rank_scores = Poison<float>(task.num_queries * task.stride);
      }
      tasks.push_back(task);
    }
    const auto count = static_cast<int64_t>(tasks.size());
    Expect(operations().score_tokens({Upload(tasks), count}, bounds, stream()));
    for (int64_t i = 0; i < count; ++i) {
      const Case& of = *cases[i];
      ScoreTokensTask task = tasks[i];
      if (task.index == nullptr) continue;
      SCOPED_TRACE(::testing::Message() << "dim " << of.index.index().shape.head_dim_k << " bits "
                                        << of.index.index().code_bits << " queries "
                                        << of.num_queries << " tokens " << of.num_tokens());
      const int64_t size = task.num_queries * task.stride;
      const std::vector<float> got_logits = Download(task.logits, size);
      const std::vector<float> got_scores = Download(task.rank_scores, size);
      std::vector<float> logits(size, std::nanf(""));
      std::vector<float> masses(size), offsets(task.num_queries);
      task.queries = of.queries.data();
      task.index = &of.index.index();
      task.log_masses = of.log_masses.data();
      task.clusters = of.clusters.data();
      task.masses = masses.data();
      task.offsets = offsets.data();
      task.logits = logits.data();
      task.rank_scores = nullptr;
      Expect(cpu().ScoreTokens({&task, 1}));
      const std::vector<double> factors = of.Factors(), noises = of.Noises();
      // Integers are the same; what is left are the roundings of a few sums. A query's element in
      // the next integer would make a difference of 2^-8 of what it adds.
      for (int64_t at = 0; at < size; ++at) {
        if (std::isnan(logits[at])) {
          ASSERT_TRUE(std::isnan(got_logits[at]) && std::isnan(got_scores[at])) << at;
          continue;
        }
        ASSERT_NEAR(got_logits[at], logits[at], 1e-6 * (20 + std::fabs(logits[at])))
            << at / task.stride << " " << at % task.stride;
        const double noise = noises[at / task.stride] * factors[at % task.stride];
        ASSERT_NEAR(got_scores[at], logits[at] + noise, 1e-6 * (20 + std::fabs(logits[at]) + noise))
            << at / task.stride << " " << at % task.stride;
      }
    }
  }
};

TEST_P(ScoreTokensOnGpu, TokensOfEveryShapeHaveTheScoresOfTheCpu) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (const int bits : {1, 2, 4}) {
    for (const int dim : kHeadDims) {
      std::vector<std::unique_ptr<Case>> cases;
      cases.push_back(std::make_unique<Case>(random, dim, bits, 6, 4, 60));
      cases.push_back(std::make_unique<Case>(random, dim, bits, 1, 9, 100));
      cases.push_back(std::make_unique<Case>(random, dim, bits, 3, 0, 100));
      cases.push_back(std::make_unique<Case>(random, dim, bits, 3, 4, 0));
      ExpectRight(random, cases);
    }
  }
}

TEST_P(ScoreTokensOnGpu, AnyNumberOfQueriesSharesTheCodes) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  std::vector<std::unique_ptr<Case>> cases;
  for (const int num_queries : {1, 2, 5, 7, 8, 16, 32, 33}) {
    cases.push_back(std::make_unique<Case>(random, 128, 1, 3, num_queries, 100));
  }
  ExpectRight(random, cases);
}

// More clusters than are added up at once, more tokens than a block has, clusters that many blocks
// share, and clusters without tokens.
TEST_P(ScoreTokensOnGpu, AnyNumberAndSizeOfClusters) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  std::vector<std::unique_ptr<Case>> cases;
  for (const int percent : {10, 100}) {
    cases.push_back(std::make_unique<Case>(random, 16, 1, 700, 1, percent));
  }
  for (const int64_t merged : {20, 70, 99}) {
    cases.push_back(std::make_unique<Case>(random, 16, 1, 100, 3, 100));
    cases.back()->MakeOneLarge(merged);
  }
  ExpectRight(random, cases);
}

WAVEKV_ON_EACH_GPU(ScoreTokensOnGpu);

}  // namespace
}  // namespace wavekv::testing
