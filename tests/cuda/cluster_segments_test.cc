#include "cuda/cluster_segments.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "index/segment_builder.h"
#include "tests/cuda/gpu_fixture.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

// Rows around random centres, in stretches of the same one and with an offset that all share, as
// keys are.
std::vector<float> ClusteredKeys(Random& random, int64_t num_tokens, int dim, float deviation) {
  const int64_t num_centres = std::max<int64_t>(num_tokens / 16, 1);
  const std::vector<float> centres = random.Gaussians(num_centres * dim);
  const std::vector<float> offset = random.Gaussians(dim, 2.0f);
  std::vector<float> keys;
  int64_t centre = 0;
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (random.Integer(0, 2) == 0) centre = random.Integer(0, num_centres - 1);
    for (int d = 0; d < dim; ++d) {
      keys.push_back(offset[d] + centres[centre * dim + d] + random.Gaussian(deviation));
    }
  }
  return keys;
}

// Sum of squared distances of rows from their clusters' means.
double Inertia(const std::vector<float>& keys, int dim, const Clustering& clustering) {
  double inertia = 0.0;
  for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
    const uint32_t begin = clustering.offsets[c], end = clustering.offsets[c + 1];
    for (int d = 0; d < dim; ++d) {
      double sum = 0.0, squares = 0.0;
      for (uint32_t i = begin; i < end; ++i) {
        const double x = keys[int64_t{clustering.members[i]} * dim + d];
        sum += x;
        squares += x * x;
      }
      inertia += squares - sum * sum / (end - begin);
    }
  }
  return inertia;
}

// Of the clusters' means, in super-clusters.
double SuperInertia(const std::vector<float>& keys, int dim, const Clustering& clustering) {
  std::vector<float> means;
  for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
    const uint32_t begin = clustering.offsets[c], end = clustering.offsets[c + 1];
    for (int d = 0; d < dim; ++d) {
      double sum = 0.0;
      for (uint32_t i = begin; i < end; ++i) {
        sum += keys[int64_t{clustering.members[i]} * dim + d];
      }
      means.push_back(static_cast<float>(sum / (end - begin)));
    }
  }
  Clustering supers;
  supers.offsets = clustering.super_offsets;
  supers.members.resize(clustering.num_clusters());
  std::iota(supers.members.begin(), supers.members.end(), 0);
  return Inertia(means, dim, supers);
}

class ClusterSegmentsOnGpu : public GpuFixture {
 protected:
  // Clusters segments of the same number of tokens, [num_tokens, dim] each, with bounds of
  // `slack` more tokens.
  std::vector<Clustering> Cluster(const std::vector<std::vector<float>>& segments, int dim,
                                  DType dtype, const GpuClusteringOptions& options,
                                  int64_t slack = 0) {
    std::vector<GpuClusterTask> tasks;
    TaskBounds bounds;
    bounds.shape = {dim, dim, dtype};
    bounds.num_items = slack;
    for (const std::vector<float>& keys : segments) {
      const std::vector<std::byte> bytes = Encode(keys, dtype);
      const auto num_tokens = static_cast<int64_t>(keys.size()) / dim;
      const std::byte* const on_device = Upload(bytes);
      std::vector<TokenRow> rows(num_tokens);
      for (int64_t t = 0; t < num_tokens; ++t) {
        rows[t].key = on_device + t * dim * DTypeBytes(dtype);
      }
      GpuClusterTask task;
      task.num_tokens = num_tokens;
      if (num_tokens > 0) {
        task.rows = Upload(rows);
        task.offsets = Poison<uint32_t>(num_tokens + 1);
        task.members = Poison<uint32_t>(num_tokens);
        task.super_offsets = Poison<uint32_t>(num_tokens + 1);
        task.counts = Poison<uint32_t>(2);
      }
      tasks.push_back(task);
      bounds.num_items = std::max(bounds.num_items, num_tokens + slack);
    }
    const auto count = static_cast<int64_t>(tasks.size());
    std::byte* const scratch =
        Poison<std::byte>(operations().cluster_scratch_bytes(bounds, options) * count);
    Expect(
        operations().cluster_segments({Upload(tasks), count}, bounds, options, scratch, stream()));
    std::vector<Clustering> clusterings;
    for (const GpuClusterTask& task : tasks) {
      clusterings.emplace_back();
      if (task.num_tokens == 0) continue;
      Clustering& clustering = clusterings.back();
      const std::vector<uint32_t> counts = Download(task.counts, 2);
      if (counts[0] > task.num_tokens || counts[1] > counts[0]) {
        ADD_FAILURE() << counts[0] << " clusters, " << counts[1] << " super-clusters";
        continue;
      }
      clustering.offsets = Download(task.offsets, counts[0] + 1);
      clustering.members = Download(task.members, task.num_tokens);
      clustering.super_offsets = Download(task.super_offsets, counts[1] + 1);
    }
    return clusterings;
  }

