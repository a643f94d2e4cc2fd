#include "index/cluster_segment.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/bisect_cluster.h"
#include "index/cluster_points.h"
#include "index/group_members.h"
#include "index/refine_clusters.h"
#include "index/seed_centroids.h"
#include "index/start_clusters.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// With more clusters than this, points look at near ones only.
constexpr int64_t kClustersAllMax = 128;

absl::Status CheckAtLeast(int64_t least, const char* name, int64_t value) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected at least ", least, ", got ", value));
}

absl::Status CheckArguments(absl::Span<const float> keys, int dim,
                            const ClusteringOptions& options) {
  absl::Status status = CheckAtLeast(1, "dim", dim);
  status.Update(CheckAtLeast(1, "num_tokens", keys.size()));
  status.Update(CheckAtLeast(1, "tokens_per_cluster", options.tokens_per_cluster));
  status.Update(CheckAtLeast(1, "cluster_tokens_max", options.cluster_tokens_max));
  status.Update(CheckAtLeast(0, "kmeans_iterations", options.kmeans_iterations));
  return status;
}

// The rows' squared lengths and integers.
struct PointNumbers {
  std::vector<float> squared_lengths;
  std::vector<int16_t> rounded;
};

// Rows of one operation: a tenth of a millisecond, after which a backend may rest.
constexpr int64_t kRowsAtOnce = 512;

// Subtracts the mean of all rows from each and scales by a power of two, which rounds nothing, so
// that no sum or product of what follows can overflow. INVALID_ARGUMENT, and nothing is done, if
// there is an infinity or NaN.
absl::Status CentreAndScale(absl::Span<float> rows, int dim, Backend& backend,
                            PointNumbers& numbers) {
  const auto num_rows = static_cast<int64_t>(rows.size()) / dim;
  std::vector<double> sums(dim, 0.0);
  float largest = 0.0f;
  for (int64_t i = 0; i < num_rows; i += kRowsAtOnce) {
    const SumRowsTask task = {.rows = rows.data() + i * dim,
                              .num_rows = std::min(kRowsAtOnce, num_rows - i),
                              .dim = dim,
                              .sums = sums.data(),
                              .largest = &largest};
    WAVEKV_RETURN_IF_ERROR(backend.SumRows({&task, 1}));
  }
  // Of finite fp32 numbers no sum in double overflows; of others it is none.
  for (const double sum : sums) {
    if (!std::isfinite(sum)) return absl::InvalidArgumentError("keys: expected finite values");
  }
  const int exponent = largest == 0.0f ? 0 : std::min(-std::ilogb(largest), 126);
  std::vector<float> mean(dim);
  for (int j = 0; j < dim; ++j) {
    mean[j] = static_cast<float>(std::ldexp(sums[j] / static_cast<double>(num_rows), exponent));
  }
  numbers.squared_lengths.resize(num_rows);
  numbers.rounded.resize(rows.size());
  for (int64_t i = 0; i < num_rows; i += kRowsAtOnce) {
    const CentreRowsTask task = {.rows = rows.data() + i * dim,
                                 .num_rows = std::min(kRowsAtOnce, num_rows - i),
                                 .dim = dim,
                                 .scale = std::ldexp(1.0f, exponent),
                                 .mean = mean.data(),
                                 .squared_lengths = &numbers.squared_lengths[i],
                                 .rounded = &numbers.rounded[i * dim]};
    WAVEKV_RETURN_IF_ERROR(backend.CentreRows({&task, 1}));
  }
  return absl::OkStatus();
}

// k-means over few clusters: seeds, then an update and an assignment among all per iteration.
absl::StatusOr<Members> IterateOverAll(const ClusterPoints& points, int64_t num_clusters,
                                       const ClusteringOptions& options, Backend& backend) {
  WAVEKV_ASSIGN_OR_RETURN(
      std::vector<float> centroids,
      SeedCentroids(points.rows, points.num_points, points.dim, num_clusters, options.seed));
  std::vector<int16_t> rounded;
  std::vector<int32_t> assignment(points.num_points);
  const auto assign = [&] {
    RoundCentroids(centroids, points.dim, rounded);
    const AssignClustersTask task = {.points = points.rounded,
                                     .num_points = points.num_points,
                                     .centroids = rounded.data(),
                                     .num_centroids = num_clusters,
                                     .dim = points.dim,
                                     .assignment = assignment.data()};
    return backend.AssignClusters({&task, 1});
  };
  WAVEKV_RETURN_IF_ERROR(assign());
  for (int iteration = 0; iteration < options.kmeans_iterations; ++iteration) {
    const Members groups = GroupMembers(assignment, num_clusters);
    const UpdateCentroidsTask update = {.points = points.rows,
                                        .dim = points.dim,
                                        .offsets = groups.offsets.data(),
                                        .members = groups.members.data(),
                                        .num_clusters = num_clusters,
                                        .normalize = true,
                                        .means = centroids.data()};
    WAVEKV_RETURN_IF_ERROR(backend.UpdateCentroids({&update, 1}));
    WAVEKV_RETURN_IF_ERROR(assign());
  }
  return GroupMembers(assignment, num_clusters);
}

