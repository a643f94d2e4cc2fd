// From the rows of a growing segment to its sealed index, for one kv head.
//
// Two steps, between which the caller allocates the extent: ClusterRows decides how many clusters
// there are, ClusterIndexBytes how many bytes they take, and WriteClusterIndex fills them.
#ifndef WAVEKV_INDEX_SEGMENT_BUILDER_H_
#define WAVEKV_INDEX_SEGMENT_BUILDER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend.h"
#include "index/cluster_segment.h"
#include "storage/cluster_index.h"
#include "storage/kv_range.h"

namespace wavekv {

// Clusters the keys of `rows`, numbered in the order given, and the clusters into super-clusters.
// Errors and threads: as ClusterSegment.
absl::StatusOr<Clustering> ClusterRows(absl::Span<const KvRange> rows, const KvShape& shape,
                                       const ClusteringOptions& options, int clusters_per_super,
                                       Backend& backend);

// The shape of an index of such clusters. REQUIRES: super-clusters have been formed.
ClusterIndexShape IndexShape(const Clustering& clustering, const KvShape& shape,
                             StatisticsFormat statistics, int code_bits);

// Copies the rows into `out` in cluster order and computes every section of it, as one operation of
// the backend, whose contract says how (compute/write_index.h). Errors: those of the backend.
// REQUIRES: `out` was formatted for as many clusters, super-clusters and tokens as `clustering`
// has; all positions lie in [out.position_begin, out.position_begin + kSegmentTokensMax). Threads:
// concurrent calls with different `out` are independent.
absl::Status WriteClusterIndex(absl::Span<const KvRange> rows, const Clustering& clustering,
                               Backend& backend, const MutableClusterIndex& out);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_SEGMENT_BUILDER_H_
