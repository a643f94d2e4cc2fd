#ifndef WAVEKV_COMPUTE_UPDATE_CENTROIDS_H_
#define WAVEKV_COMPUTE_UPDATE_CENTROIDS_H_

#include <cstdint>

namespace wavekv {

// The other half of a k-means pass: the mean of each cluster's points.
//
// Shapes: points [num_points, dim] fp32 dense; offsets [num_clusters + 1] (CSR) and members
// [offsets[num_clusters]] name the points of each cluster; means [num_clusters, dim] fp32.
// Order: members are summed in fp32 in the order given, four interleaved partial sums at most, so
// the same input gives the same bytes. What belongs to an empty cluster is left as it was.
struct UpdateCentroidsTask {
  const float* points = nullptr;
  int dim = 0;
  const uint32_t* offsets = nullptr;
  const uint32_t* members = nullptr;
  int64_t num_clusters = 0;
  bool normalize = false;  // scale each mean to unit length; a zero mean stays zero
  float* means = nullptr;
  float* lengths = nullptr;  // [num_clusters], of the means before they are scaled; or nullptr
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_UPDATE_CENTROIDS_H_