// The same for many: a start in two levels, and rounds over near clusters.
absl::StatusOr<Members> IterateOverNear(const ClusterPoints& points, int64_t num_clusters,
                                        const ClusteringOptions& options, Backend& backend) {
  WAVEKV_ASSIGN_OR_RETURN(std::vector<int32_t> assignment,
                          StartClusters(points, num_clusters, options.seed, backend));
  // One more, which makes up for a start that is rougher than seeds for all clusters.
  const RefineOptions refine = {.rounds = options.kmeans_iterations + 1,
                                .members_max = options.cluster_tokens_max};
  WAVEKV_RETURN_IF_ERROR(
      RefineClusters(points, num_clusters, refine, backend, absl::MakeSpan(assignment)));
  return GroupMembers(assignment, num_clusters);
}

// A run of `members` that forms one cluster.
struct Run {
  uint32_t begin;
  uint32_t end;
  uint32_t size() const { return end - begin; }
};

// Cuts the largest cluster in two until there are enough clusters, which makes up for empty ones,
// and none is too large.
std::vector<Run> SplitLargest(absl::Span<const float> points, int dim, int64_t num_clusters,
                              uint32_t size_max, Backend& backend, Members& groups) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < num_clusters; ++i) {
    const Run run = {groups.offsets[i], groups.offsets[i + 1]};
    if (run.size() > 0) runs.push_back(run);
  }
  const auto smaller = [](const Run& a, const Run& b) {
    return a.size() != b.size() ? a.size() < b.size() : a.begin > b.begin;
  };
  std::make_heap(runs.begin(), runs.end(), smaller);
  while (static_cast<int64_t>(runs.size()) < num_clusters || runs.front().size() > size_max) {
    backend.Yield();
    std::pop_heap(runs.begin(), runs.end(), smaller);
    const Run run = runs.back();
    runs.pop_back();
    const Bisection bisection = BisectCluster(
        points.data(), dim, absl::MakeSpan(groups.members).subspan(run.begin, run.size()));
    const uint32_t middle = run.begin + static_cast<uint32_t>(bisection.cut);
    runs.push_back({run.begin, middle});
    std::push_heap(runs.begin(), runs.end(), smaller);
    runs.push_back({middle, run.end});
    std::push_heap(runs.begin(), runs.end(), smaller);
  }
  return runs;
}

// The runs in the order of their first tokens.
Clustering InOrder(std::vector<Run> runs, absl::Span<const uint32_t> members) {
  std::sort(runs.begin(), runs.end(),
            [&](const Run& a, const Run& b) { return members[a.begin] < members[b.begin]; });
  Clustering clustering;
  clustering.offsets.reserve(runs.size() + 1);
  clustering.members.reserve(members.size());
  clustering.offsets.push_back(0);
  for (const Run& run : runs) {
    clustering.members.insert(clustering.members.end(), members.begin() + run.begin,
                              members.begin() + run.end);
    clustering.offsets.push_back(static_cast<uint32_t>(clustering.members.size()));
  }
  return clustering;
}

}  // namespace

absl::StatusOr<Clustering> ClusterSegment(absl::Span<float> keys, int dim,
                                          const ClusteringOptions& options, Backend& backend) {
  if (absl::Status status = CheckArguments(keys, dim, options); !status.ok()) return status;
  const int64_t num_tokens = static_cast<int64_t>(keys.size()) / dim;
  const int64_t num_clusters = std::max<int64_t>(
      (num_tokens + options.tokens_per_cluster / 2) / options.tokens_per_cluster, 1);

  PointNumbers numbers;
  WAVEKV_RETURN_IF_ERROR(CentreAndScale(keys, dim, backend, numbers));
  const ClusterPoints points = {keys.data(), numbers.rounded.data(), numbers.squared_lengths.data(),
                                num_tokens, dim};
  WAVEKV_ASSIGN_OR_RETURN(Members groups,
                          num_clusters <= kClustersAllMax
                              ? IterateOverAll(points, num_clusters, options, backend)
                              : IterateOverNear(points, num_clusters, options, backend));
  return InOrder(SplitLargest(keys, dim, num_clusters, options.cluster_tokens_max, backend, groups),
                 groups.members);
}

}  // namespace wavekv
