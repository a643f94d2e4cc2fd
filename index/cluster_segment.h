// Divides the tokens of one segment and kv head into clusters of similar keys.
#ifndef WAVEKV_INDEX_CLUSTER_SEGMENT_H_
#define WAVEKV_INDEX_CLUSTER_SEGMENT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend.h"

namespace wavekv {

struct ClusteringOptions {
  int tokens_per_cluster = 16;  // on average: sets the number of clusters
  int cluster_tokens_max = 64;  // larger clusters are split
  int kmeans_iterations = 2;    // rounds after the first assignment (refine_clusters.h)
  uint64_t seed = 1;
};

// Which tokens form each cluster (CSR): cluster i holds the tokens members[offsets[i]] to
// members[offsets[i + 1] - 1], in ascending order. Clusters stand in the order of their first
// token, so those of neighbouring tokens tend to be neighbours.
struct Clustering {
  std::vector<uint32_t> offsets;
  std::vector<uint32_t> members;
  // Super-cluster i holds the clusters super_offsets[i] to super_offsets[i + 1] - 1; empty until
  // GroupClusters (super_clusters.h) has formed them.
  std::vector<uint32_t> super_offsets;

  int64_t num_clusters() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_supers() const { return static_cast<int64_t>(super_offsets.size()) - 1; }
};

// Spherical k-means of the keys relative to the segment's own mean. The result covers every token
// exactly once, in max(1, round(num_tokens / tokens_per_cluster)) clusters or, where clusters had
// to be split, more; none is empty and none exceeds cluster_tokens_max.
//
// Shapes: keys [num_tokens, dim] fp32 dense, any finite values; overwritten (centred and scaled by
// a power of two), so that no second copy is needed. Errors: InvalidArgument naming the option or
// input that is out of range; those of the backend. Threads: concurrent calls are independent; the
// backend sees little work a call, so parallelism comes from clustering several heads at once. The
// same input gives the same result. Source: RetroInfer (arXiv 2505.02922), "Segmented clustering";
// ours keeps every pass inside the segment, looks at near clusters only where there are many,
// exchanges clusters, repairs empty ones and limits the size.
absl::StatusOr<Clustering> ClusterSegment(absl::Span<float> keys, int dim,
                                          const ClusteringOptions& options, Backend& backend);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_CLUSTER_SEGMENT_H_
