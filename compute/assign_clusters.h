#ifndef WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
#define WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_

#include <cstdint>

namespace wavekv {

// One half of a k-means pass: the centroid of greatest inner product for each point; ties go to the
// one that comes first.
//
// Elements are 16-bit integers, twice as many of which fit an instruction as of fp32, and sums are
// exact in 32 bits: the same on any machine. A point's unit does not matter for its choice, those
// of the centroids must be one: 2^14 for a length of 1 and 2^12 for a point's largest element use
// the range and keep to it for any dim up to kHeadDimMax.
//
// Shapes: points [.., dim] and centroids [.., dim], dense. point_ids [num_points] and centroid_ids
// [num_centroids] name the rows to look at; nullptr: the first ones, in order. assignment has an
// element for each row of `points`, the row of its centroid; those of rows that are not named stay
// as they are. products [num_points, num_centroids], or nullptr: all inner products, in the order
// of the task. Errors: none; num_centroids >= 1, sums stay within 32 bits. Tasks of one call may
// share the arrays if they name different points.
struct AssignClustersTask {
  const int16_t* points = nullptr;
  const uint32_t* point_ids = nullptr;
  int64_t num_points = 0;
  const int16_t* centroids = nullptr;
  const uint32_t* centroid_ids = nullptr;
  int64_t num_centroids = 0;
  int dim = 0;
  int32_t* assignment = nullptr;
  int32_t* products = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ASSIGN_CLUSTERS_H_
