#include "index/super_clusters.h"

#include <utility>
#include <vector>

#include "storage/status_macros.h"

namespace wavekv {

absl::Status GroupClusters(absl::Span<const float> keys, int dim, int clusters_per_super,
                           uint64_t seed, Backend& backend, Clustering* clustering) {
  const int64_t num_clusters = clustering->num_clusters();
  std::vector<float> centroids(num_clusters * dim);
  const UpdateCentroidsTask means = {.points = keys.data(),
                                     .dim = dim,
                                     .offsets = clustering->offsets.data(),
                                     .members = clustering->members.data(),
                                     .num_clusters = num_clusters,
                                     .means = centroids.data()};
  WAVEKV_RETURN_IF_ERROR(backend.UpdateCentroids({&means, 1}));
  // Few points: as many passes as help cost next to nothing.
  const ClusteringOptions options = {.tokens_per_cluster = clusters_per_super,
                                     .cluster_tokens_max = 2 * clusters_per_super,
                                     .kmeans_iterations = 8,
                                     .seed = seed};
  WAVEKV_ASSIGN_OR_RETURN(const Clustering supers,
                          ClusterSegment(absl::MakeSpan(centroids), dim, options, backend));

  Clustering grouped;
  grouped.offsets.reserve(clustering->offsets.size());
  grouped.members.reserve(clustering->members.size());
  grouped.offsets.push_back(0);
  for (const uint32_t cluster : supers.members) {
    grouped.members.insert(grouped.members.end(),
                           clustering->members.begin() + clustering->offsets[cluster],
                           clustering->members.begin() + clustering->offsets[cluster + 1]);
    grouped.offsets.push_back(static_cast<uint32_t>(grouped.members.size()));
  }
  grouped.super_offsets = supers.offsets;
  *clustering = std::move(grouped);
  return absl::OkStatus();
}

}  // namespace wavekv
