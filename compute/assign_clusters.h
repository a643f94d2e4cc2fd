#ifndef WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
#define WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_

#include <cstdint>

namespace wavekv {

// One half of a k-means pass: the centroid of greatest inner product for each point; ties go to the
// one that comes first.
//
// Shapes: points [.., dim] fp32 and centroids [.., dim] fp32 (of unit length for spherical
// k-means), both dense. point_ids [num_points] and centroid_ids [num_centroids] name the rows to
// look at; nullptr: the first ones, in order. assignment has an element for each row of `points`,
// the row of its centroid; those of rows that are not named stay as they are. products
// [num_points, num_centroids], or nullptr: all inner products, in the order of the task.
// Errors: none; num_centroids >= 1. Tasks of one call may share the arrays if they name different
// points.
struct AssignClustersTask {
  const float* points = nullptr;
  const uint32_t* point_ids = nullptr;
  int64_t num_points = 0;
  const float* centroids = nullptr;
  const uint32_t* centroid_ids = nullptr;
  int64_t num_centroids = 0;
  int dim = 0;
  int32_t* assignment = nullptr;
  float* products = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
