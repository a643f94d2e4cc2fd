// From the rows of a growing segment to its sealed index, for one kv head.
//
// Two steps, between which the caller allocates the extent: ClusterRows decides how many clusters
// there are, ClusterIndexBytes how many bytes they take, and WriteClusterIndex fills them.
#ifndef WAVEKV_INDEX_SEGMENT_BUILDER_H_
#define WAVEKV_INDEX_SEGMENT_BUILDER_H_

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend.h"
#include "index/cluster_segment.h"
#include "storage/cluster_index.h"
#include "storage/kv_range.h"

namespace wavekv {

// Clusters the keys of `rows`, numbered in the order given. Errors and threads: as ClusterSegment.
absl::StatusOr<Clustering> ClusterRows(absl::Span<const KvRange> rows, const KvShape& shape,
                                       const ClusteringOptions& options, Backend& backend);

// Copies the rows into `out` in cluster order, byte for byte, and computes every section of it.
//
// Statistics come from the stored rows, in double; spreads and radii refer to the means as stored,
// that is after rounding to the statistics dtype. REQUIRES: `out` was formatted for as many
// clusters and tokens as `clustering` has; all positions lie in [out.position_begin,
// out.position_begin + kSegmentTokensMax). Threads: concurrent calls with different `out` are
// independent.
void WriteClusterIndex(absl::Span<const KvRange> rows, const Clustering& clustering,
                       MutableClusterIndex out);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_SEGMENT_BUILDER_H_
