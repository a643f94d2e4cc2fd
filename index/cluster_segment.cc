#include "index/cluster_segment.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/bisect_cluster.h"
#include "index/seed_centroids.h"

namespace wavekv {
namespace {

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

// Scales by a power of two, which rounds nothing, until no sum or product of what follows can
// overflow. Returns false if there is an infinity or NaN.
bool ScaleToUnit(absl::Span<float> values) {
  float largest = 0.0f;
  bool finite = true;
  for (const float value : values) {
    largest = std::max(largest, std::abs(value));
    finite &= std::isfinite(value);
  }
  if (!finite) return false;
  if (largest == 0.0f) return true;
  const float scale = std::ldexp(1.0f, std::min(-std::ilogb(largest), 126));
  for (float& value : values) value *= scale;
  return true;
}

// Subtracts the mean of all rows from each.
absl::Status Centre(absl::Span<float> rows, int dim, Backend& backend) {
  const uint32_t num_rows = static_cast<uint32_t>(rows.size() / dim);
  const uint32_t offsets[] = {0, num_rows};
  std::vector<uint32_t> members(num_rows);
  std::iota(members.begin(), members.end(), 0);
  std::vector<float> mean(dim);
  const UpdateCentroidsTask task = {.points = rows.data(),
                                    .dim = dim,
                                    .offsets = offsets,
                                    .members = members.data(),
                                    .num_clusters = 1,
                                    .means = mean.data()};
  if (absl::Status status = backend.UpdateCentroids({&task, 1}); !status.ok()) return status;
  for (uint32_t i = 0; i < num_rows; ++i) {
    float* row = rows.data() + static_cast<int64_t>(i) * dim;
    for (int j = 0; j < dim; ++j) row[j] -= mean[j];
  }
  return absl::OkStatus();
}

// A counting sort, so members ascend inside each cluster. Clusters may be empty.
Clustering GroupByCluster(absl::Span<const int32_t> assignment, int64_t num_clusters) {
  Clustering groups;
  groups.offsets.assign(num_clusters + 1, 0);
  for (const int32_t cluster : assignment) ++groups.offsets[cluster + 1];
  std::partial_sum(groups.offsets.begin(), groups.offsets.end(), groups.offsets.begin());
  std::vector<uint32_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  groups.members.resize(assignment.size());
  for (uint32_t token = 0; token < assignment.size(); ++token) {
    groups.members[next[assignment[token]]++] = token;
  }
  return groups;
}

// k-means proper: the seeds, then an update and a new assignment per iteration.
absl::StatusOr<Clustering> Iterate(absl::Span<const float> points, int dim, int64_t num_clusters,
                                   const ClusteringOptions& options, Backend& backend) {
  const int64_t num_points = static_cast<int64_t>(points.size()) / dim;
  absl::StatusOr<std::vector<float>> centroids =
      SeedCentroids(points.data(), num_points, dim, num_clusters, options.seed);
  if (!centroids.ok()) return centroids.status();

  std::vector<int32_t> assignment(num_points);
  const AssignClustersTask assign = {.points = points.data(),
                                     .num_points = num_points,
                                     .centroids = centroids->data(),
                                     .num_centroids = num_clusters,
                                     .dim = dim,
                                     .assignment = assignment.data()};
  if (absl::Status status = backend.AssignClusters({&assign, 1}); !status.ok()) return status;
  Clustering groups = GroupByCluster(assignment, num_clusters);
  for (int iteration = 0; iteration < options.kmeans_iterations; ++iteration) {
    const UpdateCentroidsTask update = {.points = points.data(),
                                        .dim = dim,
                                        .offsets = groups.offsets.data(),
                                        .members = groups.members.data(),
                                        .num_clusters = num_clusters,
                                        .normalize = true,
                                        .means = centroids->data()};
    if (absl::Status status = backend.UpdateCentroids({&update, 1}); !status.ok()) return status;
    if (absl::Status status = backend.AssignClusters({&assign, 1}); !status.ok()) return status;
    groups = GroupByCluster(assignment, num_clusters);
  }
  return groups;
}

// A run of `members` that forms one cluster.
struct Run {
  uint32_t begin;
  uint32_t end;
  uint32_t size() const { return end - begin; }
};

// Cuts the largest cluster in two until there are enough clusters, which makes up for empty ones,
// and none is too large.
absl::StatusOr<std::vector<Run>> SplitLargest(absl::Span<const float> points, int dim,
                                              int64_t num_clusters, uint32_t size_max,
                                              Clustering& groups, Backend& backend) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < groups.num_clusters(); ++i) {
    const Run run = {groups.offsets[i], groups.offsets[i + 1]};
    if (run.size() > 0) runs.push_back(run);
  }
  const auto smaller = [](const Run& a, const Run& b) {
    return a.size() != b.size() ? a.size() < b.size() : a.begin > b.begin;
  };
  std::make_heap(runs.begin(), runs.end(), smaller);
  while (static_cast<int64_t>(runs.size()) < num_clusters || runs.front().size() > size_max) {
    std::pop_heap(runs.begin(), runs.end(), smaller);
    const Run run = runs.back();
    runs.pop_back();
    const absl::StatusOr<int64_t> cut = BisectCluster(
        points.data(), dim, absl::MakeSpan(groups.members).subspan(run.begin, run.size()), backend);
    if (!cut.ok()) return cut.status();
    const uint32_t middle = run.begin + static_cast<uint32_t>(*cut);
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

  if (!ScaleToUnit(keys)) return absl::InvalidArgumentError("keys: expected finite values");
  if (absl::Status status = Centre(keys, dim, backend); !status.ok()) return status;
  absl::StatusOr<Clustering> groups = Iterate(keys, dim, num_clusters, options, backend);
  if (!groups.ok()) return groups.status();
  absl::StatusOr<std::vector<Run>> runs =
      SplitLargest(keys, dim, num_clusters, options.cluster_tokens_max, *groups, backend);
  if (!runs.ok()) return runs.status();
  return InOrder(*std::move(runs), groups->members);
}

}  // namespace wavekv