  static void ExpectRuns(const std::vector<uint32_t>& offsets, uint32_t end, uint32_t size_max) {
    ASSERT_GE(offsets.size(), 2u);
    EXPECT_EQ(offsets.front(), 0u);
    EXPECT_EQ(offsets.back(), end);
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      ASSERT_LT(offsets[i], offsets[i + 1]) << i;
      ASSERT_LE(offsets[i + 1] - offsets[i], size_max) << i;
    }
  }

  // What holds for any keys.
  static void ExpectValid(const Clustering& clustering, int64_t num_tokens,
                          const GpuClusteringOptions& options) {
    ASSERT_EQ(static_cast<int64_t>(clustering.members.size()), num_tokens);
    ExpectRuns(clustering.offsets, static_cast<uint32_t>(num_tokens), options.cluster_tokens_max);
    ExpectRuns(clustering.super_offsets, static_cast<uint32_t>(clustering.num_clusters()),
               2 * options.clusters_per_super);
    if (HasFailure()) return;
    const auto at_least = [](int64_t items, int64_t per_cluster) {
      return std::max<int64_t>((items + per_cluster / 2) / per_cluster, 1);
    };
    EXPECT_GE(clustering.num_clusters(), at_least(num_tokens, options.tokens_per_cluster));
    EXPECT_GE(clustering.num_supers(),
              at_least(clustering.num_clusters(), options.clusters_per_super));
    std::vector<bool> seen(num_tokens);
    std::vector<uint32_t> firsts;
    for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
      firsts.push_back(clustering.members[clustering.offsets[c]]);
      for (uint32_t i = clustering.offsets[c]; i < clustering.offsets[c + 1]; ++i) {
        const uint32_t member = clustering.members[i];
        ASSERT_LT(member, num_tokens);
        ASSERT_FALSE(seen[member]) << member;
        seen[member] = true;
        if (i > clustering.offsets[c]) {
          ASSERT_GT(member, clustering.members[i - 1]);
        }
      }
    }
    for (int64_t s = 0; s < clustering.num_supers(); ++s) {
      const uint32_t begin = clustering.super_offsets[s], end = clustering.super_offsets[s + 1];
      EXPECT_TRUE(std::is_sorted(firsts.begin() + begin, firsts.begin() + end)) << s;
      if (s > 0) {
        EXPECT_GT(firsts[begin], firsts[clustering.super_offsets[s - 1]]) << s;
      }
    }
  }

  Clustering ClusterOnCpu(const std::vector<float>& keys, int dim,
                          const GpuClusteringOptions& options) {
    const std::vector<float> values(keys.size());
    const KvRange range = {reinterpret_cast<const std::byte*>(keys.data()),
                           reinterpret_cast<const std::byte*>(values.data()),
                           static_cast<int64_t>(keys.size()) / dim};
    const ClusteringOptions on_cpu = {options.tokens_per_cluster, options.cluster_tokens_max,
                                      options.kmeans_iterations, options.seed};
    auto clustering = ClusterRows({&range, 1}, {dim, dim, DType::kFloat32}, on_cpu,
                                  options.clusters_per_super, cpu());
    Expect(clustering.status());
    return *std::move(clustering);
  }
};

TEST_P(ClusterSegmentsOnGpu, ClustersAsWellAsTheCpu) {
  Random random(2);
  WAVEKV_TRACE_SEED(random);
  // Where k-means ends is a matter of luck: what counts is the sum over segments. Of clusters far
  // apart, two that were taken for one outweigh all else, so that luck decides even there.
  constexpr int64_t kTokens = 512;
  constexpr int kSegments = 6;
  const GpuClusteringOptions options;
  for (const int dim : {64, 128}) {
    const DType dtype = dim == 64 ? DType::kFloat16 : DType::kBFloat16;
    for (const float deviation : {0.1f, 0.7f}) {
      if (dim == 128 && deviation < 0.5f) continue;
      SCOPED_TRACE(::testing::Message() << "dim " << dim << ", deviation " << deviation);
      std::vector<std::vector<float>> segments;
      for (int i = 0; i < kSegments; ++i) {
        segments.push_back(Rounded(ClusteredKeys(random, kTokens, dim, deviation), dtype));
      }
      const std::vector<Clustering> got = Cluster(segments, dim, dtype, options);
      double inertia = 0.0, inertia_on_cpu = 0.0, of_supers = 0.0, of_supers_on_cpu = 0.0;
      for (int i = 0; i < kSegments; ++i) {
        ExpectValid(got[i], kTokens, options);
        if (HasFailure()) return;
        const Clustering expected = ClusterOnCpu(segments[i], dim, options);
        inertia += Inertia(segments[i], dim, got[i]);
        inertia_on_cpu += Inertia(segments[i], dim, expected);
        of_supers += SuperInertia(segments[i], dim, got[i]);
        of_supers_on_cpu += SuperInertia(segments[i], dim, expected);
      }
      EXPECT_LE(inertia, (deviation < 0.5f ? 1.3 : 1.05) * inertia_on_cpu);
      EXPECT_LE(of_supers, 1.05 * of_supers_on_cpu);
    }
  }
}

