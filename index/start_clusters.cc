#include "index/start_clusters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "index/group_members.h"
#include "index/seed_centroids.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Updates of the coarse centroids, and of those inside the groups.
constexpr int kCoarseRounds = 1;
constexpr int kFineRounds = 1;

absl::StatusOr<Members> ChooseGroups(const ClusterPoints& points, int64_t num_groups, uint64_t seed,
                                     Backend& backend) {
  WAVEKV_ASSIGN_OR_RETURN(
      std::vector<float> centroids,
      SeedCentroids(points.rows, points.num_points, points.dim, num_groups, seed));
  std::vector<int16_t> rounded;
  std::vector<int32_t> assignment(points.num_points);
  const auto assign = [&] {
    RoundCentroids(centroids, points.dim, rounded);
    const AssignClustersTask task = {.points = points.rounded,
                                     .num_points = points.num_points,
                                     .centroids = rounded.data(),
                                     .num_centroids = num_groups,
                                     .dim = points.dim,
                                     .assignment = assignment.data()};
    return backend.AssignClusters({&task, 1});
  };
  WAVEKV_RETURN_IF_ERROR(assign());
  for (int round = 0; round < kCoarseRounds; ++round) {
    const Members groups = GroupMembers(assignment, num_groups);
    const UpdateCentroidsTask update = {.points = points.rows,
                                        .dim = points.dim,
                                        .offsets = groups.offsets.data(),
                                        .members = groups.members.data(),
                                        .num_clusters = num_groups,
                                        .normalize = true,
                                        .means = centroids.data()};
    WAVEKV_RETURN_IF_ERROR(backend.UpdateCentroids({&update, 1}));
    WAVEKV_RETURN_IF_ERROR(assign());
  }
  return GroupMembers(assignment, num_groups);
}

// One of each of `count` equal stretches of the group, as a unit vector: neighbouring tokens have
// similar keys. Which one does not matter.
void SpreadSeeds(const ClusterPoints& points, absl::Span<const uint32_t> group, int64_t count,
                 float* centroids) {
  const auto size = static_cast<int64_t>(group.size());
  for (int64_t i = 0; i < count; ++i, centroids += points.dim) {
    const uint32_t point = group[(2 * i + 1) * size / (2 * count)];
    const float* const row = points.row(point);
    const float squared = points.squared_lengths[point];
    const float scale = squared > 0.0f ? 1.0f / std::sqrt(squared) : 0.0f;
    for (int j = 0; j < points.dim; ++j) centroids[j] = scale * row[j];
  }
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> StartClusters(const ClusterPoints& points,
                                                   int64_t num_clusters, uint64_t seed,
                                                   Backend& backend) {
  const int64_t num_groups = std::max<int64_t>(num_clusters / kClustersPerGroup, 1);
  WAVEKV_ASSIGN_OR_RETURN(const Members groups, ChooseGroups(points, num_groups, seed, backend));

  // The clusters of group g are those from first[g] to first[g + 1] - 1, in proportion to its size.
  std::vector<int64_t> first(num_groups + 1);
  for (int64_t g = 0; g <= num_groups; ++g) {
    first[g] = (groups.offsets[g] * num_clusters + points.num_points / 2) / points.num_points;
  }
  std::vector<float> centroids(num_clusters * points.dim);
  for (int64_t g = 0; g < num_groups; ++g) {
    SpreadSeeds(points, groups.of(g), first[g + 1] - first[g],
                centroids.data() + first[g] * points.dim);
  }
  std::vector<uint32_t> ids(num_clusters);
  std::iota(ids.begin(), ids.end(), 0u);
  std::vector<int16_t> rounded;
  std::vector<int32_t> assignment(points.num_points);
  const auto assign = [&] {
    RoundCentroids(centroids, points.dim, rounded);
    std::vector<AssignClustersTask> tasks;
    for (int64_t g = 0; g < num_groups; ++g) {
      // A group too small for a cluster of its own takes a neighbour's.
      tasks.push_back({.points = points.rounded,
                       .point_ids = groups.of(g).data(),
                       .num_points = groups.size(g),
                       .centroids = rounded.data(),
                       .centroid_ids = &ids[std::min(first[g], num_clusters - 1)],
                       .num_centroids = std::max<int64_t>(first[g + 1] - first[g], 1),
                       .dim = points.dim,
                       .assignment = assignment.data()});
    }
    return backend.AssignClusters(tasks);
  };
  WAVEKV_RETURN_IF_ERROR(assign());
  for (int round = 0; round < kFineRounds; ++round) {
    const Members clusters = GroupMembers(assignment, num_clusters);
    const UpdateCentroidsTask update = {.points = points.rows,
                                        .dim = points.dim,
                                        .offsets = clusters.offsets.data(),
                                        .members = clusters.members.data(),
                                        .num_clusters = num_clusters,
                                        .normalize = true,
                                        .means = centroids.data()};
    WAVEKV_RETURN_IF_ERROR(backend.UpdateCentroids({&update, 1}));
    WAVEKV_RETURN_IF_ERROR(assign());
  }
  return assignment;
}

}  // namespace wavekv
