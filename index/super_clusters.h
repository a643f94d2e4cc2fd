// Groups the clusters of a segment into super-clusters.
#ifndef WAVEKV_INDEX_SUPER_CLUSTERS_H_
#define WAVEKV_INDEX_SUPER_CLUSTERS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "compute/backend.h"
#include "index/cluster_segment.h"

namespace wavekv {

// Divides the clusters, by their centroids, into super-clusters of clusters_per_super on average
// and twice as many at most, and reorders *clustering so that each is a run of clusters: fills
// super_offsets. Super-clusters stand in the order of their first cluster, whose own order inside
// them is kept.
//
// Shapes: keys [num_tokens, dim] as ClusterSegment leaves them. Errors: those of the backend.
// Threads and determinism: as ClusterSegment.
absl::Status GroupClusters(absl::Span<const float> keys, int dim, int clusters_per_super,
                           uint64_t seed, Backend& backend, Clustering* clustering);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_SUPER_CLUSTERS_H_
