#include "index/segment_builder.h"

#include <vector>

#include "index/super_clusters.h"
#include "storage/status_macros.h"

namespace wavekv {

absl::StatusOr<Clustering> ClusterRows(absl::Span<const KvRange> rows, const KvShape& shape,
                                       const ClusteringOptions& options, int clusters_per_super,
                                       Backend& backend) {
  int64_t num_tokens = 0;
  for (const KvRange& range : rows) num_tokens += range.num_tokens;
  std::vector<float> keys(num_tokens * shape.head_dim_k);
  int64_t row = 0;
  for (const KvRange& range : rows) {
    const ConvertRowsTask task = {.source = range.keys,
                                  .source_dtype = shape.dtype,
                                  .source_stride = shape.head_dim_k,
                                  .target = keys.data() + row * shape.head_dim_k,
                                  .target_stride = shape.head_dim_k,
                                  .num_rows = range.num_tokens,
                                  .row_elements = shape.head_dim_k};
    WAVEKV_RETURN_IF_ERROR(backend.ConvertRows({&task, 1}));
    row += range.num_tokens;
  }
  WAVEKV_ASSIGN_OR_RETURN(Clustering clustering,
                          ClusterSegment(absl::MakeSpan(keys), shape.head_dim_k, options, backend));
  WAVEKV_RETURN_IF_ERROR(GroupClusters(keys, shape.head_dim_k, clusters_per_super, options.seed,
                                       backend, &clustering));
  return clustering;
}

ClusterIndexShape IndexShape(const Clustering& clustering, const KvShape& shape,
                             StatisticsFormat statistics, int code_bits) {
  return {shape,
          statistics,
          code_bits,
          clustering.num_clusters(),
          clustering.num_supers(),
          static_cast<int64_t>(clustering.members.size())};
}

absl::Status WriteClusterIndex(absl::Span<const KvRange> rows, const Clustering& clustering,
                               Backend& backend, const MutableClusterIndex& out) {
  const WriteIndexTask task = {.rows = rows,
                               .offsets = clustering.offsets.data(),
                               .members = clustering.members.data(),
                               .super_offsets = clustering.super_offsets.data(),
                               .out = out,
                               .yields_to = &backend};
  return backend.WriteIndex({&task, 1});
}

}  // namespace wavekv