TEST_P(ClusterSegmentsOnGpu, KeepsItsRulesForAnySize) {
  Random random(3);
  WAVEKV_TRACE_SEED(random);
  struct Case {
    int64_t num_tokens;
    int dim;
    DType dtype;
    GpuClusteringOptions options;
  };
  const Case cases[] = {
      {1, 8, DType::kFloat32, {}},
      {2, 40, DType::kBFloat16, {}},
      {7, 64, DType::kFloat16, {1, 1, 2, 16, 5}},
      {33, 80, DType::kBFloat16, {4, 7, 0, 3, 7}},
      {64, 96, DType::kFloat16, {16, 64, 1, 16, 1}},
      {100, 128, DType::kFloat32, {3, 5, 2, 1, 1}},
      {129, 192, DType::kFloat16, {16, 20, 2, 4, 1}},
      {150, 256, DType::kBFloat16, {8, 64, 2, 4, 9}},
      {200, 264, DType::kBFloat16, {16, 64, 2, 4, 2}},
      {90, 576, DType::kFloat16, {16, 12, 2, 2, 3}},
      {300, 64, DType::kBFloat16, {1000, 100, 2, 2, 3}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.num_tokens << " tokens of " << c.dim);
    std::vector<std::vector<float>> segments;
    for (int i = 0; i < 2; ++i) {
      segments.push_back(ClusteredKeys(random, c.num_tokens, c.dim, 0.3f));
    }
    segments.emplace_back();  // skipped
    const auto got = Cluster(segments, c.dim, c.dtype, c.options, random.Integer(0, 1) * 77);
    for (int i = 0; i < 2; ++i) ExpectValid(got[i], c.num_tokens, c.options);
    // Whatever else is clustered with it.
    const Clustering again = Cluster({segments[1]}, c.dim, c.dtype, c.options)[0];
    EXPECT_EQ(got[1].offsets, again.offsets);
    EXPECT_EQ(got[1].members, again.members);
    EXPECT_EQ(got[1].super_offsets, again.super_offsets);
    if (HasFailure()) return;
  }
}

// Bounds for which shared memory has no room.
TEST_P(ClusterSegmentsOnGpu, DoesNotDependOnTheBounds) {
  Random random(7);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> keys = ClusteredKeys(random, 70, 8, 0.3f);
  const GpuClusteringOptions options = {1, 3, 0, 16, 1};
  const Clustering expected = Cluster({keys}, 8, DType::kFloat16, options)[0];
  ExpectValid(expected, 70, options);
  const Clustering got = Cluster({keys}, 8, DType::kFloat16, options, 8300)[0];
  EXPECT_EQ(got.offsets, expected.offsets);
  EXPECT_EQ(got.members, expected.members);
  EXPECT_EQ(got.super_offsets, expected.super_offsets);
}

TEST_P(ClusterSegmentsOnGpu, DividesKeysThatAreEqual) {
  const GpuClusteringOptions options;
  const auto got = Cluster({std::vector<float>(700 * 64, 1.5f), std::vector<float>(700 * 64, 0.0f)},
                           64, DType::kBFloat16, options);
  for (const Clustering& clustering : got) ExpectValid(clustering, 700, options);
}

// One direction holds nearly all: what is cut by whole blocks, and sorted by a bitmap.
TEST_P(ClusterSegmentsOnGpu, CutsLargeClusters) {
  Random random(4);
  WAVEKV_TRACE_SEED(random);
  constexpr int64_t kTokens = 1300;
  constexpr int kDim = 64;
  std::vector<float> keys(kTokens * kDim);
  for (int64_t t = 0; t < kTokens; ++t) {
    keys[t * kDim] = t % 100 == 7 ? -500.0f : 5.0f + 0.01f * random.Gaussian();
    if (t % 2 == 0) keys[t * kDim + 1] = 0.001f * random.Gaussian();
  }
  const GpuClusteringOptions options = {64, 100, 2, 16, 1};
  ExpectValid(Cluster({keys}, kDim, DType::kFloat32, options)[0], kTokens, options);
}

