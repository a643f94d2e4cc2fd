// Where k-means with many clusters starts: in two levels, since one would cost as much as all that
// follows.
#ifndef WAVEKV_INDEX_START_CLUSTERS_H_
#define WAVEKV_INDEX_START_CLUSTERS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend.h"
#include "index/cluster_points.h"

namespace wavekv {

// Assigns each point to one of num_clusters clusters, some of which may be empty: Faiss's k-means
// of a sample gives coarse groups, of about kClustersPerGroup clusters each; all points choose
// their group, and inside each group one round of k-means starts from rows spread over its order.
//
// Errors: those of the backend and of SeedCentroids. The same arguments give the same result.
// REQUIRES: 1 <= num_clusters <= num_points.
inline constexpr int kClustersPerGroup = 8;
absl::StatusOr<std::vector<int32_t>> StartClusters(const ClusterPoints& points,
                                                   int64_t num_clusters, uint64_t seed,
                                                   Backend& backend);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_START_CLUSTERS_H_
