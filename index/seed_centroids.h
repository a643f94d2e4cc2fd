// Where k-means starts: Faiss's clustering of a small sample.
#ifndef WAVEKV_INDEX_SEED_CENTROIDS_H_
#define WAVEKV_INDEX_SEED_CENTROIDS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace wavekv {

// Centroids to start spherical k-means from: faiss::Clustering of a sample spread evenly over the
// order of the points, started from a spread of the same kind, because neighbouring tokens have
// similar keys.
//
// Shapes: points [num_points, dim] fp32 dense, centred by the caller; result [num_centroids, dim],
// every row of unit length. Errors: InvalidArgument unless 1 <= num_centroids <= num_points and all
// sampled points are finite with a finite squared length; Internal with Faiss's own message.
// Threads: any number of concurrent calls; each runs in its calling thread alone and leaves that
// thread's OpenMP settings as they were. The same arguments give the same bytes.
absl::StatusOr<std::vector<float>> SeedCentroids(const float* points, int64_t num_points, int dim,
                                                 int64_t num_centroids, uint64_t seed);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_SEED_CENTROIDS_H_
