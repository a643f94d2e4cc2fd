#ifndef WAVEKV_CUDA_CLUSTER_SEGMENTS_H_
#define WAVEKV_CUDA_CLUSTER_SEGMENTS_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/gpu_types.h"
#include "storage/cluster_index.h"

namespace wavekv {

// Where the rows of a kv head's tokens lie: rows[t] is that of the token at position
// position_begin + t. Ranges [num_ranges] cover each position once, in any order.
struct GpuListRowsTask {
  const KvRange* ranges = nullptr;
  int64_t num_ranges = 0;
  int64_t position_begin = 0;
  TokenRow* rows = nullptr;
};

struct GpuClusteringOptions {
  int tokens_per_cluster = 16;
  int cluster_tokens_max = 64;
  int kmeans_iterations = 2;
  int clusters_per_super = 16;
  uint64_t seed = 1;
};

// Clusters the keys of one kv head of one segment, and the clusters into super-clusters: what
// index/segment_builder.h's ClusterRows does, with the same rules for what comes out (each token in
// exactly one cluster, none empty, none above cluster_tokens_max; order of clusters and members),
// but with arithmetic of its own, so that clusters differ.
//
// Results: counts[0] clusters, counts[1] super-clusters; offsets [counts[0] + 1], members
// [num_tokens], super_offsets [counts[1] + 1]: as in index/cluster_segment.h. Room: num_tokens + 1
// of each. Deterministic.
struct GpuClusterTask {
  const TokenRow* rows = nullptr;
  int64_t num_tokens = 0;
  uint32_t* offsets = nullptr;
  uint32_t* members = nullptr;
  uint32_t* super_offsets = nullptr;
  uint32_t* counts = nullptr;
};

// Copies the rows into `out` in cluster order and computes every section of it but for the header:
// what WriteClusterIndex of index/segment_builder.h does, up to rounding. `out` has the pointers
// and numbers of LocateClusterIndex.
struct GpuWriteIndexTask {
  const TokenRow* rows = nullptr;
  const uint32_t* offsets = nullptr;
  const uint32_t* members = nullptr;
  const uint32_t* super_offsets = nullptr;
  MutableClusterIndex out;
};

}  // namespace wavekv

// All tasks of a launch have the same number of tokens, at most bounds.num_items, which is at most
// kSegmentTokensMax. scratch: so many bytes for each task, 256-byte aligned; what stands in it does
// not matter.
WAVEKV_GPU_OPERATION(absl::Status ListRows(GpuTasks<GpuListRowsTask> tasks,
                                           const TaskBounds& bounds, GpuStream stream);
                     int64_t ClusterScratchBytes(const TaskBounds& bounds,
                                                 const GpuClusteringOptions& options);
                     absl::Status ClusterSegments(GpuTasks<GpuClusterTask> tasks,
                                                  const TaskBounds& bounds,
                                                  const GpuClusteringOptions& options,
                                                  std::byte* scratch, GpuStream stream))

#endif  // WAVEKV_CUDA_CLUSTER_SEGMENTS_H_
