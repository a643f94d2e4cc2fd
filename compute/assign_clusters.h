#ifndef WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
#define WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_

#include <cstdint>

namespace wavekv {

// One half of a k-means pass: the centroid of greatest inner product for each point; ties go to the
// lower index.
//
// Shapes: points [num_points, dim] fp32, centroids [num_centroids, dim] fp32 (of unit length for
// spherical k-means), both dense; assignment [num_points]; scores [num_points], the winning inner
// products, or nullptr. Errors: none; num_centroids >= 1.
struct AssignClustersTask {
  const float* points = nullptr;
  int64_t num_points = 0;
  const float* centroids = nullptr;
  int64_t num_centroids = 0;
  int dim = 0;
  int32_t* assignment = nullptr;
  float* scores = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
