#include "index/refine_clusters.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "index/group_members.h"
#include "index/start_clusters.h"
#include "tests/index/naive_backend.h"
#include "tests/testing/random.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int kDim = 32;

// Rows, as a clustering sees them.
class Points {
 public:
  explicit Points(std::vector<float> rows) : rows_(std::move(rows)) {
    const auto num_points = static_cast<int64_t>(rows_.size()) / kDim;
    squared_lengths_.resize(num_points);
    rounded_.resize(rows_.size());
    const std::vector<float> mean(kDim, 0.0f);
    const CentreRowsTask task = {.rows = rows_.data(),
                                 .num_rows = num_points,
                                 .dim = kDim,
                                 .mean = mean.data(),
                                 .squared_lengths = squared_lengths_.data(),
                                 .rounded = rounded_.data()};
    EXPECT_TRUE(NaiveBackend().CentreRows({&task, 1}).ok());
  }

  ClusterPoints get() const {
    return {rows_.data(), rounded_.data(), squared_lengths_.data(),
            static_cast<int64_t>(squared_lengths_.size()), kDim};
  }

  // Of the distances to the means of their clusters.
  double SumOfSquares(const std::vector<int32_t>& assignment, int64_t num_clusters) const {
    const Members clusters = GroupMembers(assignment, num_clusters);
    double sum = 0.0;
    for (int64_t c = 0; c < num_clusters; ++c) {
      for (int j = 0; j < kDim; ++j) {
        double first = 0.0, second = 0.0;
        for (const uint32_t i : clusters.of(c)) {
          const double x = rows_[i * kDim + j];
          first += x;
          second += x * x;
        }
        if (clusters.size(c) > 0) sum += second - first * first / clusters.size(c);
      }
    }
    return sum;
  }

 private:
  std::vector<float> rows_;
  std::vector<float> squared_lengths_;
  std::vector<int16_t> rounded_;
};

// The CPU's operations with their pool.
struct Cpu {
  explicit Cpu(int num_threads)
      : executor(MakeThreadPool(num_threads)), backend(MakeCpuBackend(executor.get())) {}
  std::unique_ptr<Executor> executor;
  std::unique_ptr<Backend> backend;
};

TEST(RefineClustersTest, ExchangesPutClustersWhereTheStartMissedThem) {
  testing::Random random(1);
  WAVEKV_TRACE_SEED(random);
  constexpr int kPlanted = 200, kEach = 16, kMissed = 20;
  const std::vector<float> centres = random.Gaussians(kPlanted * kDim);
  std::vector<float> rows;
  std::vector<int32_t> assignment;
  for (int i = 0; i < kPlanted * kEach; ++i) {
    const int planted = i % kPlanted;
    for (int j = 0; j < kDim; ++j) {
      rows.push_back(centres[planted * kDim + j] + random.Gaussian(0.05f));
    }
    // The first clusters hold two planted ones each, the last planted ones have two clusters each.
    int cluster = planted;
    if (planted < 2 * kMissed) cluster = planted / 2;
    if (planted >= kPlanted - kMissed && i / kPlanted % 2 == 0) {
      cluster = kMissed + planted - (kPlanted - kMissed);
    }
    assignment.push_back(cluster);
  }
  const Points points(std::move(rows));
  NaiveBackend backend;
  for (const int rounds : {0, 2}) {
    std::vector<int32_t> refined = assignment;
    ASSERT_TRUE(
        RefineClusters(points.get(), kPlanted, {.rounds = rounds}, backend, absl::MakeSpan(refined))
            .ok());
    std::set<std::pair<int, int>> pairs;  // that have a point in common
    for (size_t i = 0; i < refined.size(); ++i) pairs.insert({i % kPlanted, refined[i]});
    if (rounds == 0) {
      EXPECT_GT(pairs.size(), kPlanted + kMissed / 2) << "k-means alone found them";
    } else {
      EXPECT_EQ(pairs.size(), kPlanted);
    }
  }
}

TEST(RefineClustersTest, AnyStartEndsInAssignmentsThatAreTighter) {
  testing::Random random(2);
  WAVEKV_TRACE_SEED(random);
  NaiveBackend naive;
  Cpu one(1), three(3);
  for (int round = 0; round < 25; ++round) {
    const int64_t num_points = random.Integer(1, 900);
    const int64_t num_clusters = random.Integer(1, num_points);
    const int members_max = static_cast<int>(random.Integer(1, 80));
    std::vector<float> rows = random.Gaussians(num_points * kDim, 0.5f);
    const int64_t num_kinds = random.Integer(1, 40);  // most rows are near copies of a few
    for (int64_t i = 0; i < num_points && random.Integer(0, 1) == 0; ++i) {
      const int64_t from = random.Integer(0, std::min(num_kinds, num_points) - 1);
      const float noise = random.Integer(0, 2) == 0 ? 0.0f : 0.02f;
      for (int j = 0; j < kDim; ++j) {
        rows[i * kDim + j] = rows[from * kDim + j] + random.Gaussian(1.0f) * noise;
      }
    }
    const Points points(std::move(rows));
    // Some clusters are empty, sometimes all but one.
    const int64_t num_used = random.Integer(0, 3) == 0 ? 1 : random.Integer(1, num_clusters);
    std::vector<int32_t> start(num_points);
    for (int32_t& cluster : start) {
      cluster = static_cast<int32_t>(random.Integer(0, num_used - 1) * num_clusters / num_used);
    }
    const RefineOptions options = {.rounds = static_cast<int>(random.Integer(0, 3)),
                                   .members_max = members_max};
    std::vector<int32_t> expected;
    for (Backend* backend :
         {static_cast<Backend*>(&naive), one.backend.get(), three.backend.get()}) {
      std::vector<int32_t> refined = start;
      ASSERT_TRUE(
          RefineClusters(points.get(), num_clusters, options, *backend, absl::MakeSpan(refined))
              .ok());
      for (const int32_t cluster : refined) {
        ASSERT_GE(cluster, 0);
        ASSERT_LT(cluster, num_clusters);
      }
      // A pass chooses by angle, so distances may grow a little where the start was good.
      EXPECT_LE(points.SumOfSquares(refined, num_clusters),
                1.05 * points.SumOfSquares(start, num_clusters) + 1e-3);
      if (backend == one.backend.get()) expected = refined;
      if (backend == three.backend.get()) {
        EXPECT_EQ(refined, expected);
      }
    }
  }
}

TEST(StartClustersTest, EveryPointGetsAClusterOfItsGroup) {
  testing::Random random(3);
  WAVEKV_TRACE_SEED(random);
  Cpu cpu(1);
  for (int round = 0; round < 20; ++round) {
    const int64_t num_points = random.Integer(1, 700);
    const int64_t num_clusters = random.Integer(1, num_points);
    std::vector<float> rows = random.Gaussians(num_points * kDim);
    if (random.Integer(0, 3) == 0) std::fill(rows.begin(), rows.end(), 0.25f);
    const Points points(std::move(rows));
    const auto assignment = StartClusters(points.get(), num_clusters, 7, *cpu.backend);
    ASSERT_TRUE(assignment.ok()) << assignment.status();
    ASSERT_EQ(static_cast<int64_t>(assignment->size()), num_points);
    for (const int32_t cluster : *assignment) {
      ASSERT_GE(cluster, 0);
      ASSERT_LT(cluster, num_clusters);
    }
    EXPECT_EQ(*StartClusters(points.get(), num_clusters, 7, *cpu.backend), *assignment);
  }
}

}  // namespace
}  // namespace wavekv