TEST_P(ClusterSegmentsOnGpu, DoesNotDependOnTheKeysScale) {
  Random random(5);
  WAVEKV_TRACE_SEED(random);
  const std::vector<float> keys = ClusteredKeys(random, 256, 64, 0.3f);
  const GpuClusteringOptions options;
  const Clustering expected = Cluster({keys}, 64, DType::kFloat32, options)[0];
  ExpectValid(expected, 256, options);
  for (const int exponent : {-100, 100, 120}) {
    SCOPED_TRACE(exponent);
    std::vector<float> scaled;
    for (const float key : keys) scaled.push_back(std::ldexp(key, exponent));
    const Clustering got = Cluster({scaled}, 64, DType::kFloat32, options)[0];
    EXPECT_EQ(got.offsets, expected.offsets);
    EXPECT_EQ(got.members, expected.members);
    EXPECT_EQ(got.super_offsets, expected.super_offsets);
  }
  std::vector<float> extremes = keys;
  for (float& key : extremes) {
    if (random.Integer(0, 9) == 0) key = random.Integer(0, 1) == 0 ? 3e38f : -3e38f;
    if (random.Integer(0, 9) == 0) key *= 1e-38f;
  }
  ExpectValid(Cluster({extremes}, 64, DType::kFloat32, options)[0], 256, options);
}

TEST_P(ClusterSegmentsOnGpu, ListsEachTokensRows) {
  Random random(6);
  WAVEKV_TRACE_SEED(random);
  TaskBounds bounds;
  bounds.shape = {64, 32, DType::kBFloat16};
  const auto* const keys = reinterpret_cast<const std::byte*>(uintptr_t{1} << 40);
  const auto* const values = reinterpret_cast<const std::byte*>(uintptr_t{1} << 41);
  std::vector<GpuListRowsTask> tasks;
  std::vector<std::vector<TokenRow>> expected;
  for (const int64_t num_tokens : {0, 1, 100, 3000}) {
    expected.emplace_back(num_tokens);
    GpuListRowsTask task;
    task.position_begin = random.Integer(0, 1000000);
    std::vector<KvRange> ranges;
    int64_t used = 0;
    const auto add = [&](KvRange range) {
      range.keys = keys + used * 128;
      range.values = values + used * 64;
      used += range.num_tokens;
      ranges.push_back(range);
    };
    // Some positions come one by one, at the end; the others in ranges.
    std::vector<uint16_t> scattered;
    for (int64_t begin = 0; begin < num_tokens;) {
      KvRange range;
      const int64_t most = random.Integer(0, 3) == 0 ? 1400 : 20;
      range.num_tokens = std::min(random.Integer(0, most), num_tokens - begin);
      range.position_begin = task.position_begin + begin;
      for (int64_t i = 0; i < range.num_tokens; ++i) {
        expected.back()[begin + i] = {keys + (used + i) * 128, values + (used + i) * 64};
      }
      add(range);
      begin += range.num_tokens;
      if (begin < num_tokens) scattered.push_back(static_cast<uint16_t>(begin++));
    }
    std::shuffle(scattered.begin(), scattered.end(), random.engine());
    for (size_t i = 0; i < scattered.size(); ++i) {
      expected.back()[scattered[i]] = {keys + (used + i) * 128, values + (used + i) * 64};
    }
    if (!scattered.empty()) {
      KvRange range;
      range.num_tokens = static_cast<int64_t>(scattered.size());
      range.position_begin = task.position_begin;
      range.positions = Upload(scattered);
      add(range);
    }
    std::shuffle(ranges.begin(), ranges.end(), random.engine());
    task.ranges = Upload(ranges);
    task.num_ranges = static_cast<int64_t>(ranges.size());
    task.rows = Poison<TokenRow>(num_tokens);
    tasks.push_back(task);
    bounds.num_items = num_tokens;
  }
  Expect(operations().list_rows({Upload(tasks), static_cast<int64_t>(tasks.size())}, bounds,
                                stream()));
  for (size_t i = 0; i < tasks.size(); ++i) {
    const auto num_tokens = static_cast<int64_t>(expected[i].size());
    const std::vector<TokenRow> got = Download(tasks[i].rows, num_tokens);
    for (int64_t t = 0; t < num_tokens; ++t) {
      ASSERT_EQ(got[t].key, expected[i][t].key) << t;
      ASSERT_EQ(got[t].value, expected[i][t].value) << t;
    }
  }
}

WAVEKV_ON_EACH_GPU(ClusterSegmentsOnGpu);

}  // namespace
}  // namespace wavekv::testing
